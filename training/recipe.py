# SPDX-License-Identifier: Apache-2.0
"""Recipes of experiments: strict dataclasses read from YAML files with inheritance and `a.b=c` overrides."""

import dataclasses
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from huggingface_hub.dataclasses import strict


@strict
@dataclass
class ModelRecipe:
    """Model and initial weights."""

    architecture: str = "EmoCLIPModel"
    """A class of `modeling_emoclip`."""
    init: str | None = None
    """Checkpoint that initializes the towers, a folder or Hub id; null starts from random weights."""
    config: dict = field(default_factory=dict)
    """Fields of EmoCLIPConfig that differ from the CLIP checkpoint's or, without one, from the defaults."""
    tokenizer_vocab_size: int | None = None
    """Size of the byte-pair vocabulary trained on the training texts; only without `init`."""
    video_processor: dict = field(default_factory=dict)
    """Fields of EmoCLIPVideoProcessor, such as num_frames and frame_sampling; saved with the checkpoint."""
    lora: dict | None = None
    """Fields of peft.LoraConfig, such as {r: 8, target_modules: [q_proj, v_proj]}: trains low-rank adapters in frozen
    towers and merges them into the saved weights. Their names for `optim.learning_rates` contain `lora_`."""
    component_loss_until: float = 0.0
    """Share of the steps with an auxiliary loss on the facial components (component_loss.py); 0 is off. Only for data
    with a `components` column."""


@strict
@dataclass
class DataSource:
    """Data set and its builder's options."""

    builder: str
    """`module.Class` of a `datasets` builder in training/data."""
    config_name: str | None = None
    data_dir: str | None = None
    options: dict = field(default_factory=dict)


@strict
@dataclass
class EvaluationSet:
    """Evaluation clips and the prediction task."""

    split: str = "test"
    data: DataSource | None = None
    """Data set, if not the training one: transfer."""
    candidate_labels: list[str] | None = None
    """Labels that the model chooses from; null: all labels of the data set. Zero-shot models score their texts."""
    only_labels: list[str] | None = None
    """Labels of the clips to evaluate; null: all candidate labels."""
    texts: Literal["descriptions", "first_description", "description", "class_name", "photo", "expression"] = (
        "descriptions"
    )
    """Representation of a label in zero-shot classification: the mean of all its descriptions, or the first one; a
    compound `a_b` of labels a and b is the mean of its parts. The other values are one text as in `data.text`, which
    names all parts."""
    own_captions: bool = False
    """Retrieval between the clips and all their captions, in both directions, instead of classification."""
    contrast_captions: bool = False
    """Choice between each clip's own caption and its `contrast_caption`, instead of classification."""

    def validate_only_labels(self):
        """Checks that `only_labels` are candidate labels; called by `@strict`."""
        if self.candidate_labels and (outside := sorted(set(self.only_labels or ()) - set(self.candidate_labels))):
            raise ValueError(
                f"only_labels names {', '.join(outside)}, which is not among the candidate_labels "
                f"{self.candidate_labels}"
            )


@strict
@dataclass
class Augmentation:
    """Augmentation of the pixels of a training clip, the same for all its frames; 0 disables an operation."""

    flip: float = 0.0
    """Probability of a horizontal flip."""
    rotation: float = 0.0
    """Maximum angle in degrees, in both directions."""
    brightness: float = 0.0
    """Range of the factor: from 1 - this to 1 + this."""
    shift: float = 0.0
    """Maximum shift in each direction, as a share of the side."""
    crop: float = 0.0
    """Random resized crop of between 1 - this and all of the frame's area."""


