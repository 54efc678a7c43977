# SPDX-License-Identifier: Apache-2.0
"""Publishes a data set as a dataset repository on the Hub: its annotations, or everything if the videos are yours.

python -m training.data.publish dfew /data/DFEW --repo lab/dfew                     every fold found; private
python -m training.data.publish own /data/mine --repo me/smiles --with-videos --license cc-by-4.0 --public

For a licensed data set, only clip_id, label, fold, scene and number of frames are published: no video, no image, no
local path; captions only on request. The licence agreements do not allow passing on even these. So the repository is
private by default; use --public only with the authors' permission. An upload is a single commit that replaces the
previous content or fails as a whole. Load the result with load_dataset("lab/dfew", "fold1").
"""

import argparse
import os
import re
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import datasets
import jinja2
import yaml
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCard, DatasetCardData, HfApi
from huggingface_hub.utils import RepositoryNotFoundError, httpx

from training.data.data_set_table import BUILDERS
from training.data.synthetic_faces import SyntheticFaces

SETS = {**BUILDERS, "synthetic_faces": SyntheticFaces}
# An allowlist: a new column of a licensed data set is not published until it is added here.
ANNOTATIONS = ("clip_id", "label", "labels", "scene", "fold", "num_frames")
CAPTIONS = ("caption", "caption_zh")
MEDIA = ("video", "frames")
BYTES_PER_FILE = 500 * 2**20
TEMPLATE = Path(__file__).resolve().parents[2] / "hub_cards" / "dataset.md"


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=SETS)
    parser.add_argument("data_dir", nargs="?", help="its folder; synthetic_faces has none")
    parser.add_argument("--repo", required=True, metavar="ORG/NAME", help="made if it does not exist")
    parser.add_argument("--config", nargs="+", metavar="NAME", help="as fold1; default: all that are found")
    visibility = parser.add_mutually_exclusive_group()
    visibility.add_argument("--private", action="store_true", default=None, help="default, but for synthetic_faces")
    visibility.add_argument("--public", action="store_false", dest="private", help="anybody may read it")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="only write the repository, push nothing")
    parser.add_argument("--with-captions", action="store_true", help="also a licensed set's captions (MAFW)")
    parser.add_argument("--with-videos", action="store_true", help="own: the files too, with all that is in them")
    parser.add_argument("--license", metavar="ID", help="own: as the Hub spells it; default: all rights reserved")
    parser.add_argument("--options", default="{}", metavar="YAML", help="of the builder, as '{num_train: 100}'")
    options = parser.parse_intermixed_args(arguments)
    try:
        check_options(options)
        print(publish(options))
    except (OSError, ValueError, yaml.YAMLError, httpx.HTTPError, datasets.exceptions.DatasetsError) as error:
        text = str(error.__cause__ if isinstance(error, datasets.exceptions.DatasetsError) else error)
        parser.error(text if isinstance(error, ValueError) else " ".join(text.split()))  # Hub errors have paragraphs


def check_options(options: argparse.Namespace):
    """Checks the options and fills in the defaults for the data set; raises `ValueError` if they contradict it."""
    own, rendered = options.dataset == "own", options.dataset == "synthetic_faces"
    options.is_licensed = not own and not rendered
    options.options = yaml.safe_load(options.options)
    if not isinstance(options.options, dict):
        raise ValueError(f"--options is {options.options!r}, but must be like '{{num_train: 100}}'")
    if options.repo.count("/") != 1:
        raise ValueError(f"--repo is {options.repo!r}, but must be ORG/NAME")
    if rendered and options.data_dir:
        raise ValueError("synthetic_faces is rendered and has no data_dir")
    if options.with_videos and options.is_licensed:
        raise ValueError(f"--with-videos: by the agreement of {options.dataset} its videos must not be passed on")
    if options.license and not own:
        raise ValueError(f"--license: that of {options.dataset} is for its authors to choose")
    if options.output and options.output.exists():
        raise ValueError(f"--output: {options.output} exists; choose a new folder")
    options.with_videos |= rendered
    options.private = not rendered if options.private is None else options.private


