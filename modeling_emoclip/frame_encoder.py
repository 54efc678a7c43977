# SPDX-License-Identifier: Apache-2.0
"""CLIP's image tower as the pipeline runs it: in the precision and the batch shape that the machine is fast with.

The model stays as it is. docs/performance.md has what each choice here gains. Shapes: N frames, D embedding width.
"""

import copy
import warnings

import torch
from torch import nn
from transformers.activations import QuickGELUActivation
from transformers.utils import logging

from .weights_state import is_plain, weights_state

logger = logging.get_logger(__name__)

# More make a CPU no faster, and memory grow; a GPU takes more to be filled.
FRAMES_AT_ONCE = {"cpu": 64}
FRAMES_AT_ONCE_ELSEWHERE = 256
_WIDE = 256  # hidden size; in narrower towers little of the time is in matrix products, which 16 bits make faster


def fast_dtype(model) -> torch.dtype:
    """bfloat16 for a float32 model whose device multiplies matrices faster in it; else the model's own."""
    if model.dtype is not torch.float32 or model.config.vision_config.hidden_size < _WIDE:
        return model.dtype
    device = model.device.type
    if device == "cpu":  # without such instructions bfloat16 is up to a hundred times slower
        can = torch.cpu.get_capabilities()
        is_fast = bool(can.get("amx_bf16") or can.get("avx512_bf16"))
    else:
        is_fast = device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if is_fast else torch.float32


class FrameEncoder:
    """Frames `(N, 3, height, width)` -> embeddings `(N, D)`, of the model's dtype, on its device; no gradients.

    In the model's own dtype it gives the model's own numbers and shares its weights. In another one it keeps a
    rounded copy of the tower's weights, made anew when those change.

    Args:
        model: `EmoCLIPModel`.
        dtype: of the image tower: `"fast"` is `fast_dtype`, `None` the model's.
        int8: round the tower's linear layers to 8 bits, their inputs frame by batch as they come; on a CPU only.
        compile: let torch.compile make one program of the tower, for each number of frames that comes.

    Raises:
        ValueError: an unknown dtype, or `int8` together with a dtype, or where it cannot be.
    """

    def __init__(self, model, dtype: torch.dtype | str | None = None, int8: bool = False, compile: bool = False):
        if isinstance(dtype, str) and dtype != "fast":
            dtype = getattr(torch, dtype, dtype)
        if not (dtype in (None, "fast") or (isinstance(dtype, torch.dtype) and dtype.is_floating_point)):
            raise ValueError(f"dtype is {dtype!r}, but must be 'fast', None, or a torch dtype of floats")
        if int8 and (dtype not in (None, "fast", torch.float32) or model.device.type != "cpu"):
            raise ValueError(f"int8 needs float32 on a CPU, but dtype is {dtype} and the model on {model.device}")
        self.model, self.wanted, self.int8, self.compile = model, dtype, int8, compile
        self._made: tuple[tuple, nn.Module] | None = None  # from which weights, and what

    @property
    def dtype(self) -> torch.dtype:
        """Of the image tower."""
        if self._is_left_alone():
            return self.model.dtype
        if self.int8:
            return torch.float32
        if self.wanted == "fast":
            return fast_dtype(self.model)
        return self.wanted or self.model.dtype

    @torch.no_grad()
    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
        tower, device = self._tower(), self.model.device
        at_once = FRAMES_AT_ONCE.get(device.type, FRAMES_AT_ONCE_ELSEWHERE)
        # As even as can be: a small rest would be slow, and for compiled code another shape.
        parts = pixel_values.to(device, self.dtype).tensor_split(-(-len(pixel_values) // at_once))
        pooled = [tower(pixel_values=part, return_dict=True).pooler_output for part in parts]
        return self.model.visual_projection(torch.cat(pooled).to(self.model.dtype))

    def _is_left_alone(self) -> bool:
        """Whether others have made the tower what it is: quantised, spread over devices, or adapted."""
        model = self.model
        if getattr(model, "hf_device_map", None) or getattr(model, "is_quantized", False):
            return True
        if is_plain(model.vision_model):
            return False
        if self.int8 or self.wanted not in (None, "fast", model.dtype):
            logger.warning_once(
                f"the image tower runs in {model.dtype}: dtype and int8 do not change one with adapters or modules of "
                "other packages. Merge adapters first, as by merge_and_unload()"
            )
        return True

    def _tower(self) -> nn.Module:
        state = None if self._is_left_alone() else weights_state(self.model.vision_model)
        if state is None:
            return self.model.vision_model
        made, weights = self._made, (self.dtype, state)
        if made is None or made[0] != weights:
            made = self._made = (weights, self._make())
        return made[1]

    def _make(self) -> nn.Module:
        tower, model = self.model.vision_model, self.model
        if self.int8:
            return self._compiled(_int8(_with_fast_activations(copy.deepcopy(tower))))
        # With a memo the copy has the same parameters, and only modules of its own.
        shared = {id(p): p for p in tower.parameters()} if self.dtype is model.dtype else {}
        return self._compiled(_with_fast_activations(copy.deepcopy(tower, shared)).to(self.dtype))

    def _compiled(self, tower: nn.Module) -> nn.Module:
        tower.eval()
        if self.compile:
            tower.compile()
        return tower


class _InPlaceQuickGELU(nn.Module):
    """transformers' QuickGELU to the last bit, with one new tensor in place of three."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return torch.mul(hidden_states, 1.702).sigmoid_().mul_(hidden_states)


def _with_fast_activations(tower: nn.Module) -> nn.Module:
    for module in list(tower.modules()):
        for name, child in module.named_children():
            if type(child) is QuickGELUActivation:
                setattr(module, name, _InPlaceQuickGELU())
    return tower


def _int8(tower: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchao shall replace it, but does so for new processors only
        return torch.ao.quantization.quantize_dynamic(tower, {nn.Linear}, dtype=torch.qint8)


__all__ = ["FrameEncoder", "fast_dtype"]
