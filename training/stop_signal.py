# SPDX-License-Identifier: Apache-2.0
"""Handling of Ctrl-C and SIGTERM in training: the step is finished and a checkpoint saved."""

import signal

import torch
from accelerate import Accelerator


class StopSignal:
    """Context manager that records Ctrl-C and SIGTERM: check `requested()` per step. A second Ctrl-C ends at once."""

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
        """Returns the signal number received by any process, or `None`, so that all stop after the same step."""
        if self.accelerator.num_processes == 1:
            return self.received
        received = torch.tensor([self.received or 0], device=self.accelerator.device)
        return int(self.accelerator.gather(received).max()) or None
