# SPDX-License-Identifier: Apache-2.0
"""From a recipe to what the loop needs: the one place that knows what kinds of experiments there are."""

import importlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
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
from training.data.views import ClassBalancedSampler, class_text, clip_texts, cut_validation, leave_class_out
from training.feature_cache import Views, encode_frames, tower_fingerprint
from training.optimizer import set_trainable
from training.recipe import DataRecipe, Recipe

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
    train_clips: Clips
    train_sampler: ClassBalancedSampler | None
    """`None`: every clip once, in random order."""
    validation_clips: Clips | None
    evaluation_clips: dict[str, Clips]
    """Split -> clips, for the recipe's evaluation sets."""
    class_descriptions: dict[str, list[str]]
    train_collator: Collator
    collator: Collator


PREDICTS = {
    "EmoCLIPModel": "texts",
    "EmoCLIPForPromptClassification": "labels",
    "EmoCLIPForVideoClassification": "labels",
    "EmoCLIPForVideoRegression": "targets",
}


def build(recipe: Recipe, device: torch.device, cache_dir: Path) -> Experiment:
    """Loads or makes data, model and processor; encodes frames and texts once if their towers are frozen."""
    data = recipe.data
    rows = load_rows(recipe)
    train_rows = rows[data.train_split]
    descriptions = load_class_descriptions(data.class_descriptions)
    predicts = _predicts(recipe)
    model, processor = build_model(recipe, train_rows, descriptions)
    model.to(device)
    trained: nn.Module = model
    with_components = recipe.model.component_loss_until > 0
    if with_components:
        steps = recipe.optim.epochs * (len(train_rows) // recipe.optim.batch_size)
        num_steps = round(steps * recipe.model.component_loss_until)
        trained = WithComponentLoss(model, len(train_rows[0]["components"]), num_steps)
    rates = set_trainable(trained, recipe.optim.learning_rates, may_freeze_all=recipe.optim.epochs == 0)
    make_clips = _ClipMaker(recipe, predicts, model, processor, rows, descriptions, cache_dir)
    train_clips = make_clips(data.train_split, training=True)
    validation = validation_name(data)
    return Experiment(
        model=model,
        processor=processor,
        predicts=predicts,
        trained=trained,
        learning_rates=rates,
        train_clips=train_clips,
        train_sampler=(
            ClassBalancedSampler(train_clips.rows["label"], recipe.run.seed) if data.class_balanced else None
        ),
        validation_clips=make_clips(validation) if validation else None,
        evaluation_clips={split: make_clips(split) for split in sorted(_evaluated_splits(recipe))},
        class_descriptions=descriptions,
        train_collator=Collator(processor, data.augmentation, with_components),
        collator=Collator(processor, with_components=with_components),
    )


class _ClipMaker:
    """Splits -> `Clips`, with the frozen towers' work done beforehand."""

    def __init__(self, recipe: Recipe, predicts: str, model, processor, rows, descriptions, cache_dir: Path):
        self.recipe, self.predicts, self.model, self.processor = recipe, predicts, model, processor
        self.rows, self.descriptions, self.cache_dir = rows, descriptions, cache_dir
        self.tower = None if _learns(model, "vision_model", "visual_projection") else tower_fingerprint(model)
        self.text_embeds = None
        if predicts == "texts" and not _learns(model, "text_model", "text_projection"):
            learned = {recipe.data.train_split, validation_name(recipe.data)} & set(rows)
            texts = (text for split in sorted(learned) for text in self._texts(split))
            self.text_embeds = {text: embed.cpu() for text, embed in encode_texts(model, processor, texts).items()}

    def __call__(self, split: str, training: bool = False) -> Clips:
        data, run, rows = self.recipe.data, self.recipe.run, self.rows[split]
        frame_embeds = None
        if self.tower is not None and media_column(rows.column_names):
            views = Views(data.augmented_views, data.augmentation) if training and data.augmented_views else None
            frame_embeds = encode_frames(
                self.model,
                self.processor.video_processor,
                rows,
                self.cache_dir,
                run.num_workers,
                f"frames of {split}",
                views=views,
                on_error=data.on_error,
                seed=run.seed,
                tower=self.tower,
            )
        is_learned = split in (data.train_split, validation_name(data))
        return Clips(
            rows,
            self.processor.video_processor,
            texts=self._texts(split) if self.predicts == "texts" and is_learned else None,
            labels=None if self.predicts == "texts" else self._labels(split),
            frame_sampling=data.frame_sampling if training else None,
            seed=run.seed,
            frame_embeds=frame_embeds,
            text_embeds=self.text_embeds,
            on_error=data.on_error,
        )

    def _texts(self, split: str) -> list[str]:
        return clip_texts(self.rows[split], self.recipe.data.text, self.descriptions)

    def _labels(self, split: str) -> torch.Tensor:
        if self.predicts == "labels":
            return torch.tensor(self.rows[split]["label"])
        columns = [self.rows[split][name] for name in self.recipe.data.targets]
        return torch.tensor(columns, dtype=torch.float32).t().contiguous()  # (N, n)


def load_rows(recipe: Recipe) -> dict[str, datasets.Dataset]:
    """The splits that the recipe names, prepared if need be, with what it leaves out left out."""
    data = recipe.data
    builder = load_builder(data)
    processes = recipe.run.num_render_processes or os.cpu_count()
    builder.download_and_prepare(num_proc=processes)
    cut = data.validation_split is None and data.validation_share > 0
    wanted = {data.train_split} | ({data.validation_split} - {None}) | _evaluated_splits(recipe)
    if missing := wanted - set(builder.info.splits):
        raise ValueError(
            f"{data.builder} has no split {', '.join(sorted(missing))}; it has {', '.join(builder.info.splits)}. "
            "Without a validation split set data.validation_split=null and data.validation_share=0.1"
        )
    rows = {split: builder.as_dataset(split) for split in sorted(wanted)}
    for split, part in rows.items():
        if unknown := [name for name in data.targets if name not in part.column_names]:
            raise ValueError(f"data.targets names {unknown}, but {split} has the columns {part.column_names}")
    if cut:
        rows[data.train_split], rows[CUT] = cut_validation(
            rows[data.train_split], data.validation_share, recipe.run.seed, data.validation_group
        )
    if data.leave_out is not None:
        rows = leave_class_out(rows, data.leave_out, learned=(data.train_split, validation_name(data)))
    return rows


def validation_name(data: DataRecipe) -> str | None:
    """The split on which the epoch is chosen, as in `load_rows`."""
    return data.validation_split or (CUT if data.validation_share > 0 else None)


def load_builder(data: DataRecipe) -> datasets.DatasetBuilder:
    """The builder `module.Class` of training/data, configured."""
    module, _, name = data.builder.rpartition(".")
    builder_class = getattr(importlib.import_module(f"training.data.{module}"), name)
    options = dict(data.options)
    if data.data_dir is not None:
        options["data_dir"] = data.data_dir
    return builder_class(config_name=data.config_name, cache_dir=data.cache_dir, **options)


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
            processor = EmoCLIPProcessor.from_pretrained(init, **recipe.model.video_processor)
            config = EmoCLIPConfig.from_pretrained(init, **fields)
            return model_class.from_pretrained(init, config=config, dtype=torch.float32), processor
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
        return {"class_descriptions": {name: class_text(name, recipe.data.text, descriptions) for name in names}}
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
    return CLIPTokenizer(**SPECIAL_TOKENS).train_new_from_iterator(sorted(set(captions)), vocab_size)


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


def _learns(model: nn.Module, *prefixes: str) -> bool:
    return any(p.requires_grad for name, p in model.named_parameters() if name.startswith(prefixes))


def _evaluated_splits(recipe: Recipe) -> set[str]:
    return {evaluation_set.split for evaluation_set in recipe.data.evaluation.values()}
