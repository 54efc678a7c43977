# SPDX-License-Identifier: Apache-2.0
"""Operations of the papers on data set rows: clip texts, leave-one-class-out, validation split, class balance."""

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from fractions import Fraction

import datasets
import numpy as np
import torch
from sklearn.model_selection import KFold, StratifiedGroupKFold, StratifiedKFold
from transformers.utils import logging

logger = logging.get_logger(__name__)
# DFER-CLIP's ablation compares these with descriptions of facial behaviour.
TEMPLATES = {"class_name": "{}", "photo": "a photo of {}.", "expression": "an expression of {}."}
TEXT_KINDS = ("caption", "description", *TEMPLATES)


def compound_parts(
    label: str, labels: Collection[str], class_descriptions: Mapping[str, Sequence[str]] | None
) -> list[str]:
    """Splits a compound label such as MAFW's `fear_sadness` into its parts; returns other labels unchanged, in a list.

    A label is a compound only if it has no description of its own, and each part is a label or has a description. In
    `about_to_cry`, for example, the underscores stand for blanks.
    """
    descriptions, parts = class_descriptions or {}, label.split("_")
    is_compound = label not in descriptions and all(part in labels or part in descriptions for part in parts)
    return parts if is_compound else [label]


def class_text(
    label: str, kind: str, class_descriptions: Mapping[str, Sequence[str]] | None, labels: Collection[str] = ()
) -> str:
    """Returns the text that represents a class in training.

    Args:
        label: class name; for a compound, the texts of all parts are joined.
        kind: "description" for the first description of the class, or a key of `TEMPLATES`.
        class_descriptions: label -> texts.
        labels: labels of the data set, see `compound_parts`.

    Raises:
        ValueError: a label without description, or an unknown kind.
    """
    parts = compound_parts(label, labels, class_descriptions)
    if kind in TEMPLATES:
        return TEMPLATES[kind].format(" and ".join(part.replace("_", " ") for part in parts))
    if kind != "description":
        raise ValueError(f"the kind of text is {kind!r}, but must be one of {', '.join(TEXT_KINDS)}")
    class_descriptions = class_descriptions or {}
    if missing := [part for part in parts if part not in class_descriptions]:
        raise ValueError(f"class_descriptions has no text for {missing}; it has {', '.join(class_descriptions)}")
    return ", ".join(class_descriptions[part][0] for part in parts)


def clip_texts(rows: datasets.Dataset, kind: str, class_descriptions: Mapping[str, Sequence[str]]) -> list[str]:
    """Returns a text for each clip: its caption (EmoCLIP's sample-level training) or its class text (class-level).

    Raises:
        ValueError: the rows have no captions, or some are empty; the message names the first such clip.
    """
    if kind != "caption":
        names = rows.features["label"].names
        text_of = [class_text(name, kind, class_descriptions, names) for name in names]
        return [text_of[label] for label in rows["label"]]
    if "caption" not in rows.column_names:
        raise ValueError(_no_captions(rows))
    captions = list(rows["caption"])
    for number, caption in enumerate(captions):
        if not caption:
            clip = rows[number].get("clip_id", number)
            raise ValueError(f"data.text is 'caption', but clip {clip!r} has an empty one")
    return captions


def _no_captions(rows: datasets.Dataset) -> str:
    advice = "To train on a text of each label: data.text=description, class_name, photo or expression"
    if "label" not in rows.column_names:
        advice = "To predict columns of numbers: recipes/emoclip_symptoms.yaml with data.targets=[COLUMN]"
    columns = ", ".join(rows.column_names)
    return f"data.text is 'caption', but the clips have none; their columns are {columns}. {advice}"


def with_captions(rows: datasets.Dataset, title: str) -> datasets.Dataset:
    """Selects the rows that have a caption; warns about the number of others, such as MAFW's neutral clips.

    Raises:
        ValueError: no row has a caption.
    """
    if "caption" not in rows.column_names:
        raise ValueError(_no_captions(rows))
    kept = [number for number, caption in enumerate(rows["caption"]) if caption and caption.strip()]
    if len(kept) == len(rows):
        return rows
    if not kept:
        raise ValueError(f"data.text is 'caption', but not one of the {len(rows):,} clips of {title} has one")
    logger.warning(f"{title}: {len(rows) - len(kept):,} of {len(rows):,} clips have no caption and are left out")
    return rows.select(kept)


