# SPDX-License-Identifier: Apache-2.0
"""Trains the model of a recipe and writes weights, processor, metrics.json and recipe.yaml.

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
from training.metrics.scores import metrics_of
from training.optimizer import build_optimizer, build_scheduler
from training.predictions import write_results
from training.publish.hub import PushError
from training.publish.redaction import without_secrets
from training.recipe import Recipe, flat_fields, load_recipe
from training.sharding import check_sharding, copy_to_shard, gather_weights
from training.stop_signal import StopSignal


def main(arguments: list[str] | None = None) -> dict:
    """Runs a recipe and returns the content of metrics.json."""
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
    except PushError as error:  # the run itself is complete, or has not started
        parser.exit(1, f"{parser.prog}: {error}\n")


def run(recipe: Recipe) -> dict:
    """Trains and evaluates a recipe; the output folder is complete once it contains metrics.json."""
    started = time.perf_counter()
    output_dir = Path(recipe.run.output_dir)
    accelerator = Accelerator(
        mixed_precision=recipe.run.mixed_precision,
        # A recipe's batch size is the total over all processes.
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
    publisher = None
    if accelerator.is_main_process:
        open_output_dir(recipe)
        publisher = publisher_of(recipe)
    accelerator.init_trackers("emoclip", without_secrets(flat_fields(recipe)))
    set_seed(recipe.run.seed)
    cache_dir = Path(recipe.data.cache_dir or datasets.config.HF_DATASETS_CACHE) / "frame_embeds"
    with accelerator.main_process_first(), errors_of_the_recipe():  # the others reuse the prepared data and embeddings
        experiment = build(recipe, accelerator.device, cache_dir)
    learns = recipe.optim.epochs > 0
    start = evaluate(experiment, recipe, accelerator) if learns and recipe.run.evaluate_start else {}
    prepared = time.perf_counter()
    progress = train(experiment, recipe, accelerator, output_dir, publisher) if learns else Progress()
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
    if publisher is not None:
        print(publisher.push_result())
    return metrics


def publisher_of(recipe: Recipe):
    """Returns a `Publisher` if the recipe asks for one; it builds on the loop's results, and so is imported late."""
    if recipe.run.push_to_hub is None:
        return None
    from training.publish.while_training import Publisher

    return Publisher(recipe)


class RecipeError(ValueError):
    """Error of a recipe that cannot be run, for example on the available data; the message says what to change."""


@contextlib.contextmanager
def errors_of_the_recipe() -> Iterator[None]:
    """Converts errors of building an experiment to `RecipeError`, including those that `datasets` has wrapped."""
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
    """State of the training loop."""

    accelerator: Accelerator
    model: torch.nn.Module
    loader: DataLoader
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    average: AveragedModel | None
    eval_model: torch.nn.Module
    """Model with the moving average of the weights, if there is one; never sharded, unlike `model` under FSDP."""
    checkpoint: Path
    progress: Progress
    clock: float
    """Time of the last update of `progress.seconds`."""


def train(
    experiment: Experiment,
    recipe: Recipe,
    accelerator: Accelerator,
    output_dir: Path,
    publisher=None,
) -> Progress:
    """Trains the model, loads the weights of the selected epoch into it, and returns the progress.

    Raises:
        SystemExit: 130 after Ctrl-C, 143 after SIGTERM; `run.resume=true` continues from there.
    """
    training = setup(experiment, recipe, accelerator, output_dir / "checkpoint")
    progress = training.progress
    with StopSignal(accelerator) as stop:
        while progress.epoch < recipe.optim.epochs and not should_stop_early(progress, recipe.run.patience):
            train_epoch(training, experiment, recipe, stop)
            if accelerator.is_fsdp2:
                gather_weights(training.model, training.eval_model)
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
            write_checkpoint(training, selects=better)
            if publisher is not None:
                publisher.push_checkpoint(experiment, training.eval_model, progress, training.checkpoint)
            stop_if_requested(stop, training.checkpoint)
    load_selected(experiment.trained, training.checkpoint)
    return progress


