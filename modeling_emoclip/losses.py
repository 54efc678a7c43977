# SPDX-License-Identifier: Apache-2.0
"""Losses as pure functions of tensors."""

from collections.abc import Sequence

import torch


def contrastive_loss(logits_per_text: torch.Tensor, same_text: torch.Tensor | None = None) -> torch.Tensor:
    """Symmetric cross-entropy between the texts and the videos of one batch (InfoNCE both ways).

    Args:
        logits_per_text: `(B, B)`, entry (i, j) scores text i against video j; the pairs are on the diagonal.
        same_text: `(B, B)` bool, true where texts i and j are the same. Their videos are then positives of each other
            and share the target equally; both papers' code takes them for negatives. `None` means all texts differ.

    Returns:
        A scalar.
    """
    if logits_per_text.ndim != 2 or logits_per_text.shape[0] != logits_per_text.shape[1]:
        raise ValueError(
            "the contrastive loss needs one text for each video, but logits_per_text has shape "
            f"{tuple(logits_per_text.shape)}"
        )
    if same_text is None:
        same_text = torch.eye(len(logits_per_text), dtype=torch.bool, device=logits_per_text.device)
    # In float32 whatever the model's dtype: with 16 bits a batch of near-equal scores has no gradient left.
    logits = logits_per_text.float()
    targets = same_text / same_text.sum(dim=1, keepdim=True)
    text_loss = torch.nn.functional.cross_entropy(logits, targets)
    video_loss = torch.nn.functional.cross_entropy(logits.t(), targets)
    return (text_loss + video_loss) / 2


def classification_loss(
    logits: torch.Tensor, labels: torch.Tensor, class_weights: Sequence[float] | None = None
) -> torch.Tensor:
    """Cross-entropy of `logits (B, C)` and `labels (B,)`, integers from 0 to C - 1 -> a scalar.

    With `class_weights` (C numbers) it is the weighted mean over the clips, as in `torch.nn.CrossEntropyLoss`.

    Raises:
        ValueError: labels of another shape or type, or a label that is no class.
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
    """1 - concordance correlation coefficient (Lin, 1989), mean over the targets: two `(B, n)` -> a scalar in [0, 2].

    Moments are those of the batch (divided by B), in float32. Without variance, and so for one clip, it is 1 with
    finite gradients, never NaN; targets whose variance is near 1e-8 should be scaled up.
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
    """Mean squared (`"mse"`) or absolute (`"l1"`) error or `ccc_loss` (`"ccc"`) of two `(B, n)` -> a scalar."""
    if predictions.shape != targets.shape:
        raise ValueError(
            f"labels has shape {tuple(targets.shape)}, but must be {tuple(predictions.shape)}: (clips, num_labels)"
        )
    return _REGRESSION_LOSSES[kind](predictions.float(), targets.to(predictions.device).float())
