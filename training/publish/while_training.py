# SPDX-License-Identifier: Apache-2.0
"""Pushes checkpoints while training goes on, and the result at the end: `run.push_to_hub` of a recipe."""

import copy
from pathlib import Path

from torch import nn

from training.build import Experiment, merge_adapters
from training.checkpoint import Progress, load_selected
from training.publish.card import data_sets, write_card
from training.publish.export import export, write_model, write_recipe
from training.publish.hub import HubPusher, PushError, reason
from training.publish.push import push
from training.recipe import Recipe


class Publisher:
    """Pushes one run. Its repository is private, unless the model was trained on rendered faces only.

    Raises:
        PushError: the repository would be refused at the end too, as without a token. A Hub that does not answer does
            not stop training.
    """

    def __init__(self, recipe: Recipe):
        self.recipe, self.output_dir = recipe, Path(recipe.run.output_dir)
        is_private = not all(one.is_rendered for one in data_sets(recipe) if one.is_learnt)
        self.pusher = HubPusher(recipe.run.push_to_hub, is_private, self.output_dir)
        try:
            self.pusher.open()
        except PushError as error:
            if error.is_refusal:
                raise PushError(f"run.push_to_hub={recipe.run.push_to_hub}: {error}", is_refusal=True) from None

    def push_checkpoint(
        self, experiment: Experiment, trained: nn.Module, progress: Progress, checkpoint: Path
    ) -> None:
        """Takes a snapshot of the selected weights, with a card about the progress, and returns at once.

        Args:
            trained: the unwrapped model that learns, or its average.
            checkpoint: folder of the last `save_checkpoint`.
        """

        def write(folder: Path):
            model = selected_copy(trained, checkpoint)
            metrics = {
                "title": self.recipe.title,
                "history": progress.history,
                "epochs": self.recipe.optim.epochs,
                "selected": progress.history[progress.selected],
                "parameters": model.num_parameters(),
            }
            write_model(folder, model, experiment.processor)
            write_recipe(folder, self.recipe)
            repo = self.pusher.repo_id
            card = write_card(metrics, self.recipe, model, experiment.processor, "checkpoint.md", repo=repo)
            (folder / "README.md").write_text(card, encoding="utf-8")

        self.pusher.push_soon(write, f"Epoch {progress.epoch} of {self.recipe.optim.epochs}")

    def push_result(self) -> str:
        """Exports, checks and pushes the finished run and loads it back; returns a line about it.

        Raises:
            PushError: with the reason, and the folder that holds everything.
        """
        try:
            hub_dir, _ = export(self.output_dir, self.output_dir / "hub", self.pusher.repo_id)
        except (OSError, RuntimeError) as error:
            self.pusher.stop()
            raise PushError(
                f"not pushed to {self.pusher.repo_id}: {reason(error)}; the run is {self.output_dir}"
            ) from error
        return push(self.output_dir, hub_dir, self.pusher)


def selected_copy(trained: nn.Module, checkpoint: Path):
    """Copies the selected weights into a model on the CPU, with adapters merged, and leaves `trained` unchanged."""
    parameters = {id(p): nn.Parameter(p.detach().to("cpu", copy=True), p.requires_grad) for p in trained.parameters()}
    buffers = {id(buffer): buffer.detach().to("cpu", copy=True) for buffer in trained.buffers()}
    copied = copy.deepcopy(trained, parameters | buffers)
    load_selected(copied, checkpoint)
    model = getattr(copied, "model", copied)  # without the component loss
    merge_adapters(model)
    return model.eval()
