# SPDX-License-Identifier: Apache-2.0
"""The only training loop: a recipe in; weights, processor, metrics.json and recipe.yaml out.

accelerate launch training/train.py training/recipes/synthetic_emoclip.yaml [a.b=c ...]
"""

import argparse
import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import torch
import transformers
from accelerate import Accelerator, skip_first_batches
from accelerate.utils import DataLoaderConfiguration, set_seed
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from training import export
from training.build import Experiment, build, with_evaluation
from training.checkpoint import (
    Progress,
    check_output_dir,
    clear_os_errors,
    load_checkpoint,
    load_selected,
    locked_output_dir,
    open_output_dir,
    save_checkpoint,
)
from training.evaluation import evaluate, predict, validation_loss
from training.gradient_cache import backward_in_chunks
from training.hub_push import HubPusher, PushError
from training.metrics.scores import metrics_of
from training.optimizer import build_optimizer, build_scheduler
from training.predictions import write_results
from training.published import without_secrets
from training.recipe import Recipe, flat_fields, load_recipe
from training.sharding import check_sharding, copy_to_shard, gather_weights
from training.stop_signal import StopSignal


def main(arguments: list[str] | None = None) -> dict:
    """Runs a recipe; returns what it wrote to metrics.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="a yaml file of training/recipes, or one of your own")
    parser.add_argument("overrides", nargs="*", help="recipe fields, as optim.epochs=3")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint: run.resume=true")
    options = parser.parse_intermixed_args(arguments)
    try:
        recipe = load_recipe(options.recipe, [*options.overrides, *(["run.resume=true"] if options.resume else [])])
        check_output_dir(recipe)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    try:
        with locked_output_dir(Path(recipe.run.output_dir)):
            return run(recipe)
    except (BlockingIOError, RecipeError) as error:
        parser.error(str(error))
    except PushError as error:  # the run itself is complete, or has not begun
        parser.exit(1, f"{parser.prog}: {error}\n")


def run(recipe: Recipe) -> dict:
    """Trains and evaluates; the output folder is complete once it holds metrics.json."""
    started = time.perf_counter()
    output_dir = Path(recipe.run.output_dir)
    accelerator = Accelerator(
        mixed_precision=recipe.run.mixed_precision,
        # A recipe's batch is the whole batch; each process takes its part of it.
        dataloader_config=DataLoaderConfiguration(split_batches=True),
        log_with=recipe.run.trackers or None,
        project_dir=output_dir,
    )
    if recipe.optim.batch_size % accelerator.num_processes:
        raise ValueError(
            f"optim.batch_size={recipe.optim.batch_size} cannot be shared among {accelerator.num_processes} processes"
        )
    check_sharding(recipe, accelerator)
    with accelerator.main_process_first(), errors_of_the_recipe():
        recipe = with_evaluation(recipe)
    pusher = None
    if accelerator.is_main_process:
        open_output_dir(recipe)
        pusher = export.start_pushing(recipe)
    accelerator.init_trackers("emoclip", without_secrets(flat_fields(recipe)))
    set_seed(recipe.run.seed)
    cache_dir = Path(recipe.data.cache_dir or datasets.config.HF_DATASETS_CACHE) / "frame_embeds"
    with accelerator.main_process_first(), errors_of_the_recipe():  # the others find what it has prepared and encoded
        experiment = build(recipe, accelerator.device, cache_dir)
    learns = recipe.optim.epochs > 0
    start = evaluate(experiment, recipe, accelerator) if learns and recipe.run.evaluate_start else {}
    prepared = time.perf_counter()
    progress = train(experiment, recipe, accelerator, output_dir, pusher) if learns else Progress()
    trained = time.perf_counter()
    predictions = predict(experiment, recipe, accelerator)
    final = {name: metrics_of(one) for name, one in predictions.items()}
    metrics = {
        "title": recipe.title,
        "start": start if learns else final,
        "final": final,
        "history": progress.history,
        "parameters": sum(p.numel() for p in experiment.model.parameters()),
        "trained_parameters": sum(p.numel() for p in experiment.model.parameters() if p.requires_grad),
        "seconds": round(prepared - started + progress.seconds + time.perf_counter() - trained, 1),
        "hardware": f"{accelerator.num_processes} x {device_name(accelerator.device)}",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    if accelerator.is_main_process:
        write_results(output_dir, predictions, final, progress.history, recipe.title, recipe.run.pictures)
        save(experiment, metrics, output_dir)
    accelerator.end_training()
    if pusher is not None:
        print(export.push_result(pusher, output_dir))
    return metrics


class RecipeError(ValueError):
    """What a recipe asks for cannot be had, as with the data that there are; the message says what to change."""


@contextlib.contextmanager
def errors_of_the_recipe() -> Iterator[None]:
    """Turns what building an experiment refuses into a `RecipeError`; `datasets` wraps what its builders raise."""
    try:
        yield
    except datasets.exceptions.DatasetGenerationError as error:
        cause = error.__cause__
        if not isinstance(cause, (OSError, ValueError)):
            raise
        raise RecipeError(str(cause)) from error
    except (OSError, ValueError) as error:
        raise RecipeError(str(error)) from error


@dataclass
class Training:
    """What the loop works on."""

    accelerator: Accelerator
    model: torch.nn.Module
    loader: DataLoader
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    average: AveragedModel | None
    evaluated: torch.nn.Module
    """The moving average of the weights, if there is one; always a whole model, as FSDP's is not."""
    checkpoint: Path
    progress: Progress
    clock: float
    """When `progress.seconds` was last counted."""


