# SPDX-License-Identifier: Apache-2.0
"""The only training loop: a recipe in; weights, processor, metrics.json and recipe.yaml out.

accelerate launch training/train.py training/recipes/synthetic_emoclip.yaml [a.b=c ...]
"""

import argparse
import json
import math
import os
import shutil
import sys
import time
from pathlib import Path

import datasets
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from training.build import Experiment, build
from training.evaluation import evaluate, validation_loss
from training.optimizer import build_optimizer, build_scheduler
from training.recipe import Recipe, dump_recipe, load_recipe


def main(arguments: list[str] | None = None) -> dict:
    """Runs a recipe; returns what it wrote to metrics.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="a yaml file of training/recipes, or one of your own")
    parser.add_argument("overrides", nargs="*", help="recipe fields, as optim.epochs=3")
    options = parser.parse_args(arguments)
    try:
        recipe = load_recipe(options.recipe, options.overrides)
        check_output_dir(recipe)
    except (FileNotFoundError, FileExistsError, ValueError) as error:
        parser.error(str(error))
    return run(recipe)


def run(recipe: Recipe) -> dict:
    """Trains and evaluates; the output folder is complete once it holds metrics.json."""
    started = time.perf_counter()
    output_dir = open_output_dir(recipe)
    accelerator = Accelerator(
        mixed_precision=recipe.run.mixed_precision,
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),
    )
    if accelerator.num_processes > 1:
        # Each process would see only its own share of the negatives: another loss than the recipe's, in silence.
        raise NotImplementedError("training runs in one process; the loss over several processes is not there yet")
    set_seed(recipe.run.seed)
    cache_dir = Path(recipe.data.cache_dir or datasets.config.HF_DATASETS_CACHE) / "frame_embeds"
    experiment = build(recipe, accelerator.device, cache_dir)
    start = evaluate(experiment, recipe)
    history = train(experiment, recipe, accelerator, output_dir)
    metrics = {
        "title": recipe.title,
        "start": start,
        "final": evaluate(experiment, recipe),
        "history": history,
        "parameters": sum(p.numel() for p in experiment.model.parameters()),
        "trained_parameters": sum(p.numel() for p in experiment.model.parameters() if p.requires_grad),
        "seconds": round(time.perf_counter() - started, 1),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    save(experiment, recipe, metrics, output_dir)
    return metrics


def train(experiment: Experiment, recipe: Recipe, accelerator: Accelerator, output_dir: Path) -> list[dict]:
    """The loop. Leaves the selected epoch's weights in the model; returns one record for each epoch."""
    optim = recipe.optim
    loader = DataLoader(
        experiment.train_clips,
        batch_size=optim.batch_size,
        shuffle=experiment.train_sampler is None,
        sampler=experiment.train_sampler,
        drop_last=True,
        collate_fn=experiment.train_collator,
        num_workers=0 if experiment.train_clips.frame_embeds is not None else recipe.run.num_workers,
    )
    if len(loader) == 0:
        raise ValueError(
            f"optim.batch_size is {optim.batch_size}, but {recipe.data.train_split} has only "
            f"{len(experiment.train_clips)} clips"
        )
    optimizer = build_optimizer(experiment.trained, optim, experiment.learning_rates)
    scheduler = build_scheduler(optimizer, optim, len(loader))
    model, optimizer, loader, scheduler = accelerator.prepare(experiment.trained, optimizer, loader, scheduler)
    validation = None
    if experiment.validation_clips is not None:
        validation_loader = DataLoader(experiment.validation_clips, optim.batch_size, collate_fn=experiment.collator)
        validation = accelerator.prepare(validation_loader)
    checkpoint = output_dir / "checkpoint"
    history = resume(accelerator, checkpoint) if recipe.run.resume else []
    for epoch in range(len(history), optim.epochs):
        # What is random in an epoch depends on the seed and its number alone, so that a resumed run is the same run.
        set_seed(recipe.run.seed + 1_000_003 * (epoch + 1))
        experiment.train_clips.set_epoch(epoch)
        if experiment.train_sampler is not None:
            experiment.train_sampler.set_epoch(epoch)
        loader.set_epoch(epoch)
        record = {"epoch": epoch + 1, "loss": train_epoch(model, loader, optimizer, scheduler, accelerator, optim)}
        record["learning_rate"] = max(scheduler.get_last_lr())
        if validation is not None:
            record["validation_loss"] = validation_loss(model, validation)
        history.append(record)
        tqdm.write(", ".join(f"{key} {value:.4g}" for key, value in record.items()))
        save_checkpoint(accelerator, experiment, history, recipe, checkpoint)
    load_selected(experiment, checkpoint)
    return history


