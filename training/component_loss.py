# SPDX-License-Identifier: Apache-2.0
"""A hand rail for towers that start from nothing.

A small ViT with the contrastive loss alone stays at chance for a hundred thousand rendered stills. Asking it at the
same time which facial components are present (one linear layer, binary cross-entropy) gets it going; the weight of
that question falls to zero well before the end, and the layer is thrown away.
"""

import torch
from torch import nn


class WithComponentLoss(nn.Module):
    """`model`, whose training loss gets the component loss added with a weight that falls linearly to zero.

    Args:
        model: returns `loss` and `video_embeds (B, D)`.
        num_components: length of the `components` column.
        num_steps: training steps after which the weight is zero.
    """

    def __init__(self, model: nn.Module, num_components: int, num_steps: int):
        super().__init__()
        self.model = model
        self.component_head = nn.Linear(model.config.projection_dim, num_components)
        self.num_steps = num_steps
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def forward(self, components: torch.Tensor, **inputs):
        """`components (B, num_components)` of 0 and 1; everything else goes to the model."""
        outputs = self.model(**inputs)
        if self.training:
            weight = (1 - self.step / self.num_steps).clamp(min=0.0)
            # The head sees the embedding at CLIP's usual length: unit vectors of a hundred numbers learn slowly.
            logits = self.component_head(outputs.video_embeds * self.component_head.in_features**0.5)
            component_loss = nn.functional.binary_cross_entropy_with_logits(logits, components, reduction="none")
            outputs.loss = outputs.loss + weight * component_loss.sum(dim=1).mean()
            self.step += 1
        return outputs
