# SPDX-License-Identifier: Apache-2.0
"""The output folder of a run: what a stopped training goes on from, and the best weights. Whole, or not there."""

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
    """Where a training stands; what a step does depends on this and on the weights alone."""

    num_processes: int = 1
    epoch: int = 0
    """Finished epochs."""
    step: int = 0
    """Finished steps of the epoch that is under way."""
    loss_sum: float = 0.0
    """Over those steps."""
    seconds: float = 0.0
    """Spent on all this, in every process that went on with it."""
    history: list[dict] = field(default_factory=list)
    """A record for each finished epoch."""
    clips: str = ""
    """Tells the training clips, `Clips.digest`; a checkpoint of other clips is not gone on from."""
    selected: int | None = None
    """Index in `history` of the epoch whose weights are kept."""


def check_output_dir(recipe: Recipe) -> None:
    """Raises a FileExistsError if the output folder holds the run of another recipe."""
    written = Path(recipe.run.output_dir) / "recipe.yaml"
    results = (written.with_name(name) for name in ("metrics.json", "checkpoint", "checkpoint.previous"))
    if not written.exists() or not any(
        result.exists() for result in results
    ):  # a run that never got to its first epoch
        return
    earlier = load_recipe(written)
    # Asking to go on, or naming the folder, the run or the paper's number in another way, makes no other experiment.
    earlier.run.resume, earlier.run.output_dir = recipe.run.resume, recipe.run.output_dir
    earlier.title, earlier.reference = recipe.title, recipe.reference
    if recipe.data.evaluate_what_there_is and not recipe.data.evaluation:  # found out when it runs
        earlier.data.evaluation, earlier.data.validation_split = {}, recipe.data.validation_split
    if earlier != recipe:
        raise FileExistsError(
            f"run.output_dir={recipe.run.output_dir} holds the run of another recipe (see {written}); choose another "
            "folder, or remove that one"
        )


def open_output_dir(recipe: Recipe) -> Path:
    """Makes the folder of the run and writes the resolved recipe into it; the same recipe again starts it anew."""
    check_output_dir(recipe)
    output_dir = Path(recipe.run.output_dir)
    with clear_os_errors("run.output_dir", output_dir):
        output_dir.mkdir(parents=True, exist_ok=True)
        (output_dir / "metrics.json").unlink(missing_ok=True)
        (output_dir / "recipe.yaml").write_text(dump_recipe(recipe, output_dir), encoding="utf-8")
    return output_dir


@contextlib.contextmanager
def clear_os_errors(what: str, path: Path) -> Iterator[None]:
    """A full disk or a folder that cannot be written, said in one line."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{what}: cannot write {path}: {error.strerror}") from None


def save_checkpoint(accelerator: Accelerator, model, progress: Progress, checkpoint: Path, selects: bool) -> None:
    """Everything that a resumed run needs, and the selected weights; the old one stays until the new one is whole.

    Args:
        model: the unwrapped model whose weights are kept if `selects`, otherwise those kept before stay.
        progress: as after the last finished step.
        checkpoint: folder.
    """
    unfinished, previous = checkpoint.with_name("checkpoint.unfinished"), previous_of(checkpoint)
    with clear_os_errors(f"the last whole checkpoint is {checkpoint}", unfinished):
        if accelerator.is_main_process:
            shutil.rmtree(unfinished, ignore_errors=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(unfinished)
        accelerator.wait_for_everyone()  # each has written its part
        weights = accelerator.get_state_dict(model) if selects else {}
        if accelerator.is_main_process:
            (unfinished / "progress.json").write_text(json.dumps(dataclasses.asdict(progress)))
            if selects:
                weights = {name: weight.contiguous() for name, weight in weights.items()}
                accelerator.save(weights, unfinished / SELECTED, safe_serialization=True)
            elif (last_whole(checkpoint) / SELECTED).exists():
                link_or_copy(last_whole(checkpoint) / SELECTED, unfinished / SELECTED)
            if checkpoint.exists():  # else the process was killed here before, and `previous` is the only whole one
                shutil.rmtree(previous, ignore_errors=True)
                os.replace(checkpoint, previous)
            os.replace(unfinished, checkpoint)
            shutil.rmtree(previous, ignore_errors=True)
        accelerator.wait_for_everyone()


def load_checkpoint(accelerator: Accelerator, checkpoint: Path, clips: str = "") -> Progress | None:
    """Puts the last whole checkpoint into what `accelerator` prepared; `None` if there is none.

    Raises:
        ValueError: it was written by another number of processes, or with other training clips than `clips` tells,
            and would go on with other batches.
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
    """The weights of the epoch that `run.select_on` chose."""
    model.load_state_dict(load_file(last_whole(checkpoint) / SELECTED))


def last_whole(checkpoint: Path) -> Path:
    """The newest checkpoint: the older one, if the process was killed between the two renames of save_checkpoint."""
    return checkpoint if checkpoint.exists() else previous_of(checkpoint)


def link_or_copy(source: Path, to: Path) -> None:
    """A second name for a file; a copy where the file system has none, as exFAT and some network drives."""
    try:
        os.link(source, to)
    except OSError:
        shutil.copyfile(source, to)


@contextlib.contextmanager
def locked_output_dir(output_dir: Path) -> Iterator[None]:
    """Keeps others from training in the same folder; of the processes of one training, the first holds the lock.

    Raises:
        BlockingIOError: another training is at work there.
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
    """Where the older checkpoint is while a newer one takes its place."""
    return checkpoint.with_name("checkpoint.previous")
