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
from transformers import CLIPTokenizer, PreTrainedModel

import modeling_emoclip
from modeling_emoclip import EmoCLIPConfig, EmoCLIPProcessor, EmoCLIPVideoProcessor
from training.collate import Clips, Collator
from training.component_loss import WithComponentLoss
from training.feature_cache import encode_frames
from training.optimizer import set_trainable
from training.recipe import DataRecipe, Recipe

TEXTS_PER_BATCH = 256
# In CLIPTokenizer's order of special tokens; eos must not be number 2, which transformers reads as a legacy layout.
SPECIAL_TOKENS = {"unk_token": "<|unk|>", "pad_token": "<|pad|>", "bos_token": "<|start|>", "eos_token": "<|end|>"}


@dataclass
class Experiment:
    """What `train.py` trains and scores."""

    model: PreTrainedModel
    processor: EmoCLIPProcessor
    trained: nn.Module
    """`model`, or a wrapper that adds to its loss; what the optimizer sees."""
    learning_rates: dict[str, float]
    train_clips: Clips
    validation_clips: Clips | None
    evaluation_clips: dict[str, Clips]
    """Split -> clips, for the recipe's evaluation sets."""
    class_descriptions: dict[str, list[str]]
    train_collator: Collator
    collator: Collator


def build(recipe: Recipe, device: torch.device, cache_dir: Path) -> Experiment:
    """Loads or makes data, model and processor; encodes frames and texts once if their towers are frozen."""
    rows = load_rows(recipe)
    train_rows = rows[recipe.data.train_split]
    descriptions = load_class_descriptions(recipe.data.class_descriptions)
    model, processor = build_model(recipe, train_rows, descriptions)
    model.to(device)
    trained: nn.Module = model
    with_components = recipe.model.component_loss_until > 0
    if with_components:
        steps = recipe.optim.epochs * (len(train_rows) // recipe.optim.batch_size)
        num_steps = round(steps * recipe.model.component_loss_until)
        trained = WithComponentLoss(model, len(train_rows[0]["components"]), num_steps)
    rates = set_trainable(trained, recipe.optim.learning_rates)
    text_embeds = None
    if not _learns(model, "text_model", "text_projection"):
        captions = (caption for split in rows.values() for caption in split["caption"])
        text_embeds = {text: embed.cpu() for text, embed in encode_texts(model, processor, captions).items()}

    def clips(split: str, frame_sampling: str | None = None) -> Clips:
        frame_embeds = None
        if "video" in rows[split].column_names and not _learns(model, "vision_model", "visual_projection"):
            frame_embeds = encode_frames(
                model, processor.video_processor, rows[split], cache_dir, recipe.run.num_workers, f"frames of {split}"
            )
        seed = recipe.run.seed
        return Clips(rows[split], processor.video_processor, frame_sampling, seed, frame_embeds, text_embeds)

    validation = recipe.data.validation_split
    return Experiment(
        model=model,
        processor=processor,
        trained=trained,
        learning_rates=rates,
        train_clips=clips(recipe.data.train_split, recipe.data.frame_sampling),
        validation_clips=clips(validation) if validation else None,
        evaluation_clips={split: clips(split) for split in sorted(_evaluated_splits(recipe))},
        class_descriptions=descriptions,
        train_collator=Collator(processor, recipe.data.augmentation, with_components),
        collator=Collator(processor, with_components=with_components),
    )


def load_rows(recipe: Recipe) -> dict[str, datasets.Dataset]:
    """The splits that the recipe names, prepared if need be."""
    builder = load_builder(recipe.data)
    processes = recipe.run.num_render_processes or os.cpu_count()
    builder.download_and_prepare(num_proc=processes)
    validation = {recipe.data.validation_split} if recipe.data.validation_split else set()
    wanted = {recipe.data.train_split} | validation | _evaluated_splits(recipe)
    if missing := wanted - set(builder.info.splits):
        raise ValueError(
            f"{recipe.data.builder} has no split {', '.join(sorted(missing))}; {list(builder.info.splits)}"
        )
    return {split: builder.as_dataset(split) for split in sorted(wanted)}


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
    """From a CLIP checkpoint, or from random weights with a tokenizer trained on the captions."""
    model_class = getattr(modeling_emoclip, recipe.model.architecture)
    if recipe.model.init is not None:
        config = {"class_descriptions": descriptions} | recipe.model.config
        processor = EmoCLIPProcessor.from_clip(recipe.model.init, **recipe.model.video_processor)
        return model_class.from_clip(recipe.model.init, **config), processor
    tokenizer = train_tokenizer(train_rows["caption"], recipe.model.tokenizer_vocab_size)
    config = EmoCLIPConfig(class_descriptions=descriptions, **recipe.model.config)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(config.text_config, name, getattr(tokenizer, name))
    config.text_config.vocab_size = len(tokenizer)
    tokenizer.model_max_length = config.text_config.max_position_embeddings
    video_processor = EmoCLIPVideoProcessor(**recipe.model.video_processor)
    return model_class(config), EmoCLIPProcessor(video_processor, tokenizer)


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
