# SPDX-License-Identifier: Apache-2.0
"""Optimizer, learning rate schedule and trainable parameters of a recipe."""

import re

import torch
from transformers import get_scheduler

from training.recipe import OptimRecipe


def set_trainable(model: torch.nn.Module, learning_rates: dict, may_freeze_all: bool = False) -> dict[str, float]:
    """Freezes parameters according to the recipe; returns name -> learning rate for the others.

    The first expression of `learning_rates` that matches the full name applies; null freezes. All parameters can be
    frozen only with `may_freeze_all`, for runs without training.

    Raises:
        ValueError: a parameter matches no expression, an expression matches no parameter, a rate is negative, or
            nothing is left to train.
    """
    rates, used = {}, set()
    for name, parameter in model.named_parameters():
        pattern = next((p for p in learning_rates if re.fullmatch(p, name)), None)
        if pattern is None:
            raise ValueError(
                f"optim.learning_rates has no expression for the parameter {name}; it has: {list(learning_rates)}"
            )
        used.add(pattern)
        rate = learning_rates[pattern]
        if rate is not None and not (isinstance(rate, (int, float)) and rate >= 0):
            raise ValueError(f"optim.learning_rates[{pattern!r}] is {rate!r}, but must be null or at least 0")
        parameter.requires_grad_(rate is not None)
        if rate is not None:
            rates[name] = float(rate)
    if unused := [pattern for pattern in learning_rates if pattern not in used]:
        raise ValueError(f"optim.learning_rates: no parameter matches {', '.join(map(repr, unused))}")
    if not rates and not may_freeze_all:
        raise ValueError("optim.learning_rates freezes every parameter: there is nothing to train")
    return rates


def build_optimizer(model: torch.nn.Module, optim: OptimRecipe, rates: dict[str, float]) -> torch.optim.Optimizer:
    """Builds the optimizer, with a parameter group per learning rate; by default vectors and scalars do not decay."""
    groups: dict[tuple[float, float], list] = {}
    for name, parameter in model.named_parameters():
        if name in rates:
            decay = optim.weight_decay if parameter.ndim >= 2 or optim.decay_all else 0.0
            groups.setdefault((rates[name], decay), []).append(parameter)
    groups = [{"params": params, "lr": lr, "weight_decay": decay} for (lr, decay), params in groups.items()]
    if optim.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=optim.momentum)
    return torch.optim.AdamW(groups, betas=tuple(optim.betas))


def build_scheduler(optimizer: torch.optim.Optimizer, optim: OptimRecipe, steps_per_epoch: int):
    """Builds the per-step schedule with linear warmup from 0 during `optim.warmup`; milestones are in epochs."""
    steps = optim.epochs * steps_per_epoch
    num_warmup = int(optim.warmup * steps)
    if optim.schedule == "milestones":
        milestones = [epoch * steps_per_epoch for epoch in optim.milestones]
        if num_warmup == 0:
            return torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)
        return torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: min(1.0, step / num_warmup) * 0.1 ** sum(step >= milestone for milestone in milestones),
        )
    name = optim.schedule
    if name == "constant" and num_warmup:  # transformers ignores the warmup of "constant"
        name = "constant_with_warmup"
    return get_scheduler(name, optimizer, num_warmup, steps)
