# SPDX-License-Identifier: Apache-2.0
"""From a recipe to what the loop needs: the one place that knows what kinds of experiments there are."""

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

import modeling_emoclip
from modeling_emoclip import EmoCLIPConfig, EmoCLIPProcessor, EmoCLIPVideoProcessor
from training.collate import Clips, Collator, media_column
from training.component_loss import WithComponentLoss
from training.data.views import SeededSampler, class_text, clip_texts, cut_validation, leave_class_out, with_captions
from training.feature_cache import Views, encode_frames, tower_fingerprint
from training.optimizer import set_trainable
from training.recipe import DataRecipe, DataSource, EvaluationSet, Recipe

TEXTS_PER_BATCH = 256
CUT = "cut from train"  # the validation split of data sets that have none
# In CLIPTokenizer's order of special tokens; eos must not be number 2, which transformers reads as a legacy layout.
SPECIAL_TOKENS = {"unk_token": "<|unk|>", "pad_token": "<|pad|>", "bos_token": "<|start|>", "eos_token": "<|end|>"}


@dataclass
class Experiment:
    """What `train.py` trains and scores."""

    model: PreTrainedModel
    processor: EmoCLIPProcessor
    predicts: str
    """What the model says of a clip: "texts" (which fits best), "labels" (scores of its classes) or "targets"."""
    trained: nn.Module
    """`model`, or a wrapper that adds to its loss; what the optimizer sees."""
    learning_rates: dict[str, float]
    train_clips: Clips | None
    """`None`, as the next two, where nothing is trained."""
    train_sampler: SeededSampler | None
    validation_clips: Clips | None
    evaluation_clips: dict[str, Clips]
    """Name of an evaluation set -> its clips; sets of one split share them."""
    class_descriptions: dict[str, list[str]]
    collator: Collator

    def save_pretrained(self, folder: Path) -> None:
        """Model and processor, with adapters merged into the weights that they adapt."""
        merge_adapters(self.model)
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)


PREDICTS = {
    "EmoCLIPModel": "texts",
    "EmoCLIPForPromptClassification": "labels",
    "EmoCLIPForVideoClassification": "labels",
    "EmoCLIPForVideoRegression": "targets",
}


# What a checkpoint says of its network; what it says of its classes belongs to what it was trained on.
ARCHITECTURE_FIELDS = [
    name
    for name in EmoCLIPConfig.__dataclass_fields__
    if name.startswith(("temporal_", "projection_", "logit_", "vision_config", "text_config"))
]


def build(recipe: Recipe, device: torch.device, cache_dir: Path) -> Experiment:
    """Loads or makes data, model and processor; encodes frames and texts once if their towers are frozen."""
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
    make_clips = _ClipMaker(recipe, predicts, model, processor, descriptions, cache_dir)
    train_clips = validation_clips = train_sampler = None
    if recipe.optim.epochs > 0:
        train_clips = make_clips.training(train_rows, data.train_split, augmented=True)
        balance = train_clips.rows["label"] if data.class_balanced else None
        train_sampler = SeededSampler(len(train_clips), recipe.run.seed, balance)
        if validation := validation_name(data):
            validation_clips = make_clips.training(rows[validation], validation)
    return Experiment(
        model=model,
        processor=processor,
        predicts=predicts,
        trained=trained,
        learning_rates=rates,
        train_clips=train_clips,
        train_sampler=train_sampler,
        validation_clips=validation_clips,
        evaluation_clips=_evaluation_clips(recipe, rows, make_clips),
        class_descriptions=descriptions,
        collator=Collator(processor, with_components),
    )


def _evaluation_clips(recipe: Recipe, rows: dict[str, datasets.Dataset], make_clips: "_ClipMaker") -> dict[str, Clips]:
    made: dict[tuple, Clips] = {}
    clips = {}
    for name, evaluation_set in recipe.data.evaluation.items():
        source, split = evaluation_set.data, evaluation_set.split
        key = (split, repr(source))
        if key not in made:
            part = rows[split] if source is None else prepare_rows(source, recipe, {split})[split]
            made[key] = make_clips.evaluation(part, split if source is None else f"{source.builder}, {split}")
        clips[name] = made[key]
    return clips


