# SPDX-License-Identifier: Apache-2.0
"""Whether what was computed from weights may still be used: a kept result must know all that it depends on."""

from collections import defaultdict

import torch
from torch import nn

_SAMPLES = 64  # numbers of each weight that are compared


class WeightsState:
    """What some modules compute with, as it was at one time. Two that are equal give the same results.

    PyTorch counts changes made in place, but not those through `.data`, by which averaged weights are often swapped in
    and out; so some numbers of each weight are compared too. Changes through `.data` of single numbers that are not
    among them stay unseen.
    """

    def __init__(self, parameters: list[torch.Tensor]):
        device = parameters[0].device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        self._parameters = parameters  # so that no other takes their id
        self._identities = (autocast, [_identity(parameter) for parameter in parameters])
        self._samples = _samples(parameters)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, WeightsState)
            and self._identities == other._identities
            and all(map(torch.equal, self._samples, other._samples))
        )

    __hash__ = None


def weights_state(*parts: nn.Module) -> WeightsState | None:
    """Returns the state of modules; `None` if it cannot be told, and nothing may be kept.

    It cannot where `is_plain` does not hold, nor where weights are offloaded.
    """
    parameters = [tensor for part in parts for tensor in (*part.parameters(), *part.buffers())]
    if not is_plain(*parts) or not parameters or any(parameter.is_meta for parameter in parameters):
        return None
    return WeightsState(parameters)


def is_plain(*parts: nn.Module) -> bool:
    """Whether all modules are PyTorch's, transformers' or this package's.

    An adapter of another package may be switched off, or another one on, without a trace in the weights.
    """
    known = ("torch.nn.", "transformers.", __name__.rpartition(".")[0] + ".")
    return all(type(module).__module__.startswith(known) for part in parts for module in part.modules())


def _identity(parameter: torch.Tensor) -> tuple:
    version = 0 if parameter.is_inference() else parameter._version
    return id(parameter), parameter.data_ptr(), version, parameter.shape, parameter.device, parameter.dtype


@torch.no_grad()
def _samples(parameters: list[torch.Tensor]) -> list[torch.Tensor]:
    """Numbers of each, evenly from its beginning to its end, in one tensor for each device and dtype."""
    parts = defaultdict(list)
    for parameter in parameters:
        flat = parameter.detach().reshape(-1)
        parts[parameter.device, parameter.dtype].append(flat[:: max(1, len(flat) // _SAMPLES)])
    return [torch.cat(some) for some in parts.values()]


__all__ = ["WeightsState", "is_plain", "weights_state"]
