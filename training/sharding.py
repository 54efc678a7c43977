# SPDX-License-Identifier: Apache-2.0
"""Support for FSDP 2, which shards weights, gradients and optimizer states among the processes."""

import copy
import os

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast
from torch import nn

from training.recipe import Recipe


def check_sharding(recipe: Recipe, accelerator: Accelerator) -> None:
    """Checks and adjusts the FSDP settings, if FSDP is enabled; must be called before the model is built.

    Raises:
        ValueError: FSDP 1 is configured, or the recipe uses `optim.ema`.
    """
    if accelerator.distributed_type != DistributedType.FSDP:
        return
    if not accelerator.is_fsdp2:
        raise ValueError("the loop works with FSDP 2, not 1: set fsdp_version: 2 in the config_file of accelerate")
    if recipe.optim.ema is not None:
        raise ValueError(f"optim.ema={recipe.optim.ema} cannot be had with FSDP: set optim.ema=null, or train without")
    # With the default, all processes but one would encode frames and texts, and evaluate, without loaded weights.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    accelerator.state.fsdp_plugin.cpu_ram_efficient_loading = False
    # Autocast is used instead: this policy would round logit_scale, the loss and the reduced gradients to 16 bits.
    accelerator.state.fsdp_plugin.mixed_precision_policy = None


def copy_to_shard(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Copies the model for FSDP, which shards in place; `model` itself stays whole for evaluation and saving.

    Scalar parameters become vectors of length 1, since `fully_shard` rejects scalars.
    """
    broadcast(model.state_dict())  # in place: random initial weights must be equal in all processes
    model = copy.deepcopy(model)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 0:
                setattr(module, name, nn.Parameter(parameter.detach()[None].clone(), parameter.requires_grad))
    model.forward = accelerator.autocast()(model.forward)  # accelerate omits this with FSDP 2
    return model


@torch.no_grad()
def gather_weights(sharded: nn.Module, whole: nn.Module) -> None:
    """Gathers the weights of `sharded`, made by `copy_to_shard(whole)`, into `whole`; every process must call it."""
    weights = whole.state_dict()
    for name, part in sharded.state_dict().items():
        weight = weights[name.replace("_orig_mod.", "")]  # prefix added by torch.compile
        full = part.to(weight.device).full_tensor() if hasattr(part, "full_tensor") else part  # buffers are not split
        weight.copy_(full.view_as(weight))
