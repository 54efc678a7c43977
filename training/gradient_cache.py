# SPDX-License-Identifier: Apache-2.0
"""Gradients of batches that do not fit in memory, computed chunk by chunk. B clips, D embedding width.

Plain accumulation would split a contrastive batch into small ones with few negatives each. GradCache (Gao et al.,
arXiv 2101.06983) keeps the batch whole: all chunks are embedded without gradients, the loss of the whole batch gives
the gradient of each embedding, and each chunk is embedded again to backpropagate its part. The cost is a second
forward pass.
"""

from contextlib import nullcontext

import torch
from accelerate import Accelerator

from modeling_emoclip.losses import check_equal_batches, in_several_processes
from training.component_loss import WithComponentLoss


def backward_in_chunks(model, batch: dict, accelerator: Accelerator, chunk_size: int) -> torch.Tensor:
    """Computes `accelerator.backward(model(**batch).loss)` with at most `chunk_size` clips in the model at once.

    The gradients are those of the whole batch over all processes, up to rounding; only random operations such as
    dropout are drawn per chunk.

    Args:
        model: result of `accelerator.prepare`, in training mode.
        batch: inputs of the model, with `return_loss` or `labels`; tensors of B rows are split, everything else is
            passed to every chunk.
        chunk_size: maximum number of clips per forward pass in each process.

    Returns:
        The loss of the whole batch, a scalar without gradient.

    Raises:
        ValueError: neither `return_loss` nor `labels`; labels with `class_weights` or the `ccc` loss, which are not
            means over clips; processes with batches of different sizes; `chunk_size` below 1.
        TypeError: a model in `WithComponentLoss`, which adds to the contrastive loss.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}, but must be at least 1")
    unwrapped = accelerator.unwrap_model(model)
    if isinstance(unwrapped, WithComponentLoss):
        raise TypeError("WithComponentLoss cannot be trained in chunks: train it without chunk_size")
    if in_several_processes():
        check_equal_batches(_clips(batch))  # all processes must have the same number of chunks
    if batch.get("return_loss"):
        return _contrastive_backward(model, unwrapped, batch, accelerator, chunk_size)
    if "labels" in batch:
        _check_loss_is_a_mean(unwrapped.config, batch["labels"])
        return _labelled_backward(model, batch, accelerator, chunk_size)
    raise ValueError(f"the batch has neither return_loss nor labels, but only {', '.join(batch)}")


def _contrastive_backward(model, unwrapped, batch: dict, accelerator: Accelerator, chunk_size: int) -> torch.Tensor:
    chunks = _cut(batch | {"return_loss": False}, chunk_size)
    embeds, random_states = _embed(unwrapped, chunks, accelerator.device)
    scalars = [parameter for parameter in (unwrapped.logit_scale, unwrapped.logit_bias) if parameter is not None]
    scalars = [parameter for parameter in scalars if parameter.requires_grad]
    with accelerator.autocast():
        loss = unwrapped.contrastive_loss_of(*embeds)
    video_gradients, text_gradients, *scalar_gradients = torch.autograd.grad(loss, [*embeds, *scalars])
    gradients = zip(video_gradients.split(chunk_size), text_gradients.split(chunk_size), strict=True)
    for number, (chunk, state, chunk_gradients) in enumerate(zip(chunks, random_states, gradients, strict=True), 1):
        last = number == len(chunks)
        with nullcontext() if last else accelerator.no_sync(model):
            _set_random_state(state, accelerator.device)
            outputs = model(**chunk)
            pairs = list(zip((outputs.video_embeds, outputs.text_embeds), chunk_gradients, strict=True))
            if last:
                # Only in the last backward pass, the one in which DistributedDataParallel synchronizes parameters.
                pairs += zip(scalars, scalar_gradients, strict=True)
            # Chain rule: the gradient of this sum is the chunk's part of the loss gradient. Frozen towers have none.
            parts = [(value * gradient).sum() for value, gradient in pairs if value.requires_grad]
            if parts:
                accelerator.backward(sum(parts))
    return loss.detach()


def _labelled_backward(model, batch: dict, accelerator: Accelerator, chunk_size: int) -> torch.Tensor:
    chunks = _cut(batch, chunk_size)
    total = torch.zeros((), device=accelerator.device)
    for number, chunk in enumerate(chunks, 1):
        with nullcontext() if number == len(chunks) else accelerator.no_sync(model):
            loss = model(**chunk).loss * (len(_clips(chunk)) / len(_clips(batch)))
            accelerator.backward(loss)
        total += loss.detach()
    return total


def _check_loss_is_a_mean(config, labels: torch.Tensor) -> None:
    if labels.is_floating_point():
        wrong = "regression_loss='ccc'" if config.regression_loss == "ccc" else None
    else:
        wrong = None if config.class_weights is None else "class_weights"
    if wrong:
        raise ValueError(f"with {wrong} the loss is no mean over clips and cannot be trained in chunks")


@torch.no_grad()
def _embed(unwrapped, chunks: list[dict], device: torch.device) -> tuple[list[torch.Tensor], list]:
    """Returns video and text embeddings `(B, D)` as leaves that require gradients, and each chunk's RNG state.

    Bypasses DistributedDataParallel, since there are no gradients to synchronize yet.
    """
    outputs, random_states = [], []
    for chunk in chunks:
        random_states.append(_random_state(device))
        output = unwrapped(**chunk)
        outputs.append((output.video_embeds, output.text_embeds))
    return [torch.cat(embeds).requires_grad_() for embeds in zip(*outputs, strict=True)], random_states


def _random_state(device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    on_device = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)
    return torch.get_rng_state(), on_device


def _set_random_state(state: tuple[torch.Tensor, torch.Tensor | None], device: torch.device) -> None:
    """Restores the RNG state so that dropout repeats; after the last chunk the state is that of the first pass."""
    on_cpu, on_device = state
    torch.set_rng_state(on_cpu)
    if on_device is not None:
        torch.get_device_module(device).set_rng_state(on_device, device)


def _clips(batch: dict) -> torch.Tensor:
    return batch["frame_embeds"] if "frame_embeds" in batch else batch["pixel_values_videos"]


def _cut(batch: dict, chunk_size: int) -> list[dict]:
    """Splits each tensor into chunks of at most `chunk_size` rows; other values are copied to every chunk."""
    starts = range(0, len(_clips(batch)), chunk_size)
    return [
        {name: v[start : start + chunk_size] if torch.is_tensor(v) else v for name, v in batch.items()}
        for start in starts
    ]
