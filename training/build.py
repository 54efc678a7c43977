# SPDX-License-Identifier: Apache-2.0
"""Builds the model, the data and the processor of an experiment from its recipe."""

import importlib
import importlib.util
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import torch
import yaml
from torch import nn
from tqdm.auto import tqdm
from transformers import AutoConfig, CLIPTokenizer, PreTrainedModel

from emoclip import (
    EmoCLIPConfig,
    EmoCLIPForPromptClassification,
    EmoCLIPForVideoClassification,
    EmoCLIPForVideoRegression,
    EmoCLIPModel,
    EmoCLIPProcessor,
    EmoCLIPVideoProcessor,
)
from modeling_emoclip.label_scoring import TEXTS_PER_BATCH, encode_texts
from training.cache.feature_cache import Views, encode_frames, tower_fingerprint
from training.collate import Clips, Collator, media_column
from training.component_loss import WithComponentLoss
from training.data.views import SeededSampler, class_text, clip_texts, cut_validation, leave_class_out, with_captions
from training.optimizer import set_trainable
from training.recipe import DataRecipe, DataSource, EvaluationSet, Recipe

CUT = "cut from train"  # name of the validation split of data sets that have none
# In CLIPTokenizer's order of special tokens. eos must not have id 2, which transformers treats as a legacy layout.
SPECIAL_TOKENS = {"unk_token": "<|unk|>", "pad_token": "<|pad|>", "bos_token": "<|start|>", "eos_token": "<|end|>"}


@dataclass
class Experiment:
    """Model, data and processor that `train.py` trains and evaluates."""

    model: PreTrainedModel
    processor: EmoCLIPProcessor
    predicts: str
    """Model output per clip: "texts" (the best match), "labels" (scores of its classes) or "targets"."""
    trained: nn.Module
    """`model`, or a wrapper that adds to its loss; the optimizer updates this module."""
    learning_rates: dict[str, float]
    train_clips: Clips | None
    """`None` if nothing is trained, like the next two fields."""
    train_sampler: SeededSampler | None
    validation_clips: Clips | None
    evaluation_clips: dict[str, Clips]
    """Evaluation set name -> clips; sets with the same split share one object."""
    class_descriptions: dict[str, list[str]]
    collator: Collator

    def save_pretrained(self, folder: Path) -> None:
        """Saves model and processor to `folder`, with adapters merged into the base weights."""
        merge_adapters(self.model)
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)


MODELS = {
    model_class.__name__: model_class
    for model_class in (
        EmoCLIPModel,
        EmoCLIPForPromptClassification,
        EmoCLIPForVideoClassification,
        EmoCLIPForVideoRegression,
    )
}


# Fields copied from a checkpoint's configuration. Its class fields are not: they belong to its training data.
ARCHITECTURE_FIELDS = [
    name
    for name in EmoCLIPConfig.__dataclass_fields__
    if name.startswith(("temporal_", "projection_", "logit_", "vision_config", "text_config"))
]


