# SPDX-License-Identifier: Apache-2.0
"""Converts a checkpoint of DFER-CLIP's released code to a Hub repository folder of `EmoCLIPForPromptClassification`.

python -m training.convert.dferclip_checkpoint CHECKPOINT OUTPUT_DIR --tokenizer openai/clip-vit-base-patch32
python -m training.convert.dferclip_checkpoint CHECKPOINT OUTPUT_DIR --labels calm,amused --class-token-position middle

The released code (https://github.com/zengqunzhao/DFER-CLIP) stores CLIP twice, as `image_encoder` + `text_encoder` and
as `clip_model_`; both share the same modules in memory. The forward pass uses the first two, so those are converted.
`clip_model_` supplies what they lack: the token table, and the logit scale (unused: the released scale is fixed at
100). The class texts are recovered by looking up the stored prompt embeddings in the token table. The class token
position cannot be recovered, because the stored contexts are the same for all positions.
"""

import argparse
import sys
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase
from transformers.image_utils import PILImageResampling

import emoclip
from emoclip import EmoCLIPVideoProcessor
from training.convert.checkpoint_file import read_checkpoint
from training.convert.hub_folder import (
    build_model,
    convert_entry,
    does_not_fit,
    load_tokenizer,
    refuse_used_folder,
    write_hub_folder,
)
from training.convert.openai_clip_keys import convert_clip_tensor, shape_of, text_config_of, vision_config_of
from training.convert.temporal_keys import convert_temporal_tensor, temporal_config_of

SOURCE = "DFER-CLIP (Zhao and Patras, BMVC 2023, arXiv 2308.13382), https://github.com/zengqunzhao/DFER-CLIP"
LABELS_OF_7 = ("happiness", "sadness", "neutral", "anger", "surprise", "disgust", "fear")  # models/Text.py
LABELS = {7: LABELS_OF_7, 11: (*LABELS_OF_7, "contempt", "anxiety", "helplessness", "disappointment")}
POSITIONS = ("end", "middle", "front")
_TOKEN_TABLE = "clip_model_.token_embedding.weight"
_LOGIT_SCALE = "clip_model_.logit_scale"


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("output_dir", type=Path, help="folder to write; it must not exist, or be empty")
    parser.add_argument("--labels", help="names of the classes, separated by commas; default: the papers' 7 or 11")
    parser.add_argument("--class-token-position", choices=POSITIONS, default="end", help="as given in the training")
    parser.add_argument("--temporal-heads", type=int, default=8, help="no tensor tells it; 8 in the released code")
    parser.add_argument("--tokenizer", help="folder or Hub id, as openai/clip-vit-base-patch32")
    options = parser.parse_args(arguments)
    labels = None if options.labels is None else [label.strip() for label in options.labels.split(",")]
    try:
        notes = convert(
            options.checkpoint,
            options.output_dir,
            labels,
            options.class_token_position,
            options.temporal_heads,
            options.tokenizer,
        )
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print("\n- ".join([f"wrote {options.output_dir}", *notes]))


def convert(
    checkpoint: Path,
    output_dir: Path,
    labels: list[str] | None = None,
    class_token_position: str = "end",
    temporal_heads: int = 8,
    tokenizer: str | None = None,
) -> list[str]:
    """Converts a checkpoint and returns notes for the user about the result, one per line.

    Raises:
        ValueError, OSError: the file cannot be read, does not fit or is incomplete; the number of labels does not
            match the classes; `output_dir` is in use. Nothing is written in these cases.
    """
    refuse_used_folder(output_dir)
    original = read_checkpoint(checkpoint)
    state = convert_state(original)
    fields = config_fields(original, state, labels, class_token_position, temporal_heads)
    notes = _notes(original, fields)
    tokenizer, note = load_tokenizer(tokenizer, fields["text_config"])
    if tokenizer is not None:
        fields["class_descriptions"] = describe(fields, tokenizer)
        notes += [f"{label}: {texts[0]}" for label, texts in fields["class_descriptions"].items()]
    config = emoclip.EmoCLIPConfig(**fields)
    model = build_model(emoclip.EmoCLIPForPromptClassification, config, state)
    model.freeze_class_embeds()  # so that the loaded model need not run the text tower
    write_hub_folder(output_dir, model, video_processor_of(model.config), tokenizer, SOURCE, notes)
    return [*notes, note]