def train(
    experiment: Experiment,
    recipe: Recipe,
    accelerator: Accelerator,
    output_dir: Path,
    pusher: HubPusher | None = None,
) -> Progress:
    """The loop. Leaves the selected epoch's weights in the model; returns what happened.

    Raises:
        SystemExit: 130 after Ctrl-C, 143 after SIGTERM; `run.resume=true` goes on from there.
    """
    training = prepare(experiment, recipe, accelerator, output_dir / "checkpoint")
    progress = training.progress
    with StopSignal(accelerator) as stop:
        while progress.epoch < recipe.optim.epochs and not out_of_patience(progress, recipe.run.patience):
            train_epoch(training, experiment, recipe, stop)
            if accelerator.is_fsdp2:
                gather_weights(training.model, training.evaluated)
            record = {"epoch": progress.epoch + 1, "loss": progress.loss_sum / progress.step}
            record["learning_rate"] = max(training.scheduler.get_last_lr())
            record |= score_epoch(training, experiment, recipe)
            progress.history.append(record)
            progress.epoch, progress.step, progress.loss_sum = progress.epoch + 1, 0, 0.0
            better = is_better(progress, recipe.run.select_on)
            if better:
                progress.selected = len(progress.history) - 1
            accelerator.log(record, step=progress.epoch * len(training.loader))
            if accelerator.is_main_process:
                tqdm.write(", ".join(f"{key} {value:.4g}" for key, value in record.items()))
            keep(training, selects=better)
            if pusher is not None:
                export.push_checkpoint(pusher, experiment, training.evaluated, recipe, progress, training.checkpoint)
            stop_if_requested(stop, training.checkpoint)
    load_selected(experiment.trained, training.checkpoint)
    return progress


