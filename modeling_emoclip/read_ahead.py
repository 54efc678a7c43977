# SPDX-License-Identifier: Apache-2.0
"""The next batch is read while the last one is encoded."""

import threading
from collections.abc import Iterable, Iterator
from contextlib import closing
from queue import Empty, Full, Queue
from typing import Any

_LOOK = 0.05  # seconds between two looks at whether the other side is still there
_GRACE = 1.0  # seconds that a thread has to end before it is left to itself
_ITEM, _END, _ERROR = range(3)


def read_ahead(items: Iterable) -> Iterator[Any]:
    """`items`, each next one made in a thread while the caller works on the last; at most two wait for the caller.

    Order and errors are those of `items`: an error comes after the items before it. When the generator is closed, the
    thread ends with the item that it is making.
    """
    made, stop = Queue(maxsize=1), threading.Event()
    # A daemon: a decoder that hangs shall not keep the process from ending.
    thread = threading.Thread(target=_make, args=(items, made, stop), name="read_ahead", daemon=True)
    thread.start()
    try:
        while True:
            kind, item = _get(made)
            if kind == _END:
                return
            if kind == _ERROR:
                raise item
            yield item
    finally:
        stop.set()
        thread.join(_GRACE)


class PipelinedIterator:
    """What `Pipeline.get_iterator` returns, reading ahead; without a thread left behind when a result is an error."""

    def __init__(self, results):
        self.results, self.loader = results, results.loader.loader  # postprocess <- forward <- DataLoader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        with closing(read_ahead(self.loader)) as batches:
            self.results.loader.loader = batches
            yield from self.results


def _get(made: Queue) -> tuple[int, Any]:
    while True:
        try:
            return made.get(timeout=_LOOK)  # without one, Ctrl-C would have to wait on Windows
        except Empty:
            continue


def _make(items: Iterable, made: Queue, stop: threading.Event) -> None:
    try:
        for item in items:
            if not _put(made, (_ITEM, item), stop):
                return
        _put(made, (_END, None), stop)
    except BaseException as error:  # the caller's to handle
        _put(made, (_ERROR, error), stop)


def _put(made: Queue, item: tuple[int, Any], stop: threading.Event) -> bool:
    while not stop.is_set():
        try:
            made.put(item, timeout=_LOOK)
            return True
        except Full:
            continue
    return False


__all__ = ["PipelinedIterator", "read_ahead"]
