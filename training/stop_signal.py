# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and SIGTERM end a training after its step, with a checkpoint; and other commands at once."""

import signal
import sys
from typing import NoReturn

import torch
from accelerate import Accelerator


class StopSignal:
    """`with StopSignal(accelerator) as stop:` and after each step `stop.requested()`; a second Ctrl-C ends at once."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.received: int | None = None

    def __enter__(self):
        self.handlers = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def _receive(self, number, _):
        self.received = number
        signal.signal(number, self.handlers[number])

    def requested(self) -> int | None:
        """The signal's number once it came, to any of the processes: all must stop after the same step."""
        if self.accelerator.num_processes == 1:
            return self.received
        received = torch.tensor([self.received or 0], device=self.accelerator.device)
        return int(self.accelerator.gather(received).max()) or None


def end_by_ctrl_c() -> NoReturn:
    """Ends the process by the signal itself, as a program does that knows nothing of Ctrl-C.

    Python's own ending, which takes seconds to put torch away, does not take place: workers must have ended before.
    """
    sys.stdout.flush()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.raise_signal(signal.SIGINT)
    raise KeyboardInterrupt  # where the system has no such signal