def prepare(experiment: Experiment, recipe: Recipe, accelerator: Accelerator, checkpoint: Path) -> Training:
    """Optimizer, schedule and batches; what an earlier run of the recipe left, if it is to go on."""
    optim, run = recipe.optim, recipe.run
    loader = DataLoader(
        experiment.train_clips,
        batch_size=checked_batch_size(experiment, recipe, accelerator),
        sampler=experiment.train_sampler,
        drop_last=True,
        collate_fn=experiment.collator,
        num_workers=0 if experiment.train_clips.frame_embeds is not None else run.num_workers,
    )
    if run.gradient_checkpointing:
        experiment.model.gradient_checkpointing_enable()
    trained = copy_to_shard(experiment.trained, accelerator) if accelerator.is_fsdp2 else experiment.trained
    if run.compile:
        trained.compile()
    optimizer = build_optimizer(trained, optim, experiment.learning_rates)
    scheduler = build_scheduler(optimizer, optim, len(loader))
    model, optimizer, loader, scheduler = accelerator.prepare(trained, optimizer, loader, scheduler)
    average, evaluated = None, experiment.trained
    if optim.ema is not None:
        average = AveragedModel(accelerator.unwrap_model(model), multi_avg_fn=get_ema_multi_avg_fn(optim.ema))
        accelerator.register_for_checkpointing(average)
        evaluated = average.module
    clips = experiment.train_clips.digest()
    with errors_of_the_recipe():
        progress = load_checkpoint(accelerator, checkpoint, clips) if run.resume else None
    progress = progress or Progress(num_processes=accelerator.num_processes, clips=clips)
    return Training(
        accelerator, model, loader, optimizer, scheduler, average, evaluated, checkpoint, progress, time.perf_counter()
    )


def checked_batch_size(experiment: Experiment, recipe: Recipe, accelerator: Accelerator) -> int:
    """The recipe's batch, or as much of it as there are clips; the same number for each process.

    Raises:
        RecipeError: there are too few clips, or the recipe asks for what these clips cannot give.
    """
    clips, wanted, num_processes = experiment.train_clips, recipe.optim.batch_size, accelerator.num_processes
    batch_size = min(wanted, len(clips) - len(clips) % num_processes)
    if batch_size < min(wanted, 2 * num_processes):
        each = f" for each of {num_processes} processes" if num_processes > 1 else ""
        raise RecipeError(
            f"data.train_split={recipe.data.train_split} has {len(clips)} clips to train on, but at least 2 are "
            f"needed{each}"
        )
    if recipe.data.on_error == "skip" and num_processes > 1 and clips.frame_embeds is None:
        raise RecipeError(
            "data.on_error=skip cannot be with several processes that read clips while they train: one that skips a "
            "clip would have a smaller part of the batch than the others. Train in one process, freeze the image "
            "tower, or leave out the clips that training.data.doctor names"
        )
    has_validation = experiment.validation_clips is not None or recipe.run.select_on != "validation_loss"
    if not has_validation and recipe.run.patience is not None:
        raise RecipeError(
            f"run.patience={recipe.run.patience} needs a validation loss, but there are no validation clips: set "
            "data.validation_split or data.validation_share, or run.patience=null"
        )
    if accelerator.is_main_process and batch_size < wanted:
        tqdm.write(f"optim.batch_size is {wanted}, but of {len(clips)} clips a batch has {batch_size}")
    if accelerator.is_main_process and not has_validation:
        tqdm.write("there are no validation clips: the weights of the last epoch are kept")
    return batch_size


def train_epoch(training: Training, experiment: Experiment, recipe: Recipe, stop: StopSignal) -> None:
    """The rest of the epoch that `training.progress` is in."""
    progress, loader, accelerator = training.progress, training.loader, training.accelerator
    training.model.train()
    experiment.train_clips.set_epoch(progress.epoch)
    loader.set_epoch(progress.epoch)  # and through it the sampler, on which accelerate sets its own count otherwise
    batches = skip_first_batches(loader, progress.step) if progress.step else loader
    bar = tqdm(
        batches,
        "training",
        total=len(loader),
        initial=progress.step,
        unit="step",
        leave=False,
        disable=not accelerator.is_main_process,
    )
    for batch in bar:
        progress.loss_sum += train_step(batch, training, experiment, recipe)
        progress.step += 1
        if progress.step == len(loader):
            return
        stopping = stop.requested()
        if stopping or (recipe.run.checkpoint_every and progress.step % recipe.run.checkpoint_every == 0):
            keep(training, selects=False)
        stop_if_requested(stop, training.checkpoint)


