# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_LONGEST_SUFFIX = 20  # characters, far more than those of formats have


@contextlib.contextmanager
def written(path: str | Path) -> Iterator[Path]:
    """Yields a path to write to, which becomes `path` on success and leaves nothing on errors or Ctrl-C.

    Raises:
        OSError: `path` cannot be written; the message names it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Each writer has its own short name, since `path.name` may be as long as names can be. It keeps the suffix, by
    # which matplotlib and FFmpeg choose a format. tempfile would change the permissions.
    suffix = path.suffix if len(path.suffix) <= _LONGEST_SUFFIX else ""
    unfinished = path.with_name(f".unfinished.{os.urandom(8).hex()}{suffix}")
    try:
        yield unfinished
        os.replace(unfinished, path)
    except OSError as error:
        if error.filename is None or Path(error.filename) == unfinished:
            raise OSError(error.errno, f"cannot write {path}: {error.strerror}") from None
        raise
    finally:
        unfinished.unlink(missing_ok=True)


def write_text(text: str, path: str | Path | None) -> str:
    """Writes a text, if a path is given, and returns it."""
    if path is not None:
        with written(path) as unfinished:
            unfinished.write_text(text, encoding="utf-8", newline="\n")
    return text


__all__ = ["write_text", "written"]
