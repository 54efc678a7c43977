# SPDX-License-Identifier: Apache-2.0
"""Reader for released `.pth` files that runs no code from them."""

import pickle
import re
from pathlib import Path

import numpy as np
import torch


class RecorderMeter:
    """Stand-in for the class of that name in DFER-CLIP's `main.py`, which is pickled into each checkpoint.

    An instance holds the training curves as numpy arrays, which are not used here.
    """


_RECONSTRUCT = np._core.multiarray._reconstruct
# numpy 2 renamed the module that array pickles refer to. torch itself allows plain containers.
_ALLOWED = [
    (RecorderMeter, "__main__.RecorderMeter"),
    (_RECONSTRUCT, "numpy.core.multiarray._reconstruct"),
    (_RECONSTRUCT, "numpy._core.multiarray._reconstruct"),
    np.ndarray,
    np.dtype,
    np.dtypes.Float32DType,
    np.dtypes.Float64DType,
]
_UNREADABLE = (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, AssertionError)


def read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """Reads the tensors of a checkpoint, in the order of the file.

    Args:
        path: a file written by `torch.save` with a state dict, or a dict with one under `state_dict`.

    Returns:
        Name -> tensor on the CPU, in the file's precision; without the `module.` of (Distributed)DataParallel.

    Raises:
        ValueError: it cannot be read, holds more than weights and DFER-CLIP's recorder, or holds no state dict.
        OSError: there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file")
    try:
        with torch.serialization.safe_globals(_ALLOWED):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message recommends loading the file unsafely, so it is not passed on.
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f": {found[1]}" if found else ""
        raise ValueError(
            f"{path} is damaged, or holds more than weights{what}; it was refused and nothing in it was run"
        ) from None
    except _UNREADABLE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is not a whole file that torch.save wrote: {reason}") from None
    return _checked_state(content, path)


def _checked_state(content, path: Path) -> dict[str, torch.Tensor]:
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state:
        raise ValueError(f"{path} holds no state dict, but {type(content if state is None else state).__name__}")
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise ValueError(f"{path}: the key {key!r} does not fit: it holds {type(value).__name__}, not a tensor")
        if value.layout != torch.strided or value.is_meta or not value.is_floating_point():
            raise ValueError(f"{path}: the key {key!r} does not fit: it is {value.dtype}, {value.layout}")
    return {key.removeprefix("module."): value for key, value in state.items()}
