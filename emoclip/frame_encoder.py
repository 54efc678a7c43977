# SPDX-License-Identifier: Apache-2.0
"""CLIP's image tower as the pipeline runs it, in the precision and batch shape that the machine is fast with.

The model itself is not changed. docs/performance.md says what each choice gains. Shapes: N frames, D embedding width.
"""

import copy

import torch
from torch import nn
from transformers.activations import QuickGELUActivation
from transformers.utils import logging

logger = logging.get_logger(__name__)

FRAMES_AT_ONCE, FRAMES_AT_ONCE_ON_CPU = 256, 64  # more make a CPU no faster, and memory grow
_WIDE = 256  # hidden size; narrower towers spend little time in matrix products, which 16 bits make faster
_SAMPLES = 64  # numbers of each weight that `weights_state` compares


def fast_dtype(model) -> torch.dtype:
    """Returns bfloat16 for a float32 model on a device that is faster with it, or the model's own dtype."""
    if model.dtype is not torch.float32 or model.config.vision_config.hidden_size < _WIDE:
        return model.dtype
    if model.device.type == "cpu":  # without such instructions bfloat16 is up to a hundred times slower
        can = torch.cpu.get_capabilities()
        is_fast = bool(can.get("amx_bf16") or can.get("avx512_bf16"))
    else:
        is_fast = model.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if is_fast else torch.float32


class FrameEncoder:
    """Encodes frames `(N, 3, height, width)` as `(N, D)`, in the model's dtype, on its device, without gradients.

    In the model's own dtype it gives the model's own numbers and shares its weights. In another dtype it keeps a
    converted copy of the tower, which it makes anew when the weights change.

    Args:
        model: `EmoCLIPModel`.
        dtype: dtype of the image tower; `"fast"` is `fast_dtype`, `None` the model's.
        compile: whether to run the tower with torch.compile, which compiles once for each number of frames.

    Raises:
        ValueError: an unknown dtype.
    """

    def __init__(self, model, dtype: torch.dtype | str | None = None, compile: bool = False):
        if isinstance(dtype, str) and dtype != "fast":
            dtype = getattr(torch, dtype, dtype)
        if not (dtype in (None, "fast") or (isinstance(dtype, torch.dtype) and dtype.is_floating_point)):
            raise ValueError(f"dtype is {dtype!r}, but must be 'fast', None, or a torch dtype of floats")
        self.model, self.wanted, self.compile = model, dtype, compile
        self._made: tuple[tuple, nn.Module] | None = None  # the weights' state, and the tower made from them

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the image tower."""
        if self._is_left_alone():
            return self.model.dtype
        return fast_dtype(self.model) if self.wanted == "fast" else self.wanted or self.model.dtype

    @torch.no_grad()
    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
        tower, device = self._tower(), self.model.device
        at_once = FRAMES_AT_ONCE_ON_CPU if device.type == "cpu" else FRAMES_AT_ONCE
        # Parts of nearly equal size: a small rest would be slow, and another shape for compiled code.
        parts = pixel_values.to(device, self.dtype).tensor_split(-(-len(pixel_values) // at_once))
        pooled = [tower(pixel_values=part, return_dict=True).pooler_output for part in parts]
        return self.model.visual_projection(torch.cat(pooled).to(self.model.dtype))

    def _is_left_alone(self) -> bool:
        """Returns whether the tower is quantised, spread over devices, or adapted, and so runs as it is."""
        model = self.model
        if getattr(model, "hf_device_map", None) or getattr(model, "is_quantized", False):
            return True
        if is_plain(model.vision_model):
            return False
        if self.wanted not in (None, "fast", model.dtype):
            logger.warning_once(
                f"the image tower runs in {model.dtype}: dtype does not change one with adapters or modules of other "
                "packages. Merge adapters first, as by merge_and_unload()"
            )
        return True

    def _tower(self) -> nn.Module:
        tower = self.model.vision_model
        state = None if self._is_left_alone() else weights_state(tower)
        if state is None:
            return tower
        if self._made is None or self._made[0] != (self.dtype, state):
            # With a memo the copy shares the parameters, and only its modules are new.
            shared = {id(p): p for p in tower.parameters()} if self.dtype is self.model.dtype else {}
            made = _with_fast_activations(copy.deepcopy(tower, shared)).to(self.dtype).eval()
            if self.compile:
                made.compile()
            self._made = ((self.dtype, state), made)
        return self._made[1]


class _InPlaceQuickGELU(nn.Module):
    """transformers' QuickGELU, equal to the last bit, with one new tensor instead of three."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return torch.mul(hidden_states, 1.702).sigmoid_().mul_(hidden_states)


def _with_fast_activations(tower: nn.Module) -> nn.Module:
    for module in list(tower.modules()):
        for name, child in module.named_children():
            if type(child) is QuickGELUActivation:
                setattr(module, name, _InPlaceQuickGELU())
    return tower


def is_plain(*modules: nn.Module) -> bool:
    """Returns whether all modules are PyTorch's, transformers' or this package's.

    Adapters of other packages may be switched on and off without a trace in the weights.
    """
    known = ("torch.nn.", "transformers.", __name__.rpartition(".")[0] + ".")
    return all(type(part).__module__.startswith(known) for module in modules for part in module.modules())


@torch.no_grad()
def weights_state(*modules: nn.Module) -> tuple | None:
    """Returns the state of weights, such that results computed with equal states are equal.

    PyTorch counts changes made in place, but not those through `.data`, by which averaged weights are often swapped;
    so some numbers of each weight are compared too. Changes through `.data` of a few other numbers stay unseen. The
    state is `None`, and nothing may be kept, where `is_plain` does not hold or weights are offloaded.
    """
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    if not tensors or not is_plain(*modules) or any(tensor.is_meta for tensor in tensors):
        return None
    device = tensors[0].device
    autocast = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
    identities = [
        (id(one), one.data_ptr(), 0 if one.is_inference() else one._version, one.shape, one.device, one.dtype)
        for one in tensors
    ]
    flat = (tensor.detach().reshape(-1) for tensor in tensors)
    samples = torch.cat([one[:: max(1, len(one) // _SAMPLES)].to(device, torch.float32) for one in flat])
    return autocast, identities, samples.cpu().numpy().tobytes()


__all__ = ["FrameEncoder", "fast_dtype"]