def convert_state(original: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Converts DFER-CLIP's state dict to the tensor names of `EmoCLIPForPromptClassification`.

    Raises:
        ValueError: a key does not fit; the message names the first one.
    """
    converted = {}
    for key, tensor in original.items():
        module, _, rest = key.partition(".")
        if module == "image_encoder":
            converted |= convert_entry(convert_clip_tensor, f"visual.{rest}", tensor, key)
        elif module == "text_encoder" or key in (_TOKEN_TABLE, _LOGIT_SCALE):
            converted |= convert_entry(convert_clip_tensor, rest, tensor, key)
        elif module == "temporal_net":
            converted |= convert_entry(convert_temporal_tensor, rest, tensor, key)
        elif key == "prompt_learner.ctx":
            converted["prompt_learner.context"] = tensor
        elif module == "clip_model_":
            convert_entry(convert_clip_tensor, rest, tensor, key)  # the copy is only validated
        elif key not in ("prompt_learner.token_prefix", "prompt_learner.token_suffix"):
            raise ValueError(does_not_fit(key, tensor))
    return converted


def config_fields(
    original: dict[str, torch.Tensor],
    state: dict[str, torch.Tensor],
    labels: list[str] | None = None,
    class_token_position: str = "end",
    temporal_heads: int = 8,
) -> dict:
    """Infers the fields of `EmoCLIPConfig` from the tensors.

    Args:
        original: DFER-CLIP's state dict, for the stored prompts.
        state: the output of `convert_state`.
        labels: class names in the checkpoint's order; optional for 7 and 11 classes.
        class_token_position: `--class-token-position` of the training.
        temporal_heads: number of heads of the temporal transformer.

    Raises:
        ValueError: a tensor is missing, sizes disagree, a stored embedding is not in the token table, or the number of
            labels does not match the classes.
    """
    class_input_ids, bos_token_id, eos_token_id = recover_texts(original, state)
    labels = _checked_labels(labels, len(class_input_ids))
    text_config = text_config_of(state)
    text_config.bos_token_id, text_config.eos_token_id = bos_token_id, eos_token_id
    return {
        "vision_config": vision_config_of(state),
        "text_config": text_config,
        "projection_dim": shape_of(state, "temporal.class_token", 1)[0],
        "prompt_num_context_tokens": state["prompt_learner.context"].shape[-2],
        "prompt_class_specific_contexts": state["prompt_learner.context"].ndim == 3,
        "prompt_class_position": class_token_position,
        "prompt_logit_scale": 100.0,  # the released code divides the cosine by 0.01
        "class_input_ids": class_input_ids,
        "id2label": dict(enumerate(labels)),
        "label2id": {label: number for number, label in enumerate(labels)},
        **temporal_config_of(state, temporal_heads),
    }


def recover_texts(
    original: dict[str, torch.Tensor], state: dict[str, torch.Tensor]
) -> tuple[list[list[int]], int, int]:
    """Recovers the token ids of each class text, and of start and end of text, from the stored prompt embeddings.

    `token_prefix (C, 1, width)` is the start of text; `token_suffix (C, L, width)` is the class text, the end of text
    and padding (`models/Prompt_Learner.py`). As always in CLIP, the highest id is the end of the text.

    Raises:
        ValueError: an embedding is not a row of the token table, or the prompts do not fit the text tower.
    """
    num_classes, num_prefix, _ = shape_of(original, "prompt_learner.token_prefix", 3)
    _, num_suffix, width = shape_of(original, "prompt_learner.token_suffix", 3)
    context = state.get("prompt_learner.context")
    if context is None or context.ndim not in (2, 3) or (context.ndim == 3 and len(context) != num_classes):
        raise ValueError(
            f"prompt_learner.ctx has the shape {None if context is None else tuple(context.shape)}, but must be "
            f"(contexts, {width}) or ({num_classes} classes, contexts, {width})"
        )
    positions = shape_of(state, "text_model.embeddings.position_embedding.weight", 2)[0]
    if num_prefix + context.shape[-2] + num_suffix != positions:
        raise ValueError(
            f"a prompt of {num_prefix} + {context.shape[-2]} + {num_suffix} tokens does not fill the {positions} "
            "positions of the text tower"
        )
    starts = look_up(original, "prompt_learner.token_prefix")
    suffixes = look_up(original, "prompt_learner.token_suffix")
    ends = {max(suffix) for suffix in suffixes}
    if len(ends) != 1 or len({start[0] for start in starts}) != 1:
        raise ValueError(
            f"the classes' texts begin with the ids {starts} and end with {sorted(ends)}: not one of each"
        )
    end = ends.pop()
    texts = [suffix[: suffix.index(end)] for suffix in suffixes]
    if empty := [number for number, text in enumerate(texts) if not text]:
        raise ValueError(f"the stored prompt of class {empty[0]} has no text")
    return texts, starts[0][0], end


def look_up(original: dict[str, torch.Tensor], name: str) -> list[list[int]]:
    """Looks up the embeddings in tensor `name (C, L, width)` in the token table and returns their ids `(C, L)`.

    Raises:
        ValueError: an embedding is not a row of the table.
    """
    shape_of(original, _TOKEN_TABLE, 2)
    stored = original[name]
    # The released code casts embeddings after the lookup; casting the table the same way makes equality exact.
    table = original[_TOKEN_TABLE].to(stored.dtype)
    # The first of equal rows wins; they are the same token to the model.
    ids = {row.tobytes(): number for number, row in reversed(list(enumerate(_rows(table))))}
    found = [[ids.get(row.tobytes()) for row in _rows(embeddings)] for embeddings in stored]
    for number, text in enumerate(found):
        if None in text:
            raise ValueError(
                f"{name}: the embedding of class {number}, token {text.index(None)} is not in the checkpoint's token "
                f"table ({_TOKEN_TABLE}), so the text of the class cannot be recovered"
            )
    return found


def describe(fields: dict, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[str]]:
    """Decodes the class texts: label -> text, for texts that the tokenizer maps back to exactly the same ids."""
    descriptions = {}
    for number, ids in enumerate(fields["class_input_ids"]):
        plain = tokenizer.decode(ids, skip_special_tokens=False).strip()
        tidy = plain.replace(" .", ".").replace(" ,", ",")  # CLIP's tokenizer loses the spaces
        for text in (tidy, plain):
            if tokenizer(text, add_special_tokens=False).input_ids == ids:
                descriptions[fields["id2label"][number]] = [text]
                break
    return descriptions


def video_processor_of(config) -> EmoCLIPVideoProcessor:
    """Returns DFER-CLIP's preprocessing at test time (`dataloader/`): squashed, not cropped, and no mean/std."""
    size = config.vision_config.image_size
    return EmoCLIPVideoProcessor(
        num_frames=config.temporal_max_frames,
        frame_sampling="segment_middle",
        size={"height": size, "width": size},
        resample=PILImageResampling.BILINEAR,
        do_center_crop=False,
        do_normalize=False,
    )


def _rows(table: torch.Tensor):
    return table.contiguous().view(torch.uint8).numpy()  # as bytes, because numpy has no bfloat16


def _checked_labels(labels: list[str] | None, num_classes: int) -> list[str]:
    if labels is None:
        if num_classes not in LABELS:
            raise ValueError(
                f"the checkpoint has {num_classes} classes, and only those with {' or '.join(map(str, LABELS))} have "
                f"names by default: give {num_classes} names with --labels"
            )
        return list(LABELS[num_classes])
    if len(labels) != num_classes:
        raise ValueError(f"--labels has {len(labels)} names, but the checkpoint has {num_classes} classes")
    if not all(labels) or len(set(labels)) != num_classes:
        raise ValueError(f"--labels has an empty or repeated name: {', '.join(map(repr, labels))}")
    return labels


def _notes(original: dict[str, torch.Tensor], fields: dict) -> list[str]:
    number, shared = fields["prompt_num_context_tokens"], not fields["prompt_class_specific_contexts"]
    notes = [
        f"{len(fields['id2label'])} classes: {', '.join(fields['id2label'].values())}",
        f"{number} context tokens, {'shared by the classes' if shared else 'of each class'}; class text at the "
        f"{fields['prompt_class_position']}, as told by --class-token-position",
        "towers: image_encoder and text_encoder, which the released code runs",
    ]
    copies = {"image_encoder.": "clip_model_.visual.", "text_encoder.": "clip_model_."}
    for name, copy in copies.items():
        pairs = [(key, copy + key.removeprefix(name)) for key in original if key.startswith(name)]
        if any(other in original and not torch.equal(original[key], original[other]) for key, other in pairs):
            notes.append(f"{name}* differs from {copy}*, which is its copy in files of the released code")
    return notes


if __name__ == "__main__":
    main()