class _ClipMaker:
    """Rows -> `Clips`, with the frozen towers' work done beforehand."""

    def __init__(self, recipe: Recipe, predicts: str, model, processor, descriptions, cache_dir: Path):
        self.recipe, self.predicts, self.model, self.processor = recipe, predicts, model, processor
        self.descriptions, self.cache_dir = descriptions, cache_dir
        self.tower = None if _learns(model, "vision_model", "visual_projection") else tower_fingerprint(model)
        self.text_embeds: dict[str, torch.Tensor] | None = None
        if predicts == "texts" and not _learns(model, "text_model", "text_projection"):
            self.text_embeds = {}

    def training(self, rows: datasets.Dataset, title: str, augmented: bool = False) -> Clips:
        """Clips with what they are trained against; `augmented` ones differ from epoch to epoch."""
        data = self.recipe.data
        views = Views(data.augmented_views, data.augmentation) if augmented and data.augmented_views else None
        if self.predicts == "texts" and data.text == "caption":
            rows = with_captions(rows, title)
        rows, frame_embeds = self._encode(rows, title, views)
        texts = None
        if self.predicts == "texts":
            texts = clip_texts(rows, data.text, self.descriptions)
            if self.text_embeds is not None:
                new = set(texts) - set(self.text_embeds)
                encoded = encode_texts(self.model, self.processor, new)
                self.text_embeds |= {text: embed.cpu() for text, embed in encoded.items()}
        return Clips(
            rows,
            self.processor.video_processor,
            texts=texts,
            labels=self._labels(rows),
            frame_sampling=data.frame_sampling if augmented else None,
            augmentation=data.augmentation if augmented else None,
            seed=self.recipe.run.seed,
            frame_embeds=frame_embeds,
            encode_every=data.encode_every if frame_embeds is not None else 1,
            text_embeds=self.text_embeds,
            on_error=data.on_error,
            short_clips=data.short_clips,
            shortest=data.shortest,
        )

    def evaluation(self, rows: datasets.Dataset, title: str) -> Clips:
        """Clips as they are, always the same frames."""
        rows, frame_embeds = self._encode(rows, title)
        data = self.recipe.data
        every = data.encode_every if frame_embeds is not None else 1
        processor = self.processor.video_processor
        return Clips(
            rows,
            processor,
            seed=self.recipe.run.seed,
            frame_embeds=frame_embeds,
            encode_every=every,
            on_error=data.on_error,
            short_clips=data.short_clips,
            shortest=data.shortest,
        )

    def _encode(self, rows: datasets.Dataset, title: str, views: Views | None = None):
        """The rows that can be read, and their frames, if the image tower is frozen."""
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
    """The splits of the recipe's own data set, prepared if need be, with what it leaves out left out."""
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
    """The recipe, with the evaluation sets and the validation split that `data.evaluate_what_there_is` asks for."""
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
    """Some splits of a data set."""
    builder = load_builder(source, recipe.data.cache_dir)
    builder.download_and_prepare(num_proc=recipe.run.num_render_processes or os.cpu_count())
    if missing := wanted - set(builder.info.splits):
        raise ValueError(
            f"{source.builder} has no split {', '.join(sorted(missing))}; it has {', '.join(builder.info.splits)}. "
            "Without a validation split set data.validation_split=null and data.validation_share=0.1"
        )
    return {split: builder.as_dataset(split) for split in sorted(wanted)}


def validation_name(data: DataRecipe) -> str | None:
    """The split on which the epoch is chosen, as in `load_rows`."""
    return data.validation_split or (CUT if data.validation_share > 0 else None)


def load_builder(source: DataRecipe | DataSource, cache_dir: str | None = None) -> datasets.DatasetBuilder:
    """The builder `module.Class` of training/data, configured.

    Raises:
        ValueError: `source.builder` names none; a recipe may be somebody else's and cannot name other code.
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
    """A yaml file label -> texts: a path, or the name of a file in training/data."""
    path = Path(name) if Path(name).is_file() else Path(__file__).parent / "data" / name
    if not path.is_file():
        raise FileNotFoundError(f"data.class_descriptions: {name} does not exist, nor does {path}")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def build_model(recipe: Recipe, train_rows, descriptions) -> tuple[PreTrainedModel, EmoCLIPProcessor]:
    """From a CLIP or EmoCLIP checkpoint, or from random weights with a tokenizer trained on the captions."""
    model_class = getattr(modeling_emoclip, recipe.model.architecture)
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
    """What the configuration says of classes or targets: their names travel with the checkpoint, in this order."""
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
    architecture = recipe.model.architecture
    if architecture not in PREDICTS:
        raise ValueError(f"model.architecture is {architecture!r}, but must be one of {', '.join(PREDICTS)}")
    if (PREDICTS[architecture] == "targets") != bool(recipe.data.targets):
        raise ValueError(f"data.targets is {recipe.data.targets}, but model.architecture is {architecture}")
    return PREDICTS[architecture]


def train_tokenizer(captions: list[str], vocab_size: int | None) -> CLIPTokenizer:
    """A byte-pair CLIP tokenizer; sub-words, so that words which never occur are still told apart."""
    if vocab_size is None:
        raise ValueError("model.tokenizer_vocab_size is needed when model.init is null")
    trained = CLIPTokenizer(**SPECIAL_TOKENS).train_new_from_iterator(sorted(set(captions)), vocab_size)
    # The trainer finds the same tokens every time, but numbers some of them differently in every process.
    model = json.loads(trained.backend_tokenizer.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    special, merged = list(SPECIAL_TOKENS.values()), ["".join(merge) for merge in merges]
    alphabet = sorted(set(model["vocab"]) - set(special) - set(merged))
    vocab = {token: number for number, token in enumerate(dict.fromkeys([*special, *alphabet, *merged]))}
    return CLIPTokenizer(vocab=vocab, merges=merges, **SPECIAL_TOKENS)


@torch.inference_mode()
def encode_texts(model, processor, texts: Iterable[str]) -> dict[str, torch.Tensor]:
    """Every distinct text through the text tower once: text -> `(D,)`, on the model's device, not normalised."""
    distinct = sorted(set(texts))
    embeds = {}
    starts = range(0, len(distinct), TEXTS_PER_BATCH)
    for start in tqdm(starts, "texts", unit="batch", disable=len(starts) < 2):
        batch = distinct[start : start + TEXTS_PER_BATCH]
        inputs = processor(text=batch, return_tensors="pt").to(model.device)
        embeds |= dict(zip(batch, model.get_text_features(**inputs).pooler_output.float(), strict=True))
    return embeds


def add_adapters(model: PreTrainedModel, fields: dict) -> None:
    """Low-rank adapters (PEFT's LoRA) inside the model's modules; parameter names gain `lora_A`, `lora_B`."""
    from peft import LoraConfig, inject_adapter_in_model  # an extra

    inject_adapter_in_model(LoraConfig(**fields), model)


def merge_adapters(model: PreTrainedModel) -> None:
    """Adapted modules become plain ones again, with the adapters' part in their weights."""
    for name, module in list(model.named_modules()):
        if hasattr(module, "lora_A"):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())


def _learns(model: nn.Module, *prefixes: str) -> bool:
    return any(p.requires_grad for name, p in model.named_parameters() if name.startswith(prefixes))
