# SPDX-License-Identifier: Apache-2.0
"""Pushes folders to a Hub repository, in the background during training and with retries at the end.

Training never waits for the network and never fails because of it: the push of a checkpoint is retried until a newer
one replaces it. The thread reads only snapshots that are no longer written to.
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
ATTEMPTS = 6  # of the final, blocking push: over 2.5 minutes
# Seconds without data until a connection is considered lost; the client itself would wait forever.
LONGEST_SILENCE, SILENCE_AT_THE_START = 300.0, 30.0
REFUSALS_THAT_PASS = (408, 409, 412, 429)  # 4xx status codes that are worth a retry
# Files of earlier pushes to delete: shards of other weights, pictures of other evaluation sets.
STALE = {
    "model": ["model*.safetensors", "model.safetensors.index.json", "confusion_*.png"],
    "space": ["model/*", "model.txt", "emoclip/*", "modeling_emoclip/*"],
}


class PushError(Exception):
    """Error of a failed push, with a one-line message; `is_refusal` means that a retry would fail again."""

    def __init__(self, message: str, is_refusal: bool = False):
        super().__init__(message)
        self.is_refusal = is_refusal


class HubPusher:
    """Client that pushes folders to one Hub repository, with one commit per push, so that no push is partial.

    Args:
        repo_id: `org/name`, created if it does not exist; a bare name is a repository of the token's owner.
        private: whether the repository must be private; an existing public one is then refused.
        output_dir: output folder of the run; snapshots are queued there in `hub.pending` and `hub.pushing`.
        repo_type: "model", or "space" for a folder of `training/publish/space.py`.
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
        """Finds or creates the repository and returns its URL.

        Raises:
            PushError: there is no token, network or write access, or the repository is public but must be private.
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
        except Exception as error:  # a dozen exception classes from three libraries
            raise PushError(reason(error), is_refusal(error)) from error
        return self.url

    def visibility(self) -> str | None:
        """Returns the visibility of the existing repository, "public" or "private"; `None` if there is none."""
        try:
            return "private" if HfApi().repo_info(self.repo_id, repo_type=self.repo_type).private else "public"
        except RepositoryNotFoundError:
            return None

    def push_soon(self, write: Callable[[Path], None], message: str) -> None:
        """Takes a snapshot and queues it for a push in the background; it replaces an older one in the queue.

        Args:
            write: function that writes the snapshot to the given folder; called immediately, in this thread.
            message: commit message.
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
                # A daemon thread, so that a hanging push does not keep the process alive.
                self._thread = threading.Thread(target=self._work, name="hub-push", daemon=True)
                self._thread.start()
        except Exception as error:  # a full disk or a bad card must not end the training
            logger.warning("%s: no snapshot of '%s': %s; training goes on", self.repo_id, message, reason(error))

    def finish(self, folder: Path, message: str) -> str:
        """Stops the background thread, pushes `folder` with retries, and returns the commit.

        Raises:
            PushError: all attempts failed; the message names the folder, which is unchanged.
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
        """Waits for the push in progress and discards queued snapshots."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        for folder in (self._pending, self._pushing):
            shutil.rmtree(folder, ignore_errors=True)

    def _work(self) -> None:
        """Runs in the thread: pushes the newest queued snapshot, until stopped."""
        wait = FIRST_WAIT
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None or self._is_stopped)
                if self._is_stopped:
                    return
                message, self._waiting = self._waiting, None
                _rename(self._pending, self._pushing)
            try:
                with disable_progress_bars():  # training has its own bars
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
        """Queues the failed snapshot again, unless a newer one is queued."""
        with self._changed:
            if self._waiting is None:
                _rename(self._pushing, self._pending)
                self._waiting = message

    def _upload(self, folder: Path, message: str) -> str:
        if self.url is None:
            self.open()
        get_session().timeout = LONGEST_SILENCE  # again, since the client replaces its session after some errors
        commit = HfApi().upload_folder(
            repo_id=self.repo_id,
            repo_type=self.repo_type,
            folder_path=folder,
            commit_message=message,
            delete_patterns=STALE[self.repo_type],
        )
        return commit.oid


def reason(error: Exception) -> str:
    """Shortens an error message to one line; those of the Hub have several paragraphs."""
    if isinstance(error, LocalTokenNotFoundError):
        return "no token was found; log in with `hf auth login` or set HF_TOKEN"
    if isinstance(error, RuntimeError) and error.__cause__:  # names the file, but not the reason
        error = error.__cause__
    text = re.sub(r"For more information check: \S+", "", str(error))
    return " ".join(text.split())[:500] or type(error).__name__


def is_refusal(error: Exception) -> bool:
    """Returns whether a retry would fail again, for example without a token or write access."""
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