def leave_class_out(
    rows: dict[str, datasets.Dataset], label: str, learned: Sequence[str]
) -> dict[str, datasets.Dataset]:
    """Applies EmoCLIP's leave-one-class-out: removes the class from splits in `learned`, and all others elsewhere.

    Raises:
        ValueError: no such class.
    """
    names = next(iter(rows.values())).features["label"].names
    if label not in names:
        raise ValueError(f"the class to leave out is {label!r}, but must be one of {', '.join(names)}")
    number = names.index(label)
    return {
        split: part.select(np.flatnonzero((np.array(part["label"]) == number) != (split in learned)))
        for split, part in rows.items()
    }


def cut_validation(
    rows: datasets.Dataset, share: float, seed: int, group: str | None = None
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Splits training rows into (rows to train on, rows to select the epoch on) with the same class shares.

    Args:
        rows: stratified by the `label` column if there is one.
        share: approximate share of validation rows, above 0 and at most 0.5.
        seed: seed of the random split, which makes it reproducible.
        group: name of a column, e.g. of persons; no group is on both sides.

    Raises:
        ValueError: a share out of range, or fewer clips or groups than it needs.
    """
    if not 0 < share <= 0.5:
        raise ValueError(f"the validation share is {share}, but must be above 0 and at most 0.5")
    labels = np.array(rows["label"]) if "label" in rows.column_names else np.zeros(len(rows))
    groups = np.array(rows[group]) if group else None
    num_groups = len(rows) if groups is None else len(np.unique(groups))
    # The closest fraction: the rows are split into num_parts equal parts, of which `taken` are for validation.
    nearest = Fraction(share).limit_denominator(min(20, max(2, num_groups)))
    taken, num_parts = nearest.numerator, nearest.denominator
    if taken == 0 or num_groups < num_parts:
        raise ValueError(
            f"a validation share of {share} needs at least {round(1 / share)} different {group or 'clips'}, but there "
            f"are {num_groups}"
        )
    if group:
        splitter = StratifiedGroupKFold(num_parts, shuffle=True, random_state=seed)
    elif np.unique(labels, return_counts=True)[1].max() < num_parts:  # no class has a clip for each part
        splitter = KFold(num_parts, shuffle=True, random_state=seed)
    else:
        splitter = StratifiedKFold(num_parts, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)  # spread as evenly as possible
        parts = [part for _, part in splitter.split(np.zeros(len(rows)), labels, groups)]
    # At least two clips: a contrastive loss over a single clip is 0 for any weights.
    while taken < num_parts - 1 and sum(map(len, parts[:taken])) < 2:
        taken += 1
    validation = np.sort(np.concatenate(parts[:taken]))
    train = np.setdiff1d(np.arange(len(rows)), validation)
    if len(train) == 0 or len(validation) == 0:
        raise ValueError(
            f"a validation share of {share} leaves {len(train)} clips to train on and {len(validation)} out"
        )
    return rows.select(train), rows.select(validation)


class SeededSampler(torch.utils.data.Sampler):
    """Sampler of every clip once in random order, or with `labels` of as many clips, class-balanced with replacement.

    Args:
        num_clips: number of clips in the data set.
        seed: determines the order together with the epoch, identically in every process.
        labels: class of each clip `(num_clips,)`; if given, every class is drawn with equal probability.
    """

    def __init__(self, num_clips: int, seed: int, labels: Sequence[int] | None = None):
        self.num_clips, self.seed, self.epoch = num_clips, seed, 0
        self.weights = None
        if labels is not None:
            _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
            self.weights = torch.from_numpy(1 / counts[inverse])

    def __len__(self) -> int:
        return self.num_clips

    def set_epoch(self, epoch: int):
        """Sets the epoch, which changes the order."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * self.epoch)
        if self.weights is None:
            yield from torch.randperm(self.num_clips, generator=generator).tolist()
        else:
            yield from torch.multinomial(self.weights, self.num_clips, True, generator=generator).tolist()
