# SPDX-License-Identifier: Apache-2.0
"""Losses as pure functions of tensors, and the all-gather with gradients that distributed training needs.

Shapes: B clips, C classes, n targets, W processes.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist


def in_several_processes() -> bool:
    """Returns whether this process is one of several of a distributed run."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gather_batch(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """All-gathers the rows of `(B, ...)` tensors to `(W x B, ...)`, by rank, with gradients.

    Every process must call it and then compute the same loss over all rows. The mean of the processes' gradients,
    which DistributedDataParallel leaves in each of them, is then exactly the gradient of that loss. Batches of
    different sizes raise a ValueError.
    """
    check_equal_batches(*tensors)
    return tuple(_GatherBatch.apply(tensor) for tensor in tensors)


def check_equal_batches(*tensors: torch.Tensor) -> None:
    """Raises a ValueError in every process unless all tensors of all processes have equally many rows."""
    own = torch.tensor([len(tensor) for tensor in tensors], device=tensors[0].device)
    sizes = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, own)
    sizes = torch.stack(sizes)  # (W, number of tensors)
    if (sizes != sizes[0, 0]).any():
        raise ValueError(
            f"every process needs a batch of the same size, but they have {sizes.tolist()} rows (a list for each "
            "process): use drop_last=True"
        )


class _GatherBatch(torch.autograd.Function):
    # torch.distributed.nn.functional.all_gather is deprecated, and its successor was renamed between versions.

    @staticmethod
    def forward(ctx, tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.contiguous()
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, tensor)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        # The own rows are in every process's loss. Without the sum, weights would get 1 / W of their gradient beside
        # the whole one of logit_scale, which each process has in full.
        gradient = gradient.clone(memory_format=torch.contiguous_format)  # all_reduce writes into it
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def contrastive_loss(logits_per_text: torch.Tensor) -> torch.Tensor:
    """Computes the symmetric cross-entropy between the texts and the videos of one batch (InfoNCE both ways).

    Entry (i, j) of `logits_per_text (B, B)` scores text i against video j; the pairs are on the diagonal.
    """
    _check_pairs(logits_per_text)
    # In float32 whatever the model's dtype: with 16 bits a batch of near-equal scores has no gradient left.
    logits = logits_per_text.float()
    targets = torch.arange(len(logits), device=logits.device)
    text_loss = torch.nn.functional.cross_entropy(logits, targets)
    video_loss = torch.nn.functional.cross_entropy(logits.t(), targets)
    return (text_loss + video_loss) / 2


def sigmoid_loss(logits_per_text: torch.Tensor) -> torch.Tensor:
    """Computes the loss of each of the B x B pairs on its own (SigLIP, arXiv 2303.15343, algorithm 1).

    It is the sum over pairs divided by B. `logits_per_text` is as in `contrastive_loss`, with a bias that makes "no
    match" likely before training.
    """
    _check_pairs(logits_per_text)
    signs = 2 * torch.eye(len(logits_per_text), device=logits_per_text.device) - 1  # 1: a pair, -1: none
    return -torch.nn.functional.logsigmoid(signs * logits_per_text.float()).sum(dim=1).mean()


def _check_pairs(logits_per_text: torch.Tensor) -> None:
    if logits_per_text.ndim != 2 or logits_per_text.shape[0] != logits_per_text.shape[1]:
        raise ValueError(
            "the contrastive loss needs one text for each video, but logits_per_text has shape "
            f"{tuple(logits_per_text.shape)}"
        )


CONTRASTIVE_LOSSES = {"softmax": contrastive_loss, "sigmoid": sigmoid_loss}


def classification_loss(
    logits: torch.Tensor, labels: torch.Tensor, class_weights: Sequence[float] | None = None
) -> torch.Tensor:
    """Computes the cross-entropy of `logits (B, C)` and `labels (B,)`, integers from 0 to C - 1.

    With `class_weights` (C numbers) it is the weighted mean over clips, as in `torch.nn.CrossEntropyLoss`. Labels of
    another shape or type, and those that are no class, raise a ValueError.
    """
    num_clips, num_labels = logits.shape
    if labels.shape != (num_clips,) or labels.is_floating_point():
        raise ValueError(
            f"labels has shape {tuple(labels.shape)} and type {labels.dtype}, but must be ({num_clips},) integers: "
            "one class for each clip"
        )
    labels = labels.to(device=logits.device, dtype=torch.long)
    if not torch.compiler.is_compiling() and (wrong := labels[(labels < 0) | (labels >= num_labels)]).numel():
        raise ValueError(
            f"labels holds {wrong[0].item()}, but num_labels is {num_labels}: labels are 0 to {num_labels - 1}"
        )
    weight = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32, device=logits.device)
    return torch.nn.functional.cross_entropy(logits.float(), labels, weight)


def ccc_loss(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Computes 1 - concordance correlation coefficient (Lin, 1989) of two `(B, n)`: a scalar in [0, 2], target mean.

    Moments are the batch's (divided by B), in float32. Without variance, as for one clip, it is 1 with finite
    gradients, never NaN; targets whose variance is near 1e-8 should be scaled up.
    """
    predictions, targets = predictions.float(), targets.float()
    predictions_mean, targets_mean = predictions.mean(dim=0), targets.mean(dim=0)  # (n,)
    covariance = ((predictions - predictions_mean) * (targets - targets_mean)).mean(dim=0)
    variances = predictions.var(dim=0, correction=0) + targets.var(dim=0, correction=0)
    concordance = 2 * covariance / (variances + (predictions_mean - targets_mean).square() + 1e-8)
    return (1 - concordance).mean()


_REGRESSION_LOSSES = {
    "mse": torch.nn.functional.mse_loss,
    "l1": torch.nn.functional.l1_loss,
    "ccc": ccc_loss,
}


def regression_loss(predictions: torch.Tensor, targets: torch.Tensor, kind: str) -> torch.Tensor:
    """Computes the mean squared (`"mse"`) or absolute (`"l1"`) error or `ccc_loss` (`"ccc"`) of two `(B, n)`."""
    if predictions.shape != targets.shape:
        raise ValueError(
            f"labels has shape {tuple(targets.shape)}, but must be {tuple(predictions.shape)}: (clips, num_labels)"
        )
    return _REGRESSION_LOSSES[kind](predictions.float(), targets.to(predictions.device).float())
