# SPDX-License-Identifier: Apache-2.0
"""FSDP 2, under which a process holds a part of each weight, of its gradient and of the optimizer's state."""

import copy
import os

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast
from torch import nn

from training.recipe import Recipe


def check_sharding(recipe: Recipe, accelerator: Accelerator) -> None:
    """Before a model is built: sets what the loop needs of FSDP, if that is on.

    Raises:
        ValueError: FSDP 1, or a recipe with an average of the weights.
    """
    if accelerator.distributed_type != DistributedType.FSDP:
        return
    if not accelerator.is_fsdp2:
        raise ValueError("the loop works with FSDP 2, not 1: set fsdp_version: 2 in the config_file of accelerate")
    if recipe.optim.ema is not None:
        raise ValueError(f"optim.ema={recipe.optim.ema} cannot be had with FSDP: set optim.ema=null, or train without")
    # On by default, and then all processes but one would encode frames and texts, and be scored, with no weights.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    accelerator.state.fsdp_plugin.cpu_ram_efficient_loading = False
    # Autocast instead, as without FSDP: this would round logit_scale, the loss and the shared gradients to 16 bits.
    accelerator.state.fsdp_plugin.mixed_precision_policy = None


def copy_to_shard(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """A copy for FSDP, which takes a model apart in place; `model` stays whole, to be scored and saved.

    Scalars become vectors of one, since `fully_shard` refuses scalars.
    """
    broadcast(model.state_dict())  # in place: what is random must be the same everywhere
    model = copy.deepcopy(model)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 0:
                setattr(module, name, nn.Parameter(parameter.detach()[None].clone(), parameter.requires_grad))
    model.forward = accelerator.autocast()(model.forward)  # which accelerate leaves out with FSDP 2
    return model


@torch.no_grad()
def gather_weights(sharded: nn.Module, whole: nn.Module) -> None:
    """The weights of what was `copy_to_shard(whole)`, back into `whole`; every process must call it."""
    weights = whole.state_dict()
    for name, part in sharded.state_dict().items():
        weight = weights[name.replace("_orig_mod.", "")]  # which torch.compile adds
        full = part.to(weight.device).full_tensor() if hasattr(part, "full_tensor") else part  # a buffer has no parts
        weight.copy_(full.view_as(weight))
