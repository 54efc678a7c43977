# SPDX-License-Identifier: Apache-2.0
"""Functions that write converted tensors as a Hub repository folder: weights, processor, model code and card."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from huggingface_hub import ModelCardData
from transformers import AutoTokenizer, CLIPTextConfig, PreTrainedModel, PreTrainedTokenizerBase

import emoclip
from emoclip import EmoCLIPConfig, EmoCLIPProcessor, EmoCLIPVideoProcessor
from training.convert.openai_clip_keys import OPENAI_VOCAB_SIZE, end_of_text
from training.publish import export
from training.publish.card import render_card

OPENAI_CLIP = "openai/clip-vit-base-patch32"  # all of OpenAI's CLIPs share one tokenizer


def convert_entry(
    convert: Callable[[str, torch.Tensor], dict[str, torch.Tensor]], key: str, tensor: torch.Tensor, whole_key: str
) -> dict[str, torch.Tensor]:
    """Calls `convert(key, tensor)`, and reports errors with the full name `whole_key`.

    Raises:
        ValueError: unknown key or unsuitable shape; the message has both.
    """
    try:
        return convert(key, tensor)
    except (KeyError, ValueError, RuntimeError, IndexError):
        raise ValueError(does_not_fit(whole_key, tensor)) from None


def does_not_fit(key: str, tensor: torch.Tensor) -> str:
    return f"the checkpoint is of another architecture: its key {key!r} of shape {tuple(tensor.shape)} does not fit"


def build_model(model_class: type, config: EmoCLIPConfig, state: dict[str, torch.Tensor]) -> PreTrainedModel:
    """Builds a `model_class` with exactly the tensors of `state`, in float32 and evaluation mode.

    Raises:
        ValueError: a tensor is missing, superfluous or of another shape, so none keeps its random initialization.
    """
    model = model_class(config)
    expected = model.state_dict()
    for name, tensor in state.items():
        if name not in expected:
            raise ValueError(f"{name} of shape {tuple(tensor.shape)} does not fit: the model has no such tensor")
        if tensor.shape != expected[name].shape:
            raise ValueError(
                f"{name} has the shape {tuple(tensor.shape)}, but the other tensors ask for "
                f"{tuple(expected[name].shape)}"
            )
    if missing := [name for name in expected if name not in state]:
        more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(f"the checkpoint is incomplete: it holds nothing for {missing[0]}{more}")
    model.load_state_dict(state)
    return model.eval()


def load_tokenizer(
    name_or_path: str | None, text_config: CLIPTextConfig
) -> tuple[PreTrainedTokenizerBase | None, str]:
    """Loads the tokenizer of a text tower; also returns one line on its source, or on why there is none.

    Args:
        name_or_path: folder or Hub id, or `None`. There is no default: without a network, it would cost a minute.
        text_config: configuration of the tower; texts are truncated to its number of positions.

    Raises:
        ValueError: the tokenizer does not belong to the tower.
    """
    vocab_size, eos_token_id = text_config.vocab_size, end_of_text(text_config)
    if name_or_path is None:
        return None, _missing_tokenizer("none was given", vocab_size)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = f"{name_or_path} cannot be loaded ({str(error).splitlines()[0]})"
        return None, _missing_tokenizer(reason, vocab_size)
    if (len(tokenizer), tokenizer.eos_token_id) != (vocab_size, eos_token_id):
        raise ValueError(
            f"the tokenizer {name_or_path} has {len(tokenizer)} tokens and ends a text with id "
            f"{tokenizer.eos_token_id}, but the checkpoint has {vocab_size} and ends it with {eos_token_id}"
        )
    tokenizer.model_max_length = min(tokenizer.model_max_length, text_config.max_position_embeddings)
    return tokenizer, f"tokenizer of {name_or_path}"


def _missing_tokenizer(reason: str, vocab_size: int) -> str:
    example = OPENAI_CLIP if vocab_size == OPENAI_VOCAB_SIZE else "FOLDER"
    return (
        f"MISSING: the tokenizer: {reason}. The model and its video processor are complete, but take token ids "
        f"instead of texts. For a folder with a tokenizer, repeat the command with --tokenizer {example}"
    )


def refuse_used_folder(output_dir: Path) -> None:
    """Raises `FileExistsError` if `output_dir` is a file or a non-empty folder."""
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise FileExistsError(f"{output_dir} exists already; give a folder that does not, or an empty one")


def write_hub_folder(
    output_dir: Path,
    model: PreTrainedModel,
    video_processor: EmoCLIPVideoProcessor,
    tokenizer: PreTrainedTokenizerBase | None,
    source: str,
    notes: list[str],
) -> None:
    """Writes the repository atomically: to a temporary folder next to `output_dir`, which is then renamed.

    Without a tokenizer, only the video processor is written. `source` names the paper's code for the card; `notes`
    describe how the checkpoint was read.

    Raises:
        FileExistsError: see `refuse_used_folder`.
    """
    refuse_used_folder(output_dir)
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output_dir.parent, prefix=f"{output_dir.name}.unfinished.") as unfinished:
        folder = Path(unfinished) / "hub"
        processor = video_processor if tokenizer is None else EmoCLIPProcessor(video_processor, tokenizer)
        export.write_model(folder, model, processor)
        card = write_card(model, video_processor, source, notes)
        (folder / "README.md").write_text(card + "\n", encoding="utf-8")
        folder.rename(output_dir)


def write_card(model: PreTrainedModel, video_processor: EmoCLIPVideoProcessor, source: str, notes: list[str]) -> str:
    """Renders the model card from hub_cards/converted.md."""
    contrastive = isinstance(model, emoclip.EmoCLIPModel)
    card_data = ModelCardData(
        language="en",
        library_name="transformers",
        pipeline_tag="video-classification",
        tags=["facial-expression-recognition", "emotion-recognition", "clip", "custom_code"],
    )
    return render_card(
        "converted.md",
        card_data=card_data.to_yaml(),
        source=source,
        notes=notes,
        config=model.config,
        model_class=type(model).__name__,
        auto_class="AutoModel" if contrastive else "AutoModelForVideoClassification",
        num_parameters=model.num_parameters(),
        video_processor=video_processor,
    )