def build(recipe: Recipe, device: torch.device, cache_dir: Path) -> Experiment:
    """Builds data, model and processor, and encodes frames and texts once if their towers are frozen."""
    data = recipe.data
    rows = load_rows(recipe)
    train_rows = rows[data.train_split]
    descriptions = load_class_descriptions(data.class_descriptions)
    predicts = _predicts(recipe)
    model, processor = build_model(recipe, train_rows, descriptions)
    if recipe.model.lora is not None:
        add_adapters(model, recipe.model.lora)
    model.to(device)
    trained: nn.Module = model
    with_components = recipe.model.component_loss_until > 0
    if with_components:
        steps = recipe.optim.epochs * (len(train_rows) // min(recipe.optim.batch_size, len(train_rows)))
        num_steps = max(1, round(steps * recipe.model.component_loss_until))
        trained = WithComponentLoss(model, len(train_rows[0]["components"]), num_steps)
    rates = set_trainable(trained, recipe.optim.learning_rates, may_freeze_all=recipe.optim.epochs == 0)
    maker = _DatasetMaker(recipe, predicts, model, processor, descriptions, cache_dir)
    train_clips = validation_clips = train_sampler = None
    if recipe.optim.epochs > 0:
        train_clips = maker.make_train_dataset(train_rows, data.train_split, augmented=True)
        balance = train_clips.rows["label"] if data.class_balanced else None
        train_sampler = SeededSampler(len(train_clips), recipe.run.seed, balance)
        if validation := validation_name(data):
            validation_clips = maker.make_train_dataset(rows[validation], validation)
    return Experiment(
        model=model,
        processor=processor,
        predicts=predicts,
        trained=trained,
        learning_rates=rates,
        train_clips=train_clips,
        train_sampler=train_sampler,
        validation_clips=validation_clips,
        evaluation_clips=_evaluation_clips(recipe, rows, maker),
        class_descriptions=descriptions,
        collator=Collator(processor, with_components),
    )


def _evaluation_clips(recipe: Recipe, rows: dict[str, datasets.Dataset], maker: "_DatasetMaker") -> dict[str, Clips]:
    made: dict[tuple, Clips] = {}
    clips = {}
    for name, evaluation_set in recipe.data.evaluation.items():
        source, split = evaluation_set.data, evaluation_set.split
        key = (split, repr(source))
        if key not in made:
            part = rows[split] if source is None else prepare_rows(source, recipe, {split})[split]
            made[key] = maker.make_eval_dataset(part, split if source is None else f"{source.builder}, {split}")
        clips[name] = made[key]
    return clips


class _DatasetMaker:
    """Factory of `Clips` from rows; the outputs of frozen towers are computed in advance."""

    def __init__(self, recipe: Recipe, predicts: str, model, processor, descriptions, cache_dir: Path):
        self.recipe, self.predicts, self.model, self.processor = recipe, predicts, model, processor
        self.descriptions, self.cache_dir = descriptions, cache_dir
        self.tower = None if _learns(model, "vision_model", "visual_projection") else tower_fingerprint(model)
        self.text_embeds: dict[str, torch.Tensor] | None = None
        if predicts == "texts" and not _learns(model, "text_model", "text_projection"):
            self.text_embeds = {}

    def make_train_dataset(self, rows: datasets.Dataset, title: str, augmented: bool = False) -> Clips:
        """Returns clips with their texts or labels; `augmented` clips differ from epoch to epoch."""
        data = self.recipe.data
        views = Views(data.augmented_views, data.augmentation) if augmented and data.augmented_views else None
        if self.predicts == "texts" and data.text == "caption":
            rows = with_captions(rows, title)
        rows, frame_embeds = self._encode(rows, title, views)
        texts = None
        if self.predicts == "texts":
            texts = clip_texts(rows, data.text, self.descriptions)
            if self.text_embeds is not None:
                encoded = embed_texts(self.model, self.processor, set(texts) - set(self.text_embeds))
                self.text_embeds |= {text: embed.cpu() for text, embed in encoded.items()}
        return Clips(
            rows,
            self.processor.video_processor,
            data,
            is_augmented=augmented,
            texts=texts,
            labels=self._labels(rows),
            text_embeds=self.text_embeds,
            frame_embeds=frame_embeds,
            seed=self.recipe.run.seed,
        )

    def make_eval_dataset(self, rows: datasets.Dataset, title: str) -> Clips:
        """Returns clips without augmentation, always with the same frames."""
        rows, frame_embeds = self._encode(rows, title)
        processor, seed = self.processor.video_processor, self.recipe.run.seed
        return Clips(rows, processor, self.recipe.data, frame_embeds=frame_embeds, seed=seed)

    def _encode(self, rows: datasets.Dataset, title: str, views: Views | None = None):
        """Returns the readable rows and, if the image tower is frozen, their frame embeddings."""
        if self.tower is None or media_column(rows.column_names) is None:
            return rows, None
        frame_embeds = encode_frames(
            self.model,
            self.processor.video_processor,
            rows,
            self.cache_dir,
            self.recipe.run.num_workers,
            f"frames of {title}",
            every=self.recipe.data.encode_every,
            views=views,
            on_error=self.recipe.data.on_error,
            seed=self.recipe.run.seed,
            tower=self.tower,
        )
        if not frame_embeds.skipped:
            return rows, frame_embeds
        kept = sorted(set(range(len(rows))) - set(frame_embeds.skipped))
        return rows.select(kept), frame_embeds.select(kept)

    def _labels(self, rows: datasets.Dataset) -> torch.Tensor | None:
        if self.predicts == "texts":
            return None
        if self.predicts == "labels":
            return torch.tensor(rows["label"])
        columns = [rows[name] for name in self.recipe.data.targets]
        return torch.tensor(columns, dtype=torch.float32).t().contiguous()  # (N, n)


def load_rows(recipe: Recipe) -> dict[str, datasets.Dataset]:
    """Loads the splits of the recipe's data set, preparing them if needed, without the class in `data.leave_out`."""
    data = recipe.data
    evaluated = {one.split for one in data.evaluation.values() if one.data is None} - {CUT}
    rows = prepare_rows(data, recipe, {data.train_split} | ({data.validation_split} - {None}) | evaluated)
    for split, part in rows.items():
        if unknown := [name for name in data.targets if name not in part.column_names]:
            raise ValueError(f"data.targets names {unknown}, but {split} has the columns {part.column_names}")
    if validation_name(data) == CUT:
        rows[data.train_split], rows[CUT] = cut_validation(
            rows[data.train_split], data.validation_share, recipe.run.seed, data.validation_group
        )
    if data.leave_out is not None:
        rows = leave_class_out(rows, data.leave_out, learned=(data.train_split, validation_name(data)))
    return rows


def with_evaluation(recipe: Recipe) -> Recipe:
    """Returns the recipe with the evaluation sets and validation split that `data.evaluate_what_there_is` implies."""
    data = recipe.data
    if data.evaluation or not data.evaluate_what_there_is:
        return recipe
    builder = load_builder(data, data.cache_dir)
    builder.download_and_prepare(num_proc=recipe.run.num_render_processes or os.cpu_count())
    splits, features = builder.info.splits, builder.info.features
    if data.validation_split is None and "validation" in splits:
        data = replace(data, validation_split="validation")
    split = "test" if "test" in splits else validation_name(data)
    sets = {}
    if split is not None:
        name = "validation" if split == CUT else split
        captions = {f"{name}_captions": EvaluationSet(split, own_captions=True)} if "caption" in features else {}
        if _predicts(recipe) == "texts":
            sets = ({name: EvaluationSet(split)} if "label" in features else {}) | captions
        else:
            sets = {name: EvaluationSet(split)}
    return replace(recipe, data=replace(data, evaluation=sets))


def prepare_rows(source: DataRecipe | DataSource, recipe: Recipe, wanted: set[str]) -> dict[str, datasets.Dataset]:
    """Prepares a data set and returns the `wanted` splits."""
    builder = load_builder(source, recipe.data.cache_dir)
    builder.download_and_prepare(num_proc=recipe.run.num_render_processes or os.cpu_count())
    if missing := wanted - set(builder.info.splits):
        raise ValueError(
            f"{source.builder} has no split {', '.join(sorted(missing))}; it has {', '.join(builder.info.splits)}. "
            "Without a validation split set data.validation_split=null and data.validation_share=0.1"
        )
    return {split: builder.as_dataset(split) for split in sorted(wanted)}


def validation_name(data: DataRecipe) -> str | None:
    """Returns the name of the validation split, as used in `load_rows`, or `None`."""
    return data.validation_split or (CUT if data.validation_share > 0 else None)


def load_builder(source: DataRecipe | DataSource, cache_dir: str | None = None) -> datasets.DatasetBuilder:
    """Instantiates the builder `module.Class` of training/data.

    Raises:
        ValueError: `source.builder` is not such a builder; an untrusted recipe must not import other code.
    """
    module, _, name = source.builder.rpartition(".")
    spec = importlib.util.find_spec(f"training.data.{module}") if module.isidentifier() else None
    builder_class = getattr(importlib.import_module(spec.name), name, None) if spec else None
    if not (isinstance(builder_class, type) and issubclass(builder_class, datasets.DatasetBuilder)):
        raise ValueError(
            f"data.builder is {source.builder!r}, but must be `module.Class` of a builder in training/data"
        )
    options = dict(source.options)
    if source.data_dir is not None:
        options["data_dir"] = source.data_dir
    return builder_class(config_name=source.config_name, cache_dir=cache_dir, **options)


def load_class_descriptions(name: str) -> dict[str, list[str]]:
    """Reads a YAML file label -> texts, given as a path or as the name of a file in training/data."""
    path = Path(name) if Path(name).is_file() else Path(__file__).parent / "data" / name
    if not path.is_file():
        raise FileNotFoundError(f"data.class_descriptions: {name} does not exist, nor does {path}")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def build_model(recipe: Recipe, train_rows, descriptions) -> tuple[PreTrainedModel, EmoCLIPProcessor]:
    """Loads a CLIP or EmoCLIP checkpoint, or initializes random weights and trains a tokenizer on the captions."""
    model_class = MODELS[recipe.model.architecture]
    init = recipe.model.init
    if init is not None:
        fields = _class_fields(recipe, train_rows, descriptions) | recipe.model.config
        if AutoConfig.from_pretrained(init).model_type == EmoCLIPConfig.model_type:
            processor = EmoCLIPProcessor.from_clip(init, **recipe.model.video_processor)
            saved = EmoCLIPConfig.from_pretrained(init).to_dict()
            config = EmoCLIPConfig(**({name: saved[name] for name in ARCHITECTURE_FIELDS if name in saved} | fields))
            return model_class.from_towers(init, config=config, dtype=torch.float32), processor
        processor = EmoCLIPProcessor.from_clip(init, **recipe.model.video_processor)
        return model_class.from_clip(init, **fields), processor
    tokenizer = train_tokenizer(train_rows["caption"], recipe.model.tokenizer_vocab_size)
    config = EmoCLIPConfig(class_descriptions=descriptions, **recipe.model.config)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(config.text_config, name, getattr(tokenizer, name))
    config.text_config.vocab_size = len(tokenizer)
    tokenizer.model_max_length = config.text_config.max_position_embeddings
    video_processor = EmoCLIPVideoProcessor(**recipe.model.video_processor)
    return model_class(config), EmoCLIPProcessor(video_processor, tokenizer)


def _class_fields(recipe: Recipe, train_rows, descriptions) -> dict:
    """Returns the configuration fields of classes or targets; their names are saved with the checkpoint, in order."""
    predicts = _predicts(recipe)
    if predicts == "texts":
        return {"class_descriptions": descriptions}
    if predicts == "targets":
        return {"target_names": list(recipe.data.targets)}
    names = train_rows.features["label"].names
    if recipe.model.architecture == "EmoCLIPForPromptClassification":
        texts = {name: class_text(name, recipe.data.text, descriptions, names) for name in names}
        return {"class_descriptions": texts}
    return {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}


def _predicts(recipe: Recipe) -> str:
    """Returns what the recipe's model predicts: "texts", "labels" or "targets"."""
    architecture = recipe.model.architecture
    if architecture not in MODELS:
        raise ValueError(f"model.architecture is {architecture!r}, but must be one of {', '.join(MODELS)}")
    predicts = MODELS[architecture].predicts
    if (predicts == "targets") != bool(recipe.data.targets):
        raise ValueError(f"data.targets is {recipe.data.targets}, but model.architecture is {architecture}")
    return predicts


def train_tokenizer(captions: list[str], vocab_size: int | None) -> CLIPTokenizer:
    """Trains a byte-pair CLIP tokenizer; thanks to its subwords, unseen words still get distinct encodings."""
    if vocab_size is None:
        raise ValueError("model.tokenizer_vocab_size is needed when model.init is null")
    trained = CLIPTokenizer(**SPECIAL_TOKENS).train_new_from_iterator(sorted(set(captions)), vocab_size)
    # The trainer finds the same tokens every time, but assigns some of them different ids in every process.
    model = json.loads(trained.backend_tokenizer.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    special, merged = list(SPECIAL_TOKENS.values()), ["".join(merge) for merge in merges]
    alphabet = sorted(set(model["vocab"]) - set(special) - set(merged))
    vocab = {token: number for number, token in enumerate(dict.fromkeys([*special, *alphabet, *merged]))}
    return CLIPTokenizer(vocab=vocab, merges=merges, **SPECIAL_TOKENS)


@torch.inference_mode()
def embed_texts(model, processor, texts: Iterable[str]) -> dict[str, torch.Tensor]:
    """Encodes every distinct text once: text -> `(D,)`, on the model's device, float32, not normalised."""
    distinct, embeds = sorted(set(texts)), {}
    starts = range(0, len(distinct), TEXTS_PER_BATCH)
    for start in tqdm(starts, "texts", unit="batch", disable=len(starts) < 2):
        batch = distinct[start : start + TEXTS_PER_BATCH]
        embeds |= dict(zip(batch, encode_texts(model, processor, batch).float(), strict=True))
    return embeds


def add_adapters(model: PreTrainedModel, fields: dict) -> None:
    """Injects low-rank adapters (PEFT's LoRA) into the model; their parameter names contain `lora_A` or `lora_B`."""
    from peft import LoraConfig, inject_adapter_in_model  # optional dependency

    inject_adapter_in_model(LoraConfig(**fields), model)


def merge_adapters(model: PreTrainedModel) -> None:
    """Merges the adapters into the base weights and restores the plain modules."""
    for name, module in list(model.named_modules()):
        if hasattr(module, "lora_A"):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())


def _learns(model: nn.Module, *prefixes: str) -> bool:
    return any(p.requires_grad for name, p in model.named_parameters() if name.startswith(prefixes))