@strict
@dataclass
class DataRecipe:
    """Clips and texts, and how training uses them."""

    builder: str = "synthetic_faces.SyntheticFaces"
    """`module.Class` of a `datasets` builder in training/data."""
    config_name: str | None = None
    data_dir: str | None = None
    """Folder of a licensed data set."""
    cache_dir: str | None = None
    """Cache of prepared data sets and encoded frames; null: the `datasets` cache."""
    options: dict = field(default_factory=dict)
    """Other fields of the builder's configuration."""
    train_split: str = "train"
    validation_split: str | None = "validation"
    validation_share: float = 0.0
    """Share of the training clips held out for validation if `validation_split` is null; 0 is none."""
    validation_group: str | None = None
    """Column, for example of persons, whose groups are not divided between training and held-out clips."""
    text: Literal["caption", "description", "class_name", "photo", "expression"] = "caption"
    """Text that a clip is trained with: its own caption, or a text of its class (data/views.py)."""
    targets: list[str] = field(default_factory=list)
    """Target columns of a regression."""
    leave_out: str | None = None
    """Class excluded from training; evaluation uses only this class."""
    class_balanced: bool = False
    """Sample all classes with equal probability."""
    on_error: Literal["raise", "skip"] = "raise"
    """Handling of clips that cannot be decoded."""
    frame_sampling: str | None = None
    """Frame sampling in training, such as segment_random; null: as in evaluation."""
    short_clips: Literal["repeat", "mask", "zeros"] = "repeat"
    """Treatment of clips with too few frames, for precomputed frame embeddings: repeat frames evenly, pad with a mask,
    or pad with zeros that count as frames, as the released EmoCLIP does."""
    shortest: int | None = None
    """Minimum length for cutting clips to a random number of first frames, drawn per row; creates clips of unequal
    length to test `short_clips`."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """Augmentation in training from pixels; with frozen towers, of the `augmented_views`."""
    encode_every: int = 1
    """Encode only every k-th frame, for a frozen image tower; frame_sampling chooses among these."""
    augmented_views: int = 0
    """Number of augmented versions of each clip to encode in addition to the plain one, for a frozen image tower;
    training samples from all of them."""
    class_descriptions: str = "class_descriptions.yaml"
    """YAML file label -> texts: a path, or the name of a file in training/data."""
    evaluation: dict = field(default_factory=dict)
    """name -> EvaluationSet; all are evaluated before the first and after the last step."""
    evaluate_what_there_is: bool = False
    """Without `evaluation`: evaluate the test split or, if there is none, the validation clips, on all that they have:
    labels, captions, or the targets of a regression."""


@strict
@dataclass
class OptimRecipe:
    """Optimizer, learning rates and batches."""

    epochs: int = 1
    batch_size: int = 64
    learning_rates: dict = field(default_factory=dict)
    """Regular expression -> learning rate, or null to freeze; the first match applies, every parameter needs one."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    momentum: float = 0.9
    weight_decay: float = 0.0
    decay_all: bool = False
    """Apply weight decay to norms, biases and the scale too, as both papers' code does, not only to matrices."""
    schedule: str = "constant"
    """`milestones`, or a name for transformers.get_scheduler, such as cosine."""
    milestones: list[int] = field(default_factory=list)
    """Epochs after which every learning rate is multiplied by 0.1."""
    warmup: float = 0.0
    """Share of the steps used for warmup."""
    max_grad_norm: float | None = None
    chunk_size: int | None = None
    """Maximum number of clips per forward pass in each process, for batches that do not fit in memory; the contrastive
    loss still uses the whole batch (gradient_cache.py)."""
    ema: float | None = None
    """Decay of an exponential moving average of the weights, such as 0.999; the average is evaluated and saved."""


