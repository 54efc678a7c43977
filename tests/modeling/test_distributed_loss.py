# SPDX-License-Identifier: Apache-2.0
"""Two real processes, each with half of a batch: their gradients are those of one process with all of it."""

import copy
import multiprocessing
import os
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing import start_processes
from torch.nn.parallel import DistributedDataParallel

from emoclip import (
    EmoCLIPForPromptClassification,
    EmoCLIPForVideoClassification,
    EmoCLIPForVideoRegression,
    EmoCLIPModel,
    EmoCLIPProcessor,
)

PROCESSES, CLIPS, LABELS = 2, 8, 3
TOLERANCE = 1e-4  # of the difference of two gradients, relative
SMALL = {"temporal_num_heads": 2, "temporal_head_dim": 8, "temporal_num_layers": 1}
# The second process has shorter texts, so another padding, and one text of the first; and one text twice.
TEXTS = ["an expression of anger.", "a smile", "wide open eyes", "lowered eyebrows slowly appearing"]
TEXTS += ["eyes", "a smile", "an", "eyes"]
CLASSES = {"num_labels": LABELS, "class_weights": [0.2, 1.0, 3.0]}
CASES = {
    "softmax": (EmoCLIPModel, {}),
    "sigmoid": (EmoCLIPModel, {"contrastive_loss": "sigmoid"}),
    "class_weights": (EmoCLIPForVideoClassification, CLASSES),
    "prompt, class_weights": (
        EmoCLIPForPromptClassification,
        CLASSES | {"class_input_ids": [[5], [6, 7], [8]], "prompt_logit_scale": None},
    ),
    "ccc": (EmoCLIPForVideoRegression, {"num_labels": LABELS, "regression_loss": "ccc"}),
}


def make(case, clip_dir):
    model_class, fields = CASES[case]
    torch.manual_seed(0)
    model = model_class.from_clip(clip_dir, **SMALL, **fields).train()
    for name, parameter in model.named_parameters():  # zero, or almost, it would hide what is behind it
        if name.startswith(("temporal.output_projection.", "classifier.", "mlp.")):
            torch.nn.init.normal_(parameter, std=0.2)
        elif name == "logit_bias":  # with the -10 of the start hardly a negative of the other process has a gradient
            torch.nn.init.constant_(parameter, -2.0)
    return model


def make_batch(model, clip_dir):
    generator = torch.Generator().manual_seed(1)
    batch = {"pixel_values_videos": torch.randn(CLIPS, 2, 3, 32, 32, generator=generator)}
    if isinstance(model, EmoCLIPModel):
        return batch | EmoCLIPProcessor.from_clip(clip_dir)(text=TEXTS, return_tensors="pt") | {"return_loss": True}
    regression = isinstance(model, EmoCLIPForVideoRegression)
    labels = torch.rand(CLIPS, LABELS, generator=generator) if regression else torch.arange(CLIPS) % LABELS
    return batch | {"labels": labels}


def rows_of(batch, rows):
    """Some rows, as their own process would have collated them: padded to their own longest text."""
    batch = {name: value[rows] if torch.is_tensor(value) else value for name, value in batch.items()}
    if "input_ids" in batch:
        longest = batch["attention_mask"].sum(dim=1).max()
        batch |= {name: batch[name][:, :longest] for name in ("input_ids", "attention_mask")}
    return batch


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def train_step(model, batch):
    outputs = model(**batch)
    outputs.loss.backward()
    return outputs


def worker(rank, folder):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    rendezvous = f"file://{folder}/rendezvous"
    one_minute = timedelta(seconds=60)  # a process that waits for the other in vain is an error, not a standstill
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=PROCESSES, timeout=one_minute)
    results = {}
    for case, (model, batch) in torch.load(folder / "cases.pt", weights_only=False).items():
        own = rows_of(batch, slice(rank * CLIPS // PROCESSES, (rank + 1) * CLIPS // PROCESSES))
        outputs = train_step(DistributedDataParallel(model), own)
        result = {"loss": outputs.loss.detach(), "gradients": gradients(model)}
        scores = outputs["logits" if "logits" in outputs else "logits_per_text"]
        result["shape of the scores"] = tuple(scores.shape)
        with torch.no_grad():  # while the other process may be elsewhere
            own_loss = model(**own).loss if rank == 0 else None
        result["without gradient"] = own_loss
        fewer = rows_of(own, slice(0, CLIPS // PROCESSES - rank))
        with pytest.raises(ValueError) as raised:
            model(**fewer)
        results[case] = result | {"unequal": str(raised.value)}
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def cases(clip_dir):
    models = {case: make(case, clip_dir) for case in CASES}
    return {case: (model, make_batch(model, clip_dir)) for case, model in models.items()}


@pytest.fixture(scope="module")
def results(cases, tmp_path_factory):
    folder = Path(tmp_path_factory.mktemp("processes"))
    torch.save(cases, folder / "cases.pt")
    # Not forked from pytest, whose OpenMP threads a fork would wait for; but the imports, once for both processes.
    multiprocessing.set_forkserver_preload(["modeling_emoclip", "accelerate"])
    start_processes(worker, (folder,), nprocs=PROCESSES, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(PROCESSES)]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_have_the_gradient_of_one(cases, results, case):
    model, batch = copy.deepcopy(cases[case][0]), cases[case][1]
    loss = train_step(model, batch).loss
    expected = gradients(model)
    norm = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    for result in (result[case] for result in results):
        torch.testing.assert_close(result["loss"], loss.detach())
        assert result["gradients"].keys() == expected.keys()
        for name, gradient in result["gradients"].items():
            error = (gradient - expected[name]).norm()
            assert error <= TOLERANCE * expected[name].norm() + 1e-6 * norm, name
    assert {"softmax": "logit_scale", "sigmoid": "logit_bias"}.get(case, "temporal.class_token") in expected


@pytest.mark.parametrize("case", CASES)
def test_without_an_exchange_the_gradient_would_be_another(cases, case):
    """Else the test above could not fail."""
    whole, (halved, batch) = copy.deepcopy(cases[case][0]), copy.deepcopy(cases[case])
    train_step(whole, batch)
    for rows in (slice(0, 4), slice(4, 8)):
        train_step(halved, rows_of(batch, rows))
    expected, actual = gradients(whole), gradients(halved)
    errors = {name: (actual[name] / 2 - g).norm() / g.norm() for name, g in expected.items() if g.norm() > 1e-4}
    assert min(errors.values()) > 10 * TOLERANCE


@pytest.mark.parametrize("case", CASES)
def test_scores_stay_those_of_the_own_clips(results, case):
    columns = CLIPS // PROCESSES if case.startswith(("softmax", "sigmoid")) else LABELS
    assert {result[case]["shape of the scores"] for result in results} == {(CLIPS // PROCESSES, columns)}


@pytest.mark.parametrize("case", CASES)
def test_without_gradient_a_process_does_not_wait_for_others(cases, results, case):
    model, batch = cases[case]
    with torch.no_grad():
        expected = model(**rows_of(batch, slice(0, CLIPS // PROCESSES))).loss
    torch.testing.assert_close(results[0][case]["without gradient"], expected)


@pytest.mark.parametrize("case", CASES)
def test_batches_of_different_sizes_are_refused_in_every_process(results, case):
    for result in results:
        assert "same size" in result[case]["unequal"] and "[4" in result[case]["unequal"]
        assert "[3" in result[case]["unequal"] and "drop_last" in result[case]["unequal"]
