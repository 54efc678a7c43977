# SPDX-License-Identifier: Apache-2.0
"""Losses as pure functions of tensors."""

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
