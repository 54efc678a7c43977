# SPDX-License-Identifier: Apache-2.0
"""Any words for the expression in a video, with nothing installed but the checkpoint's own code and transformers.

python examples/zero_shot_clip.py FOLDER_OR_HUB_ID clip.mp4 --labels "a smile" "a frown" "anger + disgust"

Without --labels the labels that the checkpoint has descriptions for compete. --json prints one line for each video.
"""

import argparse
import json

from transformers import pipeline


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="exported folder or Hub id")
    parser.add_argument("videos", nargs="+", help="video files or folders of frame images")
    parser.add_argument("--labels", nargs="+", help="labels or descriptions")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    pipe = pipeline(model=options.model, trust_remote_code=True)
    labels = options.labels or list(pipe.model.config.class_descriptions or ())
    for video in options.videos:
        try:
            scores = pipe(video, candidate_labels=labels)
        except (ValueError, FileNotFoundError) as error:
            raise SystemExit(f"{parser.prog}: {error}") from None
        if options.json:
            print(json.dumps({"video": video, "scores": scores}))
        else:
            print(video)
            for entry in scores[:5]:
                print(f"  {entry['score']:6.1%}  {entry['label']}")


if __name__ == "__main__":
    main()
