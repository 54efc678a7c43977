# SPDX-License-Identifier: Apache-2.0
"""Linear probes on video embeddings: classification for labels, regression for numbers such as symptom severities.

python examples/embeddings_linear_probe.py MODEL                      on rendered faces
python examples/embeddings_linear_probe.py MODEL clips.csv [--faces largest]      on clips of your own

clips.csv has one row per clip with `file_name`, relative to the table, `split`, train or test, and any columns to
predict: numbers are regressed, texts are classes. People in the test clips should not appear in the training clips.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from emoclip.loading import load_pipeline
from training.data.synthetic_faces import TARGETS, SyntheticFaces
from training.metrics.ccc.ccc import concordance_correlation
from training.metrics.pcc.pcc import pearson_correlation

PENALTIES = np.logspace(-2, 5, 15)  # for ridge regression; chosen by cross-validation on the training clips


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="exported folder or Hub id")
    parser.add_argument("table", nargs="?", type=Path, help="default: rendered faces")
    parser.add_argument("--train-clips", type=int, default=600, help="of the rendered ones; default: %(default)s")
    parser.add_argument("--faces", default="none", help="largest, for clips that are not cropped")
    options = parser.parse_args(arguments)
    clips = own_clips(options.table) if options.table else rendered_clips(options.train_clips)
    embeds, metadata, skipped = load_pipeline(options.model).embed(
        list(clips["file_name"]), faces=options.faces, on_error="skip"
    )
    clips = clips.iloc[[row["index"] for row in metadata]]
    is_train = (clips["split"] == "train").to_numpy()
    print(f"{is_train.sum()} clips to learn from, {(~is_train).sum()} to test, {len(skipped)} could not be read")
    for name in clips.columns.drop(["file_name", "split"]):
        print(f"{name:20} {probe(embeds, clips[name].to_numpy(), is_train)}")


def own_clips(table: Path) -> pd.DataFrame:
    """Reads the table and prepends its folder to the file names."""
    clips = pd.read_csv(table)
    if missing := {"file_name", "split"} - set(clips.columns):
        raise SystemExit(f"{table} has no column {', '.join(sorted(missing))}")
    if unknown := set(clips["split"]) - {"train", "test"}:
        raise SystemExit(f"{table}: split is {sorted(map(str, unknown))[0]!r}, but must be train or test")
    return clips.assign(file_name=[str(table.parent / name) for name in clips["file_name"]])


def rendered_clips(num_train: int) -> pd.DataFrame:
    """Renders clips of the seven emotions that occur in training, with their three made-up severities."""
    builder = SyntheticFaces(config_name="clips", num_train=3000)  # same as in the demo, to reuse its rendered clips
    builder.download_and_prepare()
    parts = []
    for split, number in (("train", num_train), ("test", None)):
        rows = builder.as_dataset(split)
        part = rows.select(range(min(number or len(rows), len(rows)))).to_pandas()
        part = part.assign(file_name=[video["path"] for video in part["video"]], split=split)
        parts.append(part.assign(emotion=[rows.features["label"].int2str(label) for label in part["label"]]))
    clips = pd.concat(parts, ignore_index=True)
    seen = set(clips.loc[clips["split"] == "train", "emotion"])
    return clips.loc[clips["emotion"].isin(seen), ["file_name", "split", "emotion", *TARGETS]]


def probe(embeds: np.ndarray, values: np.ndarray, is_train: np.ndarray) -> str:
    """Fits a linear model on the training rows and formats its scores on the test rows.

    Args:
        embeds: video embeddings `(N, D)`.
        values: numbers or texts to predict `(N,)`.
        is_train: mask of the training rows `(N,)`, bool.
    """
    truth = values[~is_train]
    if np.issubdtype(values.dtype, np.number):
        model = make_pipeline(StandardScaler(), RidgeCV(PENALTIES)).fit(embeds[is_train], values[is_train])
        predicted = model.predict(embeds[~is_train])
        return f"PCC {pearson_correlation(truth, predicted):.2f}  CCC {concordance_correlation(truth, predicted):.2f}"
    grid = {"C": np.logspace(-4, 2, 7)}
    classifier = GridSearchCV(LogisticRegression(max_iter=2000), grid, scoring="balanced_accuracy", cv=3)
    model = make_pipeline(StandardScaler(), classifier).fit(embeds[is_train], values[is_train])
    predicted = model.predict(embeds[~is_train])
    uar, war = balanced_accuracy_score(truth, predicted), accuracy_score(truth, predicted)
    return f"UAR {100 * uar:.1f}  WAR {100 * war:.1f}  (chance {100 / len(set(truth)):.1f})"


if __name__ == "__main__":
    main()
