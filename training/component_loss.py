# SPDX-License-Identifier: Apache-2.0
"""An auxiliary loss that helps towers trained from scratch.

With the contrastive loss alone, a small ViT stays at chance level for a hundred thousand rendered stills. An auxiliary
loss on the facial components that are present (one linear layer, binary cross-entropy) gets it started. Its weight
falls to zero well before the end, and the layer is discarded.
"""

import torch
from torch import nn


class WithComponentLoss(nn.Module):
    """Wrapper of `model` that adds the component loss in training, with a weight that falls linearly to zero.

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
        """Calls the model with `inputs`; adds the loss on `components (B, num_components)` of 0 and 1 in training."""
        outputs = self.model(**inputs)
        if self.training:
            weight = (1 - self.step / self.num_steps).clamp(min=0.0)
            # Scaled to CLIP's usual norm: the head learns slowly from unit vectors of about 100 dimensions.
            logits = self.component_head(outputs.video_embeds * self.component_head.in_features**0.5)
            component_loss = nn.functional.binary_cross_entropy_with_logits(logits, components, reduction="none")
            outputs.loss = outputs.loss + weight * component_loss.sum(dim=1).mean()
            self.step += 1
        return outputs