def setup(experiment: Experiment, recipe: Recipe, accelerator: Accelerator, checkpoint: Path) -> Training:
    """Builds optimizer, schedule and data loader, and loads the last checkpoint if the run is resumed."""
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
    average, eval_model = None, experiment.trained
    if optim.ema is not None:
        average = AveragedModel(accelerator.unwrap_model(model), multi_avg_fn=get_ema_multi_avg_fn(optim.ema))
        accelerator.register_for_checkpointing(average)
        eval_model = average.module
    clips = experiment.train_clips.digest()
    with errors_of_the_recipe():
        progress = load_checkpoint(accelerator, checkpoint, clips) if run.resume else None
    progress = progress or Progress(num_processes=accelerator.num_processes, clips=clips)
    return Training(
        accelerator,
        model,
        loader,
        optimizer,
        scheduler,
        average,
        eval_model,
        checkpoint,
        progress,
        time.perf_counter(),
    )


def checked_batch_size(experiment: Experiment, recipe: Recipe, accelerator: Accelerator) -> int:
    """Returns the recipe's batch size, reduced if there are fewer clips; each process gets an equal share.

    Raises:
        RecipeError: there are too few clips, or the recipe is incompatible with them.
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
    """Trains for the rest of the current epoch of `training.progress`."""
    progress, loader, accelerator = training.progress, training.loader, training.accelerator
    training.model.train()
    experiment.train_clips.set_epoch(progress.epoch)
    loader.set_epoch(progress.epoch)  # also sets it on the sampler, where accelerate would use its own count
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
            write_checkpoint(training, selects=False)
        stop_if_requested(stop, training.checkpoint)


def train_step(batch: dict, training: Training, experiment: Experiment, recipe: Recipe) -> float:
    """Runs one optimizer step and returns the loss of the whole batch."""
    accelerator, model, optimizer = training.accelerator, training.model, training.optimizer
    step = training.progress.epoch * len(training.loader) + training.progress.step
    # The random numbers of a step depend only on the seed and the step, so that resuming reproduces the run.
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


def write_checkpoint(training: Training, selects: bool) -> None:
    """Saves a checkpoint; `selects` marks its weights as the best so far."""
    now = time.perf_counter()
    training.progress.seconds, training.clock = training.progress.seconds + now - training.clock, now
    save_checkpoint(training.accelerator, training.eval_model, training.progress, training.checkpoint, selects)


def score_epoch(training: Training, experiment: Experiment, recipe: Recipe) -> dict[str, float]:
    """Computes the scores that `run.select_on` can select the epoch by."""
    scores = {}
    if experiment.validation_clips is not None:
        scores["validation_loss"] = validation_loss(training.eval_model, experiment, recipe, training.accelerator)
    if recipe.run.select_on.startswith("test_"):
        name, first = next(iter(evaluate(experiment, recipe, training.accelerator, training.eval_model).items()))
        if "war" not in first:
            raise ValueError(f"run.select_on is {recipe.run.select_on}, but {name} has no classes")
        scores |= {"test_war": first["war"], "test_uar": first["uar"]}
    return scores


def is_better(progress: Progress, select_on: str) -> bool:
    """Returns whether the last epoch is the best so far."""
    if progress.selected is None or select_on not in progress.history[-1]:  # "last", or nothing to compare
        return True
    last, best = (progress.history[index][select_on] for index in (-1, progress.selected))
    if math.isnan(last) or math.isnan(best):  # any number is better than NaN
        return math.isnan(best) and not math.isnan(last)
    return last < best if select_on == "validation_loss" else last > best


def should_stop_early(progress: Progress, patience: int | None) -> bool:
    """Returns whether more than `patience` epochs have passed since the selected one."""
    return patience is not None and bool(progress.history) and progress.epoch - progress.selected > patience


def device_name(device: torch.device) -> str:
    """Returns the device's name as shown in model cards."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}, {os.cpu_count()} cores"


def stop_if_requested(stop: StopSignal, checkpoint: Path) -> None:
    """Exits with the status that shells expect after a signal, if one was received."""
    if number := stop.requested():
        tqdm.write(f"stopped; run.resume=true goes on from {checkpoint}", file=sys.stderr)
        raise SystemExit(128 + number)


def save(experiment: Experiment, metrics: dict, output_dir: Path) -> None:
    """Saves weights, configuration and processor; metrics.json is last, since it marks the run as complete."""
    with clear_os_errors("the result", output_dir):
        experiment.save_pretrained(output_dir)
        unfinished = output_dir / "metrics.json.unfinished"
        unfinished.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
        os.replace(unfinished, output_dir / "metrics.json")


if __name__ == "__main__":
    main(sys.argv[1:])