def publish(options: argparse.Namespace) -> str:
    """Builds, writes and, without `--output`, uploads the repository; returns a one-line summary."""
    if not options.output:
        check_repository(options.repo, options.private)
    builders = prepare(options)
    content = f"{', '.join(builders)} ({'whole' if options.with_videos else 'annotations only'})"
    # In the parent folder of the output, so that the move is atomic and an existing output is always complete.
    parent = options.output and options.output.absolute().parent
    with tempfile.TemporaryDirectory(prefix="publish.unfinished.", dir=parent) as unfinished:
        folder = Path(unfinished) / "repository"
        infos = {name: write_rows(builder, options, folder / name) for name, builder in builders.items()}
        write_card(folder / "README.md", builders, infos, options)
        if options.output:
            shutil.move(folder, options.output)
            return f"wrote {options.output}: {content}"
        return f"published {upload(folder, options, f'Publish {content}')}: {content}"


def check_repository(repo: str, private: bool):
    """Checks login and visibility before the long work; `create_repo(private=True)` keeps a public repo public."""
    HfApi().whoami()
    try:
        if private and not HfApi().repo_info(repo, repo_type="dataset").private:
            raise ValueError(f"{repo} exists and is public; make it private, choose another, or say --public")
    except RepositoryNotFoundError:
        pass  # `upload` creates it


def prepare(options: argparse.Namespace) -> dict[str, datasets.DatasetBuilder]:
    """Returns configuration -> prepared builder; without `--config`, skips configurations whose lists are missing."""
    builder_class, builders, missing, names = SETS[options.dataset], {}, {}, {}
    for config in builder_class.BUILDER_CONFIGS:  # without aliases: MAFW's fold1 is also called single_fold1
        names.setdefault(repr(vars(config) | {"name": ""}), config.name)
    fields = options.options | ({"data_dir": options.data_dir} if options.data_dir else {})
    processes = os.cpu_count() if builder_class is SyntheticFaces else None  # rendering is slow, reading lists is not
    for name in options.config or names.values():
        try:
            builder = builder_class(config_name=name, **fields)
            builder.download_and_prepare(num_proc=processes)
            builders[name] = builder
        except FileNotFoundError as error:
            missing[name] = error
    if missing and (options.config or not builders):
        raise next(iter(missing.values()))
    for name, error in missing.items():
        print(f"left out {name}: {str(error).split(';')[0]}", file=sys.stderr)
    return builders


def published_columns(features: datasets.Features, options: argparse.Namespace) -> list[str]:
    """Returns the columns to publish."""
    if options.with_captions and not set(CAPTIONS) & set(features):
        raise ValueError(f"--with-captions: {options.dataset} has no captions")
    if options.with_videos and "frames" in features:
        raise ValueError("--with-videos: these clips are folders of images, and only video files can be published")
    if options.is_licensed:
        return [name for name in ANNOTATIONS + CAPTIONS * options.with_captions if name in features]
    return [name for name in features if options.with_videos or name not in MEDIA]


