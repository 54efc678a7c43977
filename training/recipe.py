# SPDX-License-Identifier: Apache-2.0
"""A recipe is one experiment: strict dataclasses from YAML files that extend each other, overridden by `a.b=c`."""

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
    """Which model, and from which weights."""

    architecture: str = "EmoCLIPModel"
    """A class of `modeling_emoclip`."""
    init: str | None = None
    """A CLIP checkpoint, folder or Hub id, that fills the towers; null starts from random weights."""
    config: dict = field(default_factory=dict)
    """Fields of EmoCLIPConfig that differ from the CLIP checkpoint's, or from the defaults without one."""
    tokenizer_vocab_size: int | None = None
    """Without `init`: a byte-pair vocabulary of this size is trained on the training texts."""
    video_processor: dict = field(default_factory=dict)
    """Fields of EmoCLIPVideoProcessor, as num_frames and frame_sampling; they travel with the checkpoint."""
    lora: dict | None = None
    """Fields of peft.LoraConfig, as {r: 8, target_modules: [q_proj, v_proj]}: low-rank adapters learn inside frozen
    towers; they are merged into the weights that are saved. `optim.learning_rates` sees parameters `...lora_...`."""
    component_loss_until: float = 0.0
    """Share of the steps during which naming the facial components helps the towers to start (component_loss.py);
    0 is off. Only for data with a `components` column."""


@strict
@dataclass
class DataSource:
    """A data set as its builder makes it."""

    builder: str
    """`module.Class` of a `datasets` builder in training/data."""
    config_name: str | None = None
    data_dir: str | None = None
    options: dict = field(default_factory=dict)


@strict
@dataclass
class EvaluationSet:
    """Clips, and what is predicted for them."""

    split: str = "test"
    data: DataSource | None = None
    """Another data set than training's: transfer."""
    candidate_labels: list[str] | None = None
    """Labels that compete; null: all labels of the data set. In zero-shot classification each stands for its texts."""
    only_labels: list[str] | None = None
    """Only clips with these labels; null: clips with any of the candidate labels."""
    texts: Literal["descriptions", "first_description", "description", "class_name", "photo", "expression"] = (
        "descriptions"
    )
    """What stands for a label in zero-shot classification: the mean of all its descriptions, or the first of them; a
    compound `a_b` of labels a and b is the mean of its parts. The others are one text as in `data.text`, which names
    all the parts."""
    own_captions: bool = False
    """Instead of labels, the captions of all clips compete: does each clip find its own, and each caption its clip?"""
    contrast_captions: bool = False
    """Instead of labels, each clip's own caption competes with its `contrast_caption`."""

    def validate_only_labels(self):
        """Part of `@strict`."""
        if self.candidate_labels and (outside := sorted(set(self.only_labels or ()) - set(self.candidate_labels))):
            raise ValueError(
                f"only_labels names {', '.join(outside)}, which is not among the candidate_labels "
                f"{self.candidate_labels}"
            )


@strict
@dataclass
class Augmentation:
    """What happens to the pixels of a training clip, the same to all its frames; 0 is nothing."""

    flip: float = 0.0
    """Probability of a left-right flip."""
    rotation: float = 0.0
    """Degrees, up to this much either way."""
    brightness: float = 0.0
    """Factor between 1 - this and 1 + this."""
    shift: float = 0.0
    """Share of the side, up to this much in each direction."""
    crop: float = 0.0
    """A random part of the picture is enlarged: between 1 - this and all of its area."""


@strict
@dataclass
class DataRecipe:
    """Where clips and texts come from."""

    builder: str = "synthetic_faces.SyntheticFaces"
    """`module.Class` of a `datasets` builder in training/data."""
    config_name: str | None = None
    data_dir: str | None = None
    """Folder of a licensed data set."""
    cache_dir: str | None = None
    """Where prepared data sets and encoded frames are kept; null: the `datasets` cache."""
    options: dict = field(default_factory=dict)
    """Further fields of the builder's configuration."""
    train_split: str = "train"
    validation_split: str | None = "validation"
    validation_share: float = 0.0
    """Without `validation_split`: this share of the training clips is cut off to choose the epoch on; 0 is none."""
    validation_group: str | None = None
    """Column whose values, as persons, must not be on both sides of that cut."""
    text: Literal["caption", "description", "class_name", "photo", "expression"] = "caption"
    """What a clip is trained against: its own caption, or its class's text (data/views.py)."""
    targets: list[str] = field(default_factory=list)
    """Columns that a regression predicts."""
    leave_out: str | None = None
    """Training sees no clip of this class, evaluation no other."""
    class_balanced: bool = False
    """Draw clips so that every class is equally likely."""
    on_error: Literal["raise", "skip"] = "raise"
    """What happens to a clip that cannot be decoded."""
    frame_sampling: str | None = None
    """How training picks frames, if not as the video processor does in evaluation, as segment_random."""
    short_clips: Literal["repeat", "mask", "zeros"] = "repeat"
    """Clips with fewer frames than are wanted, if their frames are encoded already: frames repeat evenly; or what is
    missing is padding, hidden by a mask, or zeros that count as frames, as the released EmoCLIP's."""
    shortest: int | None = None
    """Clips are cut to their first frames, at least so many, the number drawn by row: makes clips of unequal length
    where a data set has none, to try `short_clips`."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """For training from pixels; of frozen towers' frames `augmented_views` are encoded."""
    encode_every: int = 1
    """With a frozen image tower: only every k-th frame is encoded, and frame_sampling picks among those."""
    augmented_views: int = 0
    """With a frozen image tower: so many augmented versions of each clip are encoded beside the plain one, and
    training draws among them."""
    class_descriptions: str = "class_descriptions.yaml"
    """File of label -> texts, beside training/data or a path of one's own."""
    evaluation: dict = field(default_factory=dict)
    """name -> EvaluationSet; all are scored before the first and after the last step."""
    evaluate_what_there_is: bool = False
    """Without `evaluation`: score the test split, or where there is none the clips that the epoch is chosen on, by all
    that is known of them: labels, captions, or the targets of a regression."""


