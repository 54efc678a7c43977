# SPDX-License-Identifier: Apache-2.0
"""Does a Space run? It is started as the Hub does, and asked as a visitor does, in processes of their own.

The Space cannot import this project there, though it may be installed.
"""

import csv
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from training.publish.check_hub_folder import empty_cache

START = """
import os, runpy, sys

class Absent:
    def find_spec(self, name, *rest):
        if name.partition(".")[0] in ("training", "tools", "examples"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
sys.argv = sys.argv[1:]
folder = os.path.dirname(sys.argv[0])
sys.path.insert(0, folder)
import emoclip, modeling_emoclip
assert all(os.path.dirname(os.path.dirname(one.__file__)) == folder for one in (emoclip, modeling_emoclip))
runpy.run_path(sys.argv[0], run_name="__main__")
"""
LONGEST_START = 300.0  # seconds; a model may have to be downloaded
QUESTION = "a smile slowly appearing"


def check_space(folder: Path) -> int:
    """Asks a Space for the time line of its example and searches in it; returns the number of stretches found.

    Raises:
        RuntimeError: it does not start, or does not answer so.
    """
    with running(folder) as space:
        return ask(space.url, folder / "example.mp4", space.temporary)


class Space(NamedTuple):
    url: str
    process: subprocess.Popen
    temporary: Path  # where it may write; what it downloads is there too


@contextmanager
def running(folder: Path) -> Iterator[Space]:
    """Starts a Space in another process and directory, and ends it.

    Raises:
        RuntimeError: it does not start; and whatever was wrong with it, with what it printed.
    """
    with tempfile.TemporaryDirectory(prefix="space.check.", ignore_cleanup_errors=True) as elsewhere:
        env = empty_cache(elsewhere) | {"TMPDIR": elsewhere}
        if (folder / "model").is_dir():
            env["HF_HUB_OFFLINE"] = "1"  # it holds all it needs
        log, port = Path(elsewhere, "log.txt"), free_port()
        command = [sys.executable, "-Iu", "-c", START, str((folder / "app.py").resolve())]
        env["GRADIO_SERVER_PORT"] = str(port)
        with log.open("wb") as output:
            pipes = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT}
            process = subprocess.Popen(command, cwd=elsewhere, env=env, **pipes)
        try:
            wait_for(process, log)
            yield Space(f"http://127.0.0.1:{port}", process, Path(elsewhere))
        except Exception as error:  # a dozen classes of the client
            text = log.read_text(encoding="utf-8", errors="replace")[-3000:]
            raise RuntimeError(f"the Space does not run: {error}\n{text}") from error
        finally:
            end(process)


def end(process: subprocess.Popen):
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(process: subprocess.Popen, log: Path):
    end = time.monotonic() + LONGEST_START
    while b"Running on local URL" not in log.read_bytes():
        if process.poll() is not None:
            raise RuntimeError(f"it ended with exit code {process.returncode}")
        if time.monotonic() > end:
            raise RuntimeError(f"it did not start within {LONGEST_START:g} s")
        time.sleep(0.1)


def ask(url: str, example: Path, downloads: Path) -> int:
    from gradio_client import Client, handle_file

    client = Client(url, download_files=str(downloads), verbose=False, analytics_enabled=False)
    try:
        answer = client.predict(video=handle_file(example), api_name="/timeline")
        table = next(part for part in answer if str(part).endswith(".csv"))
        stretches = next(part["data"] for part in answer if isinstance(part, dict) and "data" in part)
        with open(table, encoding="utf-8", newline="") as rows:
            if not stretches or not list(csv.DictReader(rows)):
                raise RuntimeError("nobody was found in the example")
        if not client.predict(QUESTION, api_name="/search")["data"]:
            raise RuntimeError("the search found nothing")
    finally:
        client.close()
    return len(stretches)
