# SPDX-License-Identifier: Apache-2.0
"""Folders -> a repository of the Hub, in the background while training goes on, and for certain at the end.

Training never waits for the network and never ends because of it: a checkpoint that cannot be pushed is tried again
until a newer one takes its place. The thread only ever reads a snapshot that nobody else writes to.
"""

import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi, get_session
from huggingface_hub.errors import (
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import disable_progress_bars

logger = logging.getLogger(__name__)

FIRST_WAIT, LONGEST_WAIT = 5.0, 300.0  # seconds before the next attempt, doubled each time
ATTEMPTS = 6  # of the last push, for which somebody waits: over 2.5 minutes
# Seconds without a byte, after which a connection counts as lost; the client itself would wait for ever.
LONGEST_SILENCE, SILENCE_AT_THE_START = 300.0, 30.0
REFUSALS_THAT_PASS = (408, 409, 412, 429)  # of the answers 4xx
# Of an earlier push and not in this one: parts of other weights, pictures of other sets.
STALE = {
    "model": ["model*.safetensors", "model.safetensors.index.json", "confusion_*.png"],
    "space": ["model/*", "model.txt"],
}


class PushError(Exception):
    """Something was not pushed; the message is one line. With `is_refusal` another attempt would change nothing."""

    def __init__(self, message: str, is_refusal: bool = False):
        super().__init__(message)
        self.is_refusal = is_refusal


class HubPusher:
    """Pushes to one repository, one commit a push: the Hub never shows half of it.

    Args:
        repo_id: `org/name`, made if it does not exist; a name alone is a repository of the token's owner.
        private: whether only its owner may read it; one that is public already is then refused.
        output_dir: of the run; snapshots that wait are kept there, in `hub.pending` and `hub.pushing`.
        repo_type: "model", or "space" for a folder of `training/space.py`.
    """

    def __init__(self, repo_id: str, private: bool, output_dir: Path, repo_type: str = "model"):
        self.repo_id, self.private, self.repo_type = repo_id, private, repo_type
        self.url: str | None = None
        self._pending, self._pushing = output_dir / "hub.pending", output_dir / "hub.pushing"
        self._changed = threading.Condition()  # guards the two fields below and the names of the two folders
        self._waiting: str | None = None  # commit message of the snapshot in `_pending`
        self._is_stopped = False
        self._thread: threading.Thread | None = None

    def open(self) -> str:
        """Finds or makes the repository; returns its address.

        Raises:
            PushError: without a token, a network or the right to write, or because it is public and must not be.
        """
        try:
            get_session().timeout = SILENCE_AT_THE_START
            user = HfApi().whoami()["name"]
            if "/" not in self.repo_id:
                self.repo_id = f"{user}/{self.repo_id}"
            if self.private and self.visibility() == "public":
                raise PushError("it exists and is public; make it private or choose another", is_refusal=True)
            kind = {"repo_type": self.repo_type} | ({"space_sdk": "gradio"} if self.repo_type == "space" else {})
            self.url = str(HfApi().create_repo(self.repo_id, private=self.private, exist_ok=True, **kind))
        except Exception as error:  # a dozen classes of three libraries
            raise PushError(reason(error), is_refusal(error)) from error
        return self.url

    def visibility(self) -> str | None:
        """Of the repository as it is, which may be older than this run: "public" or "private"; `None` without one."""
        try:
            return "private" if HfApi().repo_info(self.repo_id, repo_type=self.repo_type).private else "public"
        except RepositoryNotFoundError:
            return None

    def push_soon(self, write: Callable[[Path], None], message: str) -> None:
        """Takes a snapshot and returns; it is pushed in the background, in place of an older one that still waits.

        Args:
            write: writes the snapshot into the folder that it is given. It is called now, in this thread.
            message: of the commit.
        """
        unfinished = self._pending.with_name("hub.unfinished")
        try:
            shutil.rmtree(unfinished, ignore_errors=True)
            write(unfinished)
            with self._changed:
                _rename(unfinished, self._pending)
                self._waiting = message
                self._changed.notify_all()
            if self._thread is None:
                # A daemon: a push that hangs must not keep a process alive that is done or was stopped.
                self._thread = threading.Thread(target=self._work, name="hub-push", daemon=True)
                self._thread.start()
        except Exception as error:  # a full disk, a card that cannot be filled: training is worth more
            logger.warning("%s: no snapshot of '%s': %s; training goes on", self.repo_id, message, reason(error))

    def finish(self, folder: Path, message: str) -> str:
        """Ends the work in the background, pushes `folder` and returns the commit; waits for as long as that takes.

        Raises:
            PushError: it could not be pushed, often enough tried; names the folder, which is as it was.
        """
        self.stop()
        wait = FIRST_WAIT
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._upload(folder, message)
            except Exception as error:  # see `open`
                if is_refusal(error) or attempt == ATTEMPTS:
                    times = "" if attempt == 1 else f" ({attempt} attempts)"
                    raise PushError(
                        f"not pushed to {self.repo_id}{times}: {reason(error)}; the complete folder is {folder}",
                        is_refusal(error),
                    ) from error
                logger.warning("%s: %s; next attempt in %g s", self.repo_id, reason(error), wait)
                time.sleep(wait)
                wait = min(2 * wait, LONGEST_WAIT)

    def stop(self) -> None:
        """Waits for a push that is under way, and drops what else waits."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        for folder in (self._pending, self._pushing):
            shutil.rmtree(folder, ignore_errors=True)

    def _work(self) -> None:
        """The thread: pushes what waits, the newest first and only."""
        wait = FIRST_WAIT
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None or self._is_stopped)
                if self._is_stopped:
                    return
                message, self._waiting = self._waiting, None
                _rename(self._pending, self._pushing)
            try:
                with disable_progress_bars():  # training has its own
                    self._upload(self._pushing, message)
                shutil.rmtree(self._pushing)
                wait = FIRST_WAIT
            except Exception as error:  # see `open`
                logger.warning("%s: '%s' not pushed: %s; training goes on", self.repo_id, message, reason(error))
                if not is_refusal(error):
                    self._put_back(message)
                with self._changed:
                    self._changed.wait_for(lambda: self._is_stopped, timeout=wait)
                wait = min(2 * wait, LONGEST_WAIT)

    def _put_back(self, message: str) -> None:
        """What was not pushed waits again, unless something newer does."""
        with self._changed:
            if self._waiting is None:
                _rename(self._pushing, self._pending)
                self._waiting = message

    def _upload(self, folder: Path, message: str) -> str:
        if self.url is None:
            self.open()
        get_session().timeout = LONGEST_SILENCE  # the client makes a new session after some errors
        commit = HfApi().upload_folder(
            repo_id=self.repo_id,
            repo_type=self.repo_type,
            folder_path=folder,
            commit_message=message,
            delete_patterns=STALE[self.repo_type],
        )
        return commit.oid


def reason(error: Exception) -> str:
    """One line; the Hub's errors have paragraphs."""
    if isinstance(error, LocalTokenNotFoundError):
        return "no token was found; log in with `hf auth login` or set HF_TOKEN"
    if isinstance(error, RuntimeError) and error.__cause__:  # of one file, which it names, without the reason
        error = error.__cause__
    text = re.sub(r"For more information check: \S+", "", str(error))
    return " ".join(text.split())[:500] or type(error).__name__


def is_refusal(error: Exception) -> bool:
    """Whether the same again would be refused again, as without a token or the right to write."""
    if isinstance(error, PushError):
        return error.is_refusal
    if isinstance(error, RuntimeError) and error.__cause__:
        error = error.__cause__
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return 400 <= status < 500 and status not in REFUSALS_THAT_PASS
    return isinstance(error, (LocalTokenNotFoundError, HFValidationError, OfflineModeIsEnabled))


def _rename(folder: Path, to: Path) -> None:
    shutil.rmtree(to, ignore_errors=True)
    os.replace(folder, to)