@strict
@dataclass
class RunRecipe:
    """Output, checkpoints and local settings."""

    output_dir: str = "outputs/run"
    seed: int = 0
    resume: bool = False
    """Continue from the last checkpoint of the same recipe in output_dir."""
    select_on: Literal["validation_loss", "last", "test_war", "test_uar"] = "validation_loss"
    """Criterion for the epoch to keep: the lowest validation loss; the last epoch; or, only to match papers that did
    so, the best score on the first evaluation set, whose final score is then biased."""
    patience: int | None = None
    """Number of epochs without improvement after which training stops."""
    checkpoint_every: int | None = None
    """Steps between checkpoints within an epoch; null: at the end of each epoch only."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: saves memory, takes about a third more time."""
    compile: bool = False
    """Apply torch.compile to the model."""
    evaluate_start: bool = True
    """Evaluate before the first step too."""
    pictures: bool = True
    """Draw confusion matrices and learning curves."""
    trackers: list[str] = field(default_factory=list)
    """Trackers of accelerate: tensorboard, trackio, wandb; each must be installed."""
    push_to_hub: str | None = None
    """`org/name` of a Hub repository for checkpoints during training and the result at the end."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    num_workers: int = 0
    """Number of processes that decode clips."""
    num_render_processes: int | None = None
    """Number of processes that prepare a data set; null: one per core."""


@strict
@dataclass
class Recipe:
    title: str = ""
    reference: dict = field(default_factory=dict)
    """Published scores in percent, and their source: {uar: 58.04, war: 62.12, source: "table 2"}."""
    model: ModelRecipe = field(default_factory=ModelRecipe)
    data: DataRecipe = field(default_factory=DataRecipe)
    optim: OptimRecipe = field(default_factory=OptimRecipe)
    run: RunRecipe = field(default_factory=RunRecipe)

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)


class _Loader(yaml.SafeLoader):
    pass


# PyYAML implements YAML 1.1, where `1e-3` is a string.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*(\.[\d_]*)?([eE][-+]?\d+)|\d[\d_]*\.[\d_]*|\.\d+([eE][-+]?\d+)?)$"),
    list("-+0123456789."),
)


def load_recipe(path: str | Path, overrides: list[str] = ()) -> Recipe:
    """Reads a recipe, the recipes it extends, and `a.b=c` overrides, where c is YAML.

    Values that start with `./` or `../` are paths, relative to their file or, in overrides, to the current folder.

    Raises:
        FileNotFoundError: `path`, or a recipe that it extends, does not exist.
        ValueError: a field is unknown or has a value of the wrong type; the message names the field.
    """
    values = _read(Path(path))
    for override in overrides:
        dotted, separator, text = override.partition("=")
        if not separator:
            raise ValueError(f"override {override!r} is not of the form a.b=value")
        nested: Any = _resolve_paths(_parse(text, f"override {override!r}"), Path.cwd())
        for name in reversed(dotted.split(".")):
            nested = {name: nested}
        values = _merge(values, nested)
    return _strict(Recipe, values, prefix="")


def flat_fields(recipe: Recipe) -> dict[str, int | float | str | bool]:
    """Flattens a recipe to `a.b` -> value, in the types that trackers accept."""

    def flatten(value, prefix=""):
        if isinstance(value, dict) and value:
            for name, inner in value.items():
                yield from flatten(inner, f"{prefix}.{name}" if prefix else str(name))
        else:
            yield prefix, value if isinstance(value, (int, float, str, bool)) else json.dumps(value)

    return dict(flatten(recipe.to_dict()))


def dump_recipe(recipe: Recipe, folder: Path) -> str:
    """Serializes a recipe to YAML for a file in `folder`, from which `load_recipe` restores the same recipe.

    Absolute paths become relative to `folder`, since published recipes must not reveal local folders.
    """

    def relative(value):
        if isinstance(value, dict):
            return {key: relative(inner) for key, inner in value.items()}
        if isinstance(value, str) and os.path.isabs(value):
            return os.path.join(".", os.path.relpath(value, folder.resolve()))
        return value

    return yaml.safe_dump(relative(recipe.to_dict()), sort_keys=False, allow_unicode=True)


def _read(path: Path) -> dict:
    if not path.is_file():
        raise FileNotFoundError(f"recipe {path} does not exist")
    values = _parse(path.read_text(encoding="utf-8"), f"recipe {path}") or {}
    if not isinstance(values, dict):
        raise ValueError(f"recipe {path} must be a mapping of fields, but is a {type(values).__name__}")
    values = _resolve_paths(values, path.parent)
    bases = values.pop("extends", None) or []
    merged: dict = {}
    for base in [bases] if isinstance(bases, str) else bases:  # later ones take precedence
        merged = _merge(merged, _read(path.parent / base) | {"reference": {}})  # scores belong to one recipe only
    return _merge(merged, values)


def _parse(text: str, name: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{name} is not valid YAML: {error}") from None


def _resolve_paths(value, folder: Path):
    if isinstance(value, dict):
        return {key: _resolve_paths(inner, folder) for key, inner in value.items()}
    if isinstance(value, str) and value.startswith(("./", "../")):
        return str((folder / value).resolve())
    return value


def _merge(base: dict, override: dict) -> dict:
    """Merges `override` into `base` recursively, except for learning rates, whose order matters."""
    merged = dict(base)
    for key, value in override.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merge(base[key], value) if both and key != "learning_rates" else value
    return merged


def _strict(cls: type, values: Any, prefix: str):
    if not isinstance(values, dict):
        raise ValueError(f"recipe field {prefix or 'recipe'} is {values!r}, but must be a mapping")
    fields = {f.name: f.type for f in dataclasses.fields(cls)}
    for name in values:
        if name not in fields:
            raise ValueError(f"unknown recipe field {prefix}{name}; allowed here: {', '.join(fields)}")
    nested = {
        name: _strict(fields[name], value, f"{prefix}{name}.")
        for name, value in values.items()
        if dataclasses.is_dataclass(fields[name])
    }
    if cls is DataRecipe:
        nested["evaluation"] = {
            name: _strict(EvaluationSet, value, f"{prefix}evaluation.{name}.")
            for name, value in values.get("evaluation", {}).items()
        }
    if cls is EvaluationSet and values.get("data") is not None:
        nested["data"] = _strict(DataSource, values["data"], f"{prefix}data.")
    # YAML reads 1 as an int, where 1.0 is meant.
    as_float = {
        name: float(value)
        for name, value in values.items()
        if type(value) is int and fields[name] in (float, float | None)
    }
    try:
        return cls(**(values | nested | as_float))
    except Exception as error:  # huggingface_hub raises several classes; their messages name the field
        raise ValueError(f"recipe {prefix or 'recipe'}: {error}") from None
