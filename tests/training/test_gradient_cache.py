# SPDX-License-Identifier: Apache-2.0
"""Gradients of a batch that went through the model in chunks are those of the whole batch."""

import copy
import multiprocessing
import os
from datetime import timedelta
from pathlib import Path

import peft
import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.multiprocessing import start_processes

from emoclip import EmoCLIPForVideoClassification, EmoCLIPForVideoRegression, EmoCLIPModel, EmoCLIPProcessor
from training.component_loss import WithComponentLoss
from training.gradient_cache import backward_in_chunks

PROCESSES, CLIPS, LABELS = 2, 8, 3
SMALL = {"temporal_num_heads": 2, "temporal_head_dim": 8, "temporal_num_layers": 1}
TEXTS = ["an expression of anger.", "a smile", "wide open eyes", "lowered eyebrows", "eyes", "a smile", "an", "eyes"]
CASES = ["softmax", "sigmoid", "frozen texts", "encoded texts", "encoded frames", "only the scale"]
RANDOM_CASES = ["attention dropout", "attention dropout, frozen texts", "lora dropout"]


def make(case, clip_dir):
    torch.manual_seed(0)
    fields = SMALL | ({"contrastive_loss": "sigmoid"} if case == "sigmoid" else {})
    model = EmoCLIPModel.from_clip(clip_dir, **fields).train()
    torch.nn.init.normal_(model.temporal.output_projection.weight, std=0.2)  # zero hides what is behind it
    if case in ("frozen texts", "encoded texts", "encoded frames", "attention dropout, frozen texts"):
        model.text_model.requires_grad_(False)
        model.text_projection.requires_grad_(False)
    if case == "encoded frames":
        model.vision_model.requires_grad_(False)
        model.visual_projection.requires_grad_(False)
    if case == "only the scale":
        model.requires_grad_(False).logit_scale.requires_grad_(True)
    if case.startswith("attention dropout"):
        for module in (*model.vision_model.modules(), *model.text_model.modules()):
            if type(module).__name__ == "CLIPAttention":
                module.dropout = 0.3
    if case == "lora dropout":
        lora = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.3, init_lora_weights=False)
        model = peft.get_peft_model(model, lora)
        model.get_parameter("base_model.model.logit_scale").requires_grad_(True)
    return model


def make_batch(case, model, clip_dir):
    generator = torch.Generator().manual_seed(1)
    texts = EmoCLIPProcessor.from_clip(clip_dir)(text=TEXTS, return_tensors="pt")
    batch = {
        "pixel_values_videos": torch.randn(CLIPS, 2, 3, 32, 32, generator=generator),
        "return_loss": True,
        **texts,
    }
    if case in ("encoded texts", "encoded frames"):
        batch["text_embeds"] = model.get_text_features(texts.input_ids, texts.attention_mask).pooler_output.detach()
    if case == "encoded frames":
        del batch["pixel_values_videos"]
        batch["frame_embeds"] = torch.randn(CLIPS, 3, 24, generator=generator)
        batch["frame_mask"] = torch.arange(3) < torch.randint(1, 4, (CLIPS, 1), generator=generator)
    return batch


def make_labelled(clip_dir, **fields):
    torch.manual_seed(0)
    regression = "regression_loss" in fields
    model_class = EmoCLIPForVideoRegression if regression else EmoCLIPForVideoClassification
    model = model_class.from_clip(clip_dir, num_labels=LABELS, **SMALL, **fields).train()
    torch.nn.init.normal_(model.temporal.output_projection.weight, std=0.2)
    labels = torch.rand(CLIPS, LABELS) if regression else torch.arange(CLIPS) % LABELS
    return model, {"pixel_values_videos": torch.randn(CLIPS, 2, 3, 32, 32), "labels": labels}


def rows_of(batch, rows):
    return {name: value[rows] if torch.is_tensor(value) else value for name, value in batch.items()}


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def whole(model, batch):
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), gradients(model)


def chunks_kept(model, batch, chunk_size):
    """What is random in the order of chunks, and the memory of all of them."""
    starts = range(0, len(batch["input_ids"]), chunk_size)
    outputs = [model(**rows_of(batch | {"return_loss": None}, slice(i, i + chunk_size))) for i in starts]
    embeds = [torch.cat([output[name] for output in outputs]) for name in ("video_embeds", "text_embeds")]
    loss = model.contrastive_loss_of(*embeds)
    loss.backward()
    return loss.detach(), gradients(model)


