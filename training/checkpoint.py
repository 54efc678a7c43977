# SPDX-License-Identifier: Apache-2.0
"""Output folder of a run with its lock, and atomic checkpoints with the training state and the best weights."""

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from accelerate import Accelerator
from filelock import FileLock, Timeout
from safetensors.torch import load_file

from training.recipe import Recipe, dump_recipe, load_recipe

SELECTED = "selected.safetensors"


@dataclass
class Progress:
    """Progress of a training run; together with the weights it determines every later step."""

    num_processes: int = 1
    epoch: int = 0
    """Finished epochs."""
    step: int = 0
    """Finished steps of the current epoch."""
    loss_sum: float = 0.0
    """Sum of the losses of those steps."""
    seconds: float = 0.0
    """Total training time, including the time before each resumption."""
    history: list[dict] = field(default_factory=list)
    """One record per finished epoch."""
    clips: str = ""
    """Digest of the training clips, `Clips.digest`; a checkpoint with another digest is not resumed."""
    selected: int | None = None
    """Index in `history` of the epoch whose weights are kept."""


def check_output_dir(recipe: Recipe) -> None:
    """Raises a FileExistsError if the output folder contains the run of another recipe."""
    written = Path(recipe.run.output_dir) / "recipe.yaml"
    results = (written.with_name(name) for name in ("metrics.json", "checkpoint", "checkpoint.previous"))
    if not written.exists() or not any(result.exists() for result in results):  # stopped before any checkpoint
        return
    earlier = load_recipe(written)
    # These fields do not change the experiment.
    earlier.run.resume, earlier.run.output_dir = recipe.run.resume, recipe.run.output_dir
    earlier.title, earlier.reference = recipe.title, recipe.reference
    if recipe.data.evaluate_what_there_is and not recipe.data.evaluation:  # filled in when the recipe runs
        earlier.data.evaluation, earlier.data.validation_split = {}, recipe.data.validation_split
    if earlier != recipe:
        raise FileExistsError(
            f"run.output_dir={recipe.run.output_dir} holds the run of another recipe (see {written}); choose another "
            "folder, or remove that one"
        )


def open_output_dir(recipe: Recipe) -> Path:
    """Creates the output folder and writes the resolved recipe to it; removes the metrics.json of an earlier run."""
    check_output_dir(recipe)
    output_dir = Path(recipe.run.output_dir)
    with clear_os_errors("run.output_dir", output_dir):
        output_dir.mkdir(parents=True, exist_ok=True)
        (output_dir / "metrics.json").unlink(missing_ok=True)
        (output_dir / "recipe.yaml").write_text(dump_recipe(recipe, output_dir), encoding="utf-8")
    return output_dir


@contextlib.contextmanager
def clear_os_errors(what: str, path: Path) -> Iterator[None]:
    """Reports write errors, such as a full disk or a read-only folder, in one line."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{what}: cannot write {path}: {error.strerror}") from None


def save_checkpoint(accelerator: Accelerator, model, progress: Progress, checkpoint: Path, selects: bool) -> None:
    """Saves the training state and the selected weights; the old checkpoint is kept until the new one is complete.

    Args:
        model: the unwrapped model.
        progress: the state after the last finished step.
        checkpoint: the folder.
        selects: whether to keep the weights of `model`; otherwise the previously selected weights are kept.
    """
    unfinished, previous = checkpoint.with_name("checkpoint.unfinished"), previous_of(checkpoint)
    with clear_os_errors(f"the last whole checkpoint is {checkpoint}", unfinished):
        if accelerator.is_main_process:
            shutil.rmtree(unfinished, ignore_errors=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(unfinished)
        accelerator.wait_for_everyone()  # all processes have written their parts
        weights = accelerator.get_state_dict(model) if selects else {}
        if accelerator.is_main_process:
            (unfinished / "progress.json").write_text(json.dumps(dataclasses.asdict(progress)))
            if selects:
                weights = {name: weight.contiguous() for name, weight in weights.items()}
                accelerator.save(weights, unfinished / SELECTED, safe_serialization=True)
            elif (last_whole(checkpoint) / SELECTED).exists():
                link_or_copy(last_whole(checkpoint) / SELECTED, unfinished / SELECTED)
            if checkpoint.exists():  # otherwise an earlier process was killed here, and only `previous` is complete
                shutil.rmtree(previous, ignore_errors=True)
                os.replace(checkpoint, previous)
            os.replace(unfinished, checkpoint)
            shutil.rmtree(previous, ignore_errors=True)
        accelerator.wait_for_everyone()


def load_checkpoint(accelerator: Accelerator, checkpoint: Path, clips: str = "") -> Progress | None:
    """Loads the last complete checkpoint into the objects prepared by `accelerator`; returns `None` if there is none.

    Raises:
        ValueError: the number of processes or the digest `clips` differs from the checkpoint's; so would the batches.
    """
    checkpoint = last_whole(checkpoint)
    if not checkpoint.exists():
        return None
    progress = Progress(**json.loads((checkpoint / "progress.json").read_text()))
    if progress.num_processes != accelerator.num_processes:
        raise ValueError(
            f"{checkpoint} was written by {progress.num_processes} processes, but this run has "
            f"{accelerator.num_processes}"
        )
    if clips and progress.clips and clips != progress.clips:
        raise ValueError(
            f"{checkpoint} was trained on other clips, captions or labels than there are now: the data set has "
            "changed. Train anew in another run.output_dir, or bring the earlier data back"
        )
    accelerator.load_state(checkpoint)
    return progress


def load_selected(model, checkpoint: Path) -> None:
    """Loads the weights of the epoch selected by `run.select_on` into `model`."""
    model.load_state_dict(load_file(last_whole(checkpoint) / SELECTED))


def last_whole(checkpoint: Path) -> Path:
    """Returns the newest complete checkpoint: the previous one if `save_checkpoint` was killed between its renames."""
    return checkpoint if checkpoint.exists() else previous_of(checkpoint)


def link_or_copy(source: Path, to: Path) -> None:
    """Hard-links a file, or copies it where the file system has no hard links, as exFAT and some network drives."""
    try:
        os.link(source, to)
    except OSError:
        shutil.copyfile(source, to)


@contextlib.contextmanager
def locked_output_dir(output_dir: Path) -> Iterator[None]:
    """Locks the output folder against other training runs; in a distributed run, rank 0 holds the lock.

    Raises:
        BlockingIOError: another training run holds the lock.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    with clear_os_errors("run.output_dir", output_dir):
        output_dir.mkdir(parents=True, exist_ok=True)
        lock = FileLock(output_dir / ".training.lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            lock = None
    if lock is None:
        raise BlockingIOError(f"run.output_dir={output_dir}: another training is at work there")
    with lock:
        yield


def previous_of(checkpoint: Path) -> Path:
    """Returns the path of the previous checkpoint, which exists while a new one replaces it."""
    return checkpoint.with_name("checkpoint.previous")