@strict
@dataclass
class OptimRecipe:
    """How the weights move."""

    epochs: int = 1
    batch_size: int = 64
    learning_rates: dict = field(default_factory=dict)
    """Ordered regular expression -> learning rate, or null for frozen; every parameter must match one."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    momentum: float = 0.9
    weight_decay: float = 0.0
    decay_all: bool = False
    """Decay also norms, biases and the scale, as both papers' code does; otherwise only matrices."""
    schedule: str = "constant"
    """`milestones`, or a name that transformers.get_scheduler knows, as cosine."""
    milestones: list[int] = field(default_factory=list)
    """Epochs after which every learning rate is multiplied by 0.1."""
    warmup: float = 0.0
    """Share of the steps over which the learning rates rise."""
    max_grad_norm: float | None = None
    chunk_size: int | None = None
    """So many clips at once go through the model in each process; the contrastive loss still sees the whole batch
    (gradient_cache.py). For batches that do not fit in memory."""
    ema: float | None = None
    """Decay of an exponential moving average of the weights, as 0.999; the average is evaluated and kept."""


@strict
@dataclass
class RunRecipe:
    """What stays on this machine."""

    output_dir: str = "outputs/run"
    seed: int = 0
    resume: bool = False
    """Go on from the last checkpoint of the same recipe in output_dir."""
    select_on: Literal["validation_loss", "last", "test_war", "test_uar"] = "validation_loss"
    """Which epoch's weights are kept: the one with the smallest loss on the validation split; the last; or, only to
    match papers that did so, the one that scores best on the first evaluation set, which is then no fair test."""
    patience: int | None = None
    """Stop after so many epochs without a better one."""
    checkpoint_every: int | None = None
    """Steps between checkpoints within an epoch; null: at the end of each epoch only."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    compile: bool = False
    """torch.compile the model."""
    evaluate_start: bool = True
    """Score the evaluation sets before the first step too."""
    pictures: bool = True
    """Draw confusion matrices and learning curves."""
    trackers: list[str] = field(default_factory=list)
    """Of accelerate: tensorboard, trackio, wandb; each must be installed."""
    push_to_hub: str | None = None
    """`org/name`: checkpoints are pushed there while training goes on, and the result at the end."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    num_workers: int = 0
    """Processes that decode clips while the model works."""
    num_render_processes: int | None = None
    """Processes that prepare a data set; null: one for each core."""


@strict
@dataclass
class Recipe:
    title: str = ""
    reference: dict = field(default_factory=dict)
    """What the paper reports for this row, in percent, and where: {uar: 58.04, war: 62.12, source: "table 2"}."""
    model: ModelRecipe = field(default_factory=ModelRecipe)
    data: DataRecipe = field(default_factory=DataRecipe)
    optim: OptimRecipe = field(default_factory=OptimRecipe)
    run: RunRecipe = field(default_factory=RunRecipe)

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)


class _Loader(yaml.SafeLoader):
    pass


# PyYAML follows YAML 1.1, where `1e-3` is a string.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*(\.[\d_]*)?([eE][-+]?\d+)|\d[\d_]*\.[\d_]*|\.\d+([eE][-+]?\d+)?)$"),
    list("-+0123456789."),
)


def load_recipe(path: str | Path, overrides: list[str] = ()) -> Recipe:
    """Reads a recipe, the recipes it extends, and `a.b=c` overrides, where c is YAML.

    A value that starts with `./` or `../` is a path: in a file relative to that file, in an override to where you are.

    Raises:
        FileNotFoundError: `path`, or a recipe that it extends, does not exist.
        ValueError: an unknown field or a value of the wrong type; the message names the field.
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
    """`a.b` -> value, as trackers take it."""

    def flatten(value, prefix=""):
        if isinstance(value, dict) and value:
            for name, inner in value.items():
                yield from flatten(inner, f"{prefix}.{name}" if prefix else str(name))
        else:
            yield prefix, value if isinstance(value, (int, float, str, bool)) else json.dumps(value)

    return dict(flatten(recipe.to_dict()))


def dump_recipe(recipe: Recipe, folder: Path) -> str:
    """YAML for a file in `folder`, which `load_recipe` reads back to the same recipe.

    Absolute paths become relative to `folder`: recipes are published, and a machine's folders are nobody's business.
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
    for base in [bases] if isinstance(bases, str) else bases:  # of several, as a method and a data set, later ones win
        merged = _merge(merged, _read(path.parent / base) | {"reference": {}})  # a paper's number is of one row alone
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
    """`override` over `base`; mappings are merged, except ordered learning rates, where the first match wins."""
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
    # YAML writes 1 for 1.0.
    as_float = {
        name: float(value)
        for name, value in values.items()
        if type(value) is int and fields[name] in (float, float | None)
    }
    try:
        return cls(**(values | nested | as_float))
    except Exception as error:  # huggingface_hub raises several classes, whose messages name the field
        raise ValueError(f"recipe {prefix or 'recipe'}: {error}") from None