def train_step(batch: dict, training: Training, experiment: Experiment, recipe: Recipe) -> float:
    """One step of the optimizer; returns the loss of the whole batch."""
    accelerator, model, optimizer = training.accelerator, training.model, training.optimizer
    step = training.progress.epoch * len(training.loader) + training.progress.step
    # What is random in a step depends on the seed and its number alone, so that a resumed run is the same run.
    torch.manual_seed(recipe.run.seed + 1_000_003 * (step * accelerator.num_processes + accelerator.process_index + 1))
    if not batch:
        raise ValueError("not one clip of a batch can be decoded; the warnings above name them")
    clips = batch.pop("clip_index")
    if recipe.optim.chunk_size is not None:
        loss = backward_in_chunks(model, batch, accelerator, recipe.optim.chunk_size)
    else:
        loss = model(**batch).loss
        accelerator.backward(loss)
    whole_loss = accelerator.reduce(loss.detach(), "mean").item()
    if not math.isfinite(whole_loss):
        raise FloatingPointError(
            f"the loss is {whole_loss} in step {step + 1} (epoch {training.progress.epoch + 1}), with the clips "
            f"{experiment.train_clips.names(clips.tolist())}; the last good checkpoint is {training.checkpoint}"
        )
    if recipe.optim.max_grad_norm is not None:
        accelerator.clip_grad_norm_(model.parameters(), recipe.optim.max_grad_norm)
    optimizer.step()
    training.scheduler.step()
    optimizer.zero_grad()
    if training.average is not None:
        training.average.update_parameters(accelerator.unwrap_model(model))
    if recipe.run.trackers:
        accelerator.log({"step_loss": whole_loss, "step_lr": max(training.scheduler.get_last_lr())}, step=step + 1)
    return whole_loss


def keep(training: Training, selects: bool) -> None:
    """A checkpoint; with `selects` these are the weights to keep so far."""
    now = time.perf_counter()
    training.progress.seconds, training.clock = training.progress.seconds + now - training.clock, now
    save_checkpoint(training.accelerator, training.evaluated, training.progress, training.checkpoint, selects)


def score_epoch(training: Training, experiment: Experiment, recipe: Recipe) -> dict[str, float]:
    """What the epoch may be selected by."""
    scores = {}
    if experiment.validation_clips is not None:
        scores["validation_loss"] = validation_loss(training.evaluated, experiment, recipe, training.accelerator)
    if recipe.run.select_on.startswith("test_"):
        name, first = next(iter(evaluate(experiment, recipe, training.accelerator, training.evaluated).items()))
        if "war" not in first:
            raise ValueError(f"run.select_on is {recipe.run.select_on}, but {name} has no classes")
        scores |= {"test_war": first["war"], "test_uar": first["uar"]}
    return scores


def is_better(progress: Progress, select_on: str) -> bool:
    """Whether the last epoch is the one to keep so far."""
    if progress.selected is None or select_on not in progress.history[-1]:  # "last", or nothing to compare
        return True
    last, best = (progress.history[index][select_on] for index in (-1, progress.selected))
    if math.isnan(last) or math.isnan(best):  # a number is better than none
        return math.isnan(best) and not math.isnan(last)
    return last < best if select_on == "validation_loss" else last > best


def out_of_patience(progress: Progress, patience: int | None) -> bool:
    """Whether the selected epoch is too long ago."""
    return patience is not None and bool(progress.history) and progress.epoch - progress.selected > patience


def device_name(device: torch.device) -> str:
    """As a card names it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}, {os.cpu_count()} cores"


def stop_if_requested(stop: StopSignal, checkpoint: Path) -> None:
    """Ends the process as a shell expects it after a signal."""
    if number := stop.requested():
        tqdm.write(f"stopped; run.resume=true goes on from {checkpoint}", file=sys.stderr)
        raise SystemExit(128 + number)


def save(experiment: Experiment, metrics: dict, output_dir: Path) -> None:
    """Weights, configuration and processor; metrics.json last, since its presence says that the run is complete."""
    with clear_os_errors("the result", output_dir):
        experiment.save_pretrained(output_dir)
        unfinished = output_dir / "metrics.json.unfinished"
        unfinished.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
        os.replace(unfinished, output_dir / "metrics.json")


if __name__ == "__main__":
    main(sys.argv[1:])