def train_epoch(model, loader, optimizer, scheduler, accelerator: Accelerator, optim) -> float:
    """One pass over the training clips; returns the mean loss."""
    model.train()
    total = 0.0
    for batch in tqdm(loader, "training", unit="step", leave=False):
        del batch["clip_index"]
        loss = model(**batch).loss
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()}; the last finished epoch is in the checkpoint folder")
        accelerator.backward(loss)
        if optim.max_grad_norm is not None:
            accelerator.clip_grad_norm_(model.parameters(), optim.max_grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        total += loss.item()
    return total / len(loader)


def check_output_dir(recipe: Recipe) -> None:
    """Raises a FileExistsError if the output folder holds the run of another recipe."""
    written = Path(recipe.run.output_dir) / "recipe.yaml"
    if not written.exists():
        return
    earlier = load_recipe(written)
    # Asking to go on, or naming the folder in another way, does not make it another experiment.
    earlier.run.resume, earlier.run.output_dir = recipe.run.resume, recipe.run.output_dir
    if earlier != recipe:
        raise FileExistsError(
            f"run.output_dir={recipe.run.output_dir} holds the run of another recipe (see {written}); choose another "
            "folder, or remove that one"
        )


def open_output_dir(recipe: Recipe) -> Path:
    """Makes the folder of the run and writes the resolved recipe into it."""
    check_output_dir(recipe)
    output_dir = Path(recipe.run.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / "metrics.json").unlink(missing_ok=True)
    (output_dir / "recipe.yaml").write_text(dump_recipe(recipe, output_dir), encoding="utf-8")
    return output_dir


def save_checkpoint(accelerator: Accelerator, experiment: Experiment, history, recipe: Recipe, checkpoint: Path):
    """Everything that a resumed run needs, and the best weights so far; the old one stays until the new is whole."""
    unfinished = checkpoint.with_name("checkpoint.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    accelerator.save_state(unfinished)
    (unfinished / "history.json").write_text(json.dumps(history))
    losses = [record.get("validation_loss", math.nan) for record in history]
    best_so_far = losses[-1] <= min(losses) or recipe.run.select_on == "last" or math.isnan(losses[-1])
    if best_so_far:
        safe = {name: weight.contiguous() for name, weight in experiment.model.state_dict().items()}
        accelerator.save(safe, unfinished / "selected.safetensors", safe_serialization=True)
    else:
        shutil.copy(checkpoint / "selected.safetensors", unfinished)
    previous = checkpoint.with_name("checkpoint.previous")
    shutil.rmtree(previous, ignore_errors=True)
    if checkpoint.exists():
        os.replace(checkpoint, previous)
    os.replace(unfinished, checkpoint)
    shutil.rmtree(previous, ignore_errors=True)


def resume(accelerator: Accelerator, checkpoint: Path) -> list[dict]:
    """Loads the last finished epoch; returns its history."""
    if not checkpoint.exists():  # killed between the two renames of save_checkpoint
        checkpoint = checkpoint.with_name("checkpoint.previous")
    if not checkpoint.exists():
        return []
    accelerator.load_state(checkpoint)
    return json.loads((checkpoint / "history.json").read_text())


def load_selected(experiment: Experiment, checkpoint: Path):
    """The weights of the epoch that `run.select_on` chose."""
    experiment.model.load_state_dict(load_file(checkpoint / "selected.safetensors"))


def save(experiment: Experiment, recipe: Recipe, metrics: dict, output_dir: Path):
    """Weights, configuration and processor; metrics.json last, since its presence says that the run is complete."""
    experiment.model.save_pretrained(output_dir)
    experiment.processor.save_pretrained(output_dir)
    unfinished = output_dir / "metrics.json.unfinished"
    unfinished.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    os.replace(unfinished, output_dir / "metrics.json")


if __name__ == "__main__":
    main(sys.argv[1:])