def in_chunks(model, batch, chunk_size, accelerator):
    model = accelerator.prepare(model)
    batch = {name: v.to(accelerator.device) if torch.is_tensor(v) else v for name, v in batch.items()}
    loss = backward_in_chunks(model, batch, accelerator, chunk_size)
    assert not loss.requires_grad
    return loss.cpu(), {name: gradient.cpu() for name, gradient in gradients(accelerator.unwrap_model(model)).items()}


def assert_same(actual, expected):
    torch.testing.assert_close(actual[0], expected[0])
    actual, expected = actual[1], expected[1]
    assert actual.keys() == expected.keys()
    norm = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    for name, gradient in expected.items():
        assert (actual[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6 * norm, name


# ---- one process ----


@pytest.mark.parametrize("chunk_size", [1, 3, 8, 100])
@pytest.mark.parametrize("case", CASES)
def test_chunked_is_whole(clip_dir, case, chunk_size):
    model = make(case, clip_dir)
    batch = make_batch(case, model, clip_dir)
    expected = whole(copy.deepcopy(model), batch)
    assert "logit_scale" in expected[1]
    assert_same(in_chunks(model, batch, chunk_size, Accelerator()), expected)


@pytest.mark.parametrize("case", RANDOM_CASES)
def test_dropout_is_the_same_in_both_passes(clip_dir, case):
    if Accelerator().device.type != "cpu":
        pytest.skip("the reference draws on the CPU")
    model = make(case, clip_dir)
    batch = make_batch(case, model, clip_dir)
    torch.manual_seed(7)
    expected = chunks_kept(copy.deepcopy(model), batch, 3)
    drawn = torch.rand(1)
    torch.manual_seed(7)
    assert_same(in_chunks(model, batch, 3, Accelerator()), expected)
    assert torch.equal(torch.rand(1), drawn), "the next step would draw what this one drew"


def test_plain_accumulation_would_have_another_gradient(clip_dir):
    model = make("softmax", clip_dir)
    batch = make_batch("softmax", model, clip_dir)
    expected = whole(copy.deepcopy(model), batch)
    for start in range(0, CLIPS, 4):
        actual = whole(model, rows_of(batch, slice(start, start + 4)))
    with pytest.raises(AssertionError):
        assert_same((expected[0], {name: gradient / 2 for name, gradient in actual[1].items()}), expected)


def test_the_text_tower_is_not_run_if_texts_are_encoded(clip_dir, monkeypatch):
    model = make("encoded texts", clip_dir)
    batch = make_batch("encoded texts", model, clip_dir)
    monkeypatch.setattr(model, "get_text_features", None)
    in_chunks(model, batch, 3, Accelerator())


def test_no_more_than_a_chunk_is_in_the_model(clip_dir, monkeypatch):
    model = make("softmax", clip_dir)
    batch, sizes = make_batch("softmax", model, clip_dir), []
    encode = model._encode_frames
    monkeypatch.setattr(model, "_encode_frames", lambda pixels, **kwargs: sizes.append(len(pixels)) or encode(pixels))
    in_chunks(model, batch, 3, Accelerator())
    assert sizes == [3, 3, 2] * 2


@pytest.mark.parametrize("fields", [{}, {"regression_loss": "mse"}, {"regression_loss": "l1"}])
def test_labels_in_chunks(clip_dir, fields):
    model, batch = make_labelled(clip_dir, **fields)
    expected = whole(copy.deepcopy(model), batch)
    assert_same(in_chunks(model, batch, 3, Accelerator()), expected)


# ---- what is refused ----


@pytest.mark.parametrize("fields", [{"class_weights": [1.0, 2.0, 3.0]}, {"regression_loss": "ccc"}])
def test_losses_that_are_no_mean_over_clips_are_refused(clip_dir, fields):
    model, batch = make_labelled(clip_dir, **fields)
    with pytest.raises(ValueError, match=f"with {next(iter(fields))}.*no mean over clips"):
        backward_in_chunks(model, batch, Accelerator(), 3)


def test_other_mistakes(clip_dir):
    model = make("softmax", clip_dir)
    batch, accelerator = make_batch("softmax", model, clip_dir), Accelerator()
    with pytest.raises(ValueError, match="chunk_size is 0"):
        backward_in_chunks(model, batch, accelerator, 0)
    with pytest.raises(ValueError, match="neither return_loss nor labels"):
        backward_in_chunks(model, batch | {"return_loss": False}, accelerator, 2)
    with pytest.raises(TypeError, match="WithComponentLoss"):
        backward_in_chunks(WithComponentLoss(model, 3, 10), batch, accelerator, 2)


# ---- two processes ----


def count_exchanges(ddp):
    """A list that grows with every bucket of gradients that the processes exchange."""
    exchanges = []

    def hook(state, bucket):
        exchanges.append(bucket.index())
        return allreduce_hook(state, bucket)

    ddp.register_comm_hook(None, hook)
    return exchanges


def own_reference(model, batch):
    """`chunks_kept` in each of the two processes, and the mean of their gradients."""
    loss, own = chunks_kept(model, batch, 3)
    for gradient in own.values():
        dist.all_reduce(gradient)
        gradient /= PROCESSES
    return loss, own


def worker(rank, folder):
    one_minute = timedelta(seconds=60)  # a process that waits for the other in vain is an error, not a standstill
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "ACCELERATE_USE_CPU": "true", "LOCAL_RANK": str(rank)}
    # Accelerate asks for an address, and then uses the process group that it finds.
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(PROCESSES), "MASTER_ADDR": "unused", "MASTER_PORT": "0"}
    torch.set_num_threads(1)
    rendezvous = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=PROCESSES, timeout=one_minute)
    accelerator, results = Accelerator(), {}
    for case, (model, batch) in torch.load(folder / "cases.pt", weights_only=False).items():
        own = rows_of(batch, slice(rank * CLIPS // PROCESSES, (rank + 1) * CLIPS // PROCESSES))
        results[case] = result = {}
        if case in RANDOM_CASES:
            torch.manual_seed(rank)
            result["expected"] = own_reference(copy.deepcopy(model), own)
        ddp = accelerator.prepare(model)
        exchanges = count_exchanges(ddp)
        ddp(**own).loss.backward()
        result["exchanges of a plain step"] = len(exchanges)
        for _ in range(2):  # the second step would fail if the first had left something undone
            exchanges.clear()
            ddp.zero_grad()
            torch.manual_seed(rank)
            result["loss and gradients"] = in_chunks(ddp, own, 3, accelerator)
        result["exchanges"] = len(exchanges)
        with pytest.raises(ValueError) as raised:
            backward_in_chunks(ddp, rows_of(own, slice(0, 4 - rank)), accelerator, 3)
        result["unequal"] = str(raised.value)
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def cases(clip_dir):
    models = {case: make(case, clip_dir) for case in [*CASES, *RANDOM_CASES]}
    cases = {case: (model, make_batch(case, model, clip_dir)) for case, model in models.items()}
    return cases | {"labels": make_labelled(clip_dir), "mse": make_labelled(clip_dir, regression_loss="mse")}


@pytest.fixture(scope="module")
def results(cases, tmp_path_factory):
    folder = Path(tmp_path_factory.mktemp("processes"))
    torch.save(cases, folder / "cases.pt")
    # Not forked from pytest, whose OpenMP threads a fork would wait for; but the imports, once for both processes.
    multiprocessing.set_forkserver_preload(["modeling_emoclip", "accelerate"])
    start_processes(worker, (folder,), nprocs=PROCESSES, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(PROCESSES)]


@pytest.mark.parametrize("case", [*CASES, *RANDOM_CASES, "labels", "mse"])
def test_two_processes_in_chunks(cases, results, case):
    model, batch = copy.deepcopy(cases[case])
    expected = None if case in RANDOM_CASES else whole(model, batch)
    for result in (result[case] for result in results):
        assert_same(result["loss and gradients"], expected or result["expected"])
        assert result["exchanges"] == result["exchanges of a plain step"] > 0, "gradients are exchanged once"
        assert "same size" in result["unequal"]