def write_rows(builder, options: argparse.Namespace, folder: Path) -> datasets.DatasetInfo:
    """Writes the rows of a configuration to `SPLIT-00000-of-00001.parquet` files; returns splits and features."""
    columns = published_columns(builder.info.features, options)
    info = datasets.DatasetInfo(splits=datasets.SplitDict())
    folder.mkdir(parents=True)
    for split in builder.info.splits:
        check_no_local_path(builder.as_dataset(split), columns, builder.config.data_dir)
        rows = builder.as_dataset(split).select_columns(columns)
        size = sum(os.path.getsize(video["path"]) for video in rows["video"]) if "video" in columns else 0
        num_files, num_bytes = min(size // BYTES_PER_FILE + 1, len(rows)), 0
        for number in range(num_files):
            part = rows.shard(num_files, number)
            if "video" in columns:
                # In memory: a cached result would contain the bytes that a file had at the previous publication.
                part = part.map(embed_video, features=rows.features, keep_in_memory=True)
            num_bytes += part.to_parquet(folder / f"{split}-{number:05d}-of-{num_files:05d}.parquet")
        info.splits.add(datasets.SplitInfo(split, num_bytes=num_bytes, num_examples=len(rows)))
        info.features = rows.features
    return info


def embed_video(row: dict) -> dict:
    """Replaces the path of a video by its bytes and file name."""
    path = Path(row["video"]["path"])
    return {"video": {"bytes": path.read_bytes(), "path": path.name}}


def check_no_local_path(rows: datasets.Dataset, columns: list[str], data_dir: str | None):
    """Raises `ValueError` if any text contains a local path, as the user's own metadata may in any column."""
    media = [m["path"] if name == "video" else m for name in MEDIA if name in rows.features for m in rows[name]]
    # An id derived from an absolute path has no leading slash.
    folders = ("/", *{os.path.dirname(path).strip("/") + "/" for path in media})
    root = re.escape(os.path.abspath(os.path.expanduser(data_dir or os.curdir)))
    for name in columns:
        for text in filter(None, rows[name] if rows.features[name] == datasets.Value("string") else ()):
            if text.startswith(folders) or re.search(rf"(?<![\w.-]){root}(?![\w.-])", text):
                raise ValueError(f"{name} {text!r} is a path of this machine; change it before you publish")


def write_card(path: Path, builders: dict, infos: dict[str, datasets.DatasetInfo], options: argparse.Namespace):
    """Writes the dataset card from the template; its YAML header tells `load_dataset` where the files are."""
    builder = next(iter(builders.values()))
    name = options.repo.split("/")[1] if options.dataset == "own" else type(builder).__name__
    card_data = DatasetCardData(
        **license_fields(builder, options),
        pretty_name=name if options.with_videos else f"{name}, annotations",
        task_categories=["video-classification"],
        tags=["facial-expression-recognition", "emotion-recognition"],
        configs=[
            # The hyphen prevents `test` from also matching `test_imbalanced`.
            {"config_name": config, "data_files": [{"split": s, "path": f"{config}/{s}-*"} for s in info.splits]}
            for config, info in infos.items()
        ],
    )
    card_data.configs[0]["default"] = True
    DatasetInfosDict(infos).to_dataset_card_data(card_data)
    environment = {"undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    template = jinja2.Template(TEMPLATE.read_text(encoding="utf-8"), **environment)
    columns = list(dict.fromkeys(column for info in infos.values() for column in info.features))
    values = {"name": name, "builder": builder, "builder_class": type(builder), "options": options, "infos": infos}
    tables = count_tables(builders)
    DatasetCard(template.render(card_data=card_data.to_yaml(), columns=columns, tables=tables, **values)).save(path)


def license_fields(builder: datasets.DatasetBuilder, options: argparse.Namespace) -> dict:
    """Returns the licence fields of the card's header, with the Hub's licence identifiers."""
    if options.is_licensed:
        name = f"{type(builder).__name__.lower()}-agreement"
        return {"license": "other", "license_name": name, "license_link": builder.info.homepage}
    if options.dataset == "own" and not options.license:
        return {"license": "other", "license_name": "all-rights-reserved"}
    return {"license": options.license or builder.info.license.lower()}


def count_tables(builders: dict[str, datasets.DatasetBuilder]) -> dict[tuple[str, ...], list[dict]]:
    """Returns label names -> table columns, one for each split of the configurations with these labels."""
    tables = {}
    for config, builder in builders.items():
        labels = tuple(builder.info.features["label"].names) if "label" in builder.info.features else ()
        for split, info in builder.info.splits.items():
            found = Counter(builder.as_dataset(split)["label"]) if labels else {}
            counts = [found[number] for number in range(len(labels))]
            official = getattr(builder, "SIZES", {}).get(config, {}).get(split)
            column = {"name": f"{config} {split}", "counts": counts, "all": info.num_examples, "official": official}
            tables.setdefault(labels, []).append(column)
    return tables


def upload(folder: Path, options: argparse.Namespace, message: str) -> str:
    """Uploads the folder in one commit that replaces the parquet files and card; returns the URL."""
    repository = {"repo_id": options.repo, "repo_type": "dataset"}
    url = HfApi().create_repo(**repository, private=options.private, exist_ok=True)
    try:
        HfApi().upload_folder(**repository, folder_path=folder, commit_message=message, delete_patterns="*.parquet")
    except (OSError, ValueError, RuntimeError, httpx.HTTPError) as error:
        reason = (isinstance(error, RuntimeError) and error.__cause__) or error  # a RuntimeError only names the file
        raise OSError(f"the upload failed, and no part of it is published at {url}: {reason}") from error
    return f"{url}{' (private)' if options.private else ''}"


if __name__ == "__main__":
    main(sys.argv[1:])
