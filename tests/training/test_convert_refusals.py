# SPDX-License-Identifier: Apache-2.0
"""What the converters refuse: clear errors, nothing run, nothing written."""

import collections
import os
import pickle
import shutil
import sys
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_convert import SEVEN_TEXTS, Clip, DferClip, Temporal, VClip, save_checkpoint, tokenizer_dir
from torch import nn

from training.convert import dferclip_checkpoint, emoclip_checkpoint, hub_folder
from training.convert.checkpoint_file import read_checkpoint

__all__ = ["tokenizer_dir"]  # a fixture

SIZES = {"depth": 1, "heads": 8, "head_dim": 4, "mlp_dim": 8, "num_positions": 9}


@pytest.fixture
def emoclip_state():
    torch.manual_seed(0)
    return VClip(Clip(32), Temporal(32, **SIZES)).state_dict()


@pytest.fixture
def dferclip_state():
    torch.manual_seed(0)
    model = DferClip(Clip(32), Temporal(32, **SIZES))
    return {name: value.clone() for name, value in model.state_dict().items()}


def saved(content, path):
    torch.save(content, path)
    return path


# ---- files ----


def test_the_recorder_of_dferclip_is_read_and_not_run(tmp_path, monkeypatch, dferclip_state):
    def forbidden(self, state):
        raise AssertionError("the recorder's own code was run")

    recorder_class = type("RecorderMeter", (), {"__module__": "__main__", "__setstate__": forbidden})
    monkeypatch.setattr(sys.modules["__main__"], "RecorderMeter", recorder_class, raising=False)
    recorder = recorder_class()
    recorder.total_epoch, recorder.epoch_losses = 3, np.zeros((3, 2), dtype=np.float32)
    content = {"epoch": 1, "state_dict": dferclip_state, "best_acc": torch.tensor(50.0), "recorder": recorder}
    assert read_checkpoint(saved(content, tmp_path / "checkpoint.pth")).keys() == dferclip_state.keys()


class Malicious:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("inside", ["state dict", "checkpoint", "file"])
@pytest.mark.parametrize("function", [os.system, eval, open], ids=lambda function: function.__name__)
def test_malicious_pickle_is_refused_and_not_run(tmp_path, emoclip_state, function, inside):
    marker = tmp_path / "marker"
    arguments = {os.system: (f"touch {marker}",), eval: (f"open({str(marker)!r}, 'w')",), open: (str(marker), "w")}
    content = Malicious(function, *arguments[function])
    if inside == "state dict":
        content = emoclip_state | {"x": content}
    elif inside == "checkpoint":
        content = {"state_dict": emoclip_state, "recorder": content}
    path = saved(content, tmp_path / "checkpoint.pth")
    for command in (emoclip_checkpoint, dferclip_checkpoint):
        with pytest.raises(SystemExit, match=rf"more than weights: .*{function.__name__}; it was refused and nothing"):
            command.main([str(path), str(tmp_path / "hub")])
    assert not marker.exists() and not (tmp_path / "hub").exists()
    torch.load(path, weights_only=False)
    assert marker.exists()  # it would have run


def test_the_errors_do_not_advise_to_load_without_protection(tmp_path):
    path = saved({"state_dict": Malicious(eval, "1")}, tmp_path / "checkpoint.pth")
    with pytest.raises(ValueError) as error:
        read_checkpoint(path)
    assert "weights_only" not in str(error.value)


def plain_pickle(path):
    path.write_bytes(pickle.dumps({"x": Malicious(os.system, "true")}))


def truncated(path):
    torch.save({"x": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])


def ordinary_zip(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme.txt", "no weights")


@pytest.mark.parametrize(
    "write",
    [
        plain_pickle,
        truncated,
        ordinary_zip,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("<html>Quota exceeded</html>"),
        lambda path: path.write_bytes(b"\x80\x02" + os.urandom(64)),
        lambda path: torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path),
    ],
    ids=["pickle", "truncated", "zip", "empty", "web page", "noise", "TorchScript"],
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_files_that_are_no_checkpoints(tmp_path, write):
    path = tmp_path / "checkpoint.pth"
    write(path)
    with pytest.raises(ValueError, match=r"checkpoint\.pth is (damaged|not a whole file)"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), "holds no state dict, but Tensor"),
        ({}, "holds no state dict"),
        ({"state_dict": {}}, "holds no state dict"),
        ({"epoch": 3}, "the key 'epoch' does not fit: it holds int, not a tensor"),
        ({"x": torch.zeros(3, dtype=torch.int64)}, "the key 'x' does not fit: it is torch.int64"),
        ({"x": torch.zeros(3).to_sparse()}, "the key 'x' does not fit: it is torch.float32, torch.sparse_coo"),
    ],
)
@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
def test_contents_that_are_no_state_dict(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_checkpoint(saved(content, tmp_path / "checkpoint.pth"))


@pytest.mark.parametrize("name", ["missing.pth", "."])
def test_no_such_file(tmp_path, name):
    with pytest.raises(SystemExit, match="is not a file"):
        emoclip_checkpoint.main([str(tmp_path / name), str(tmp_path / "hub")])


# ---- architectures ----


def test_the_first_key_of_another_architecture_is_named(tmp_path, emoclip_state, dferclip_state):
    files = {
        "emoclip": saved(emoclip_state, tmp_path / "emoclip.pth"),
        "dferclip": saved(dferclip_state, tmp_path / "dferclip.pth"),
        "resnet": saved({"module.layer1.0.conv1.weight": torch.zeros(4, 3)}, tmp_path / "resnet.pth"),
    }
    refusals = [
        (emoclip_checkpoint, "dferclip", r"key 'prompt_learner\.ctx' of shape \(7, 4, 64\) does not fit"),
        (emoclip_checkpoint, "resnet", r"key 'layer1\.0\.conv1\.weight' of shape \(4, 3\) does not fit"),
        (dferclip_checkpoint, "emoclip", r"key 'logit_scale' of shape \(\) does not fit"),
        (dferclip_checkpoint, "resnet", r"key 'layer1\.0\.conv1\.weight'"),
    ]
    for command, name, message in refusals:
        with pytest.raises(ValueError, match=message):
            command.convert(files[name], tmp_path / "hub")
    assert not (tmp_path / "hub").exists()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("backbone.visual.attnpool.c_proj.weight", torch.zeros(2), "'backbone.visual.attnpool.c_proj.weight'"),
        ("temporal.norm.weight", torch.zeros(2), "'temporal.norm.weight' of shape"),
        ("backbone.visual.proj", torch.zeros(2, 2, 2), "'backbone.visual.proj' of shape"),
        ("temporal.cls_token", torch.zeros(1, 1, 30), "gives embeddings of 32 numbers, the checkpoint has 30"),
        ("temporal.temporal_transformer.layers.7.0.fn.norm.bias", torch.zeros(32), "temporal.layers.7.layer_norm1"),
        ("backbone.visual.ln_pre.weight", torch.zeros(5), r"pre_layrnorm.weight has the shape \(5,\)"),
        ("backbone.visual.positional_embedding", torch.zeros(7, 64), "6 patches are not a square"),
        ("backbone.token_embedding.weight", torch.zeros(514, 70), "70 wide, which is no multiple of 64"),
        ("backbone.visual.class_embedding", None, "it holds nothing for vision_model.embeddings.class_embedding"),
        ("temporal.pos_embedding", None, "it holds nothing for temporal.position_embedding"),
    ],
)
def test_tensors_that_do_not_fit(tmp_path, emoclip_state, key, value, message):
    state = collections.OrderedDict(emoclip_state)
    state.pop(key, None) if value is None else state.update({key: value})
    with pytest.raises(ValueError, match=message):
        emoclip_checkpoint.convert(saved(state, tmp_path / "checkpoint.pth"), tmp_path / "hub")
    assert not (tmp_path / "hub").exists()


def test_number_of_heads_that_does_not_divide(tmp_path, emoclip_state):
    path = saved(emoclip_state, tmp_path / "checkpoint.pth")
    with pytest.raises(ValueError, match="temporal attention is 32 wide, which 5 heads cannot share"):
        emoclip_checkpoint.convert(path, tmp_path / "hub", temporal_heads=5)


def test_missing_parts_are_named_and_never_random(tmp_path, emoclip_state, clip_dir):
    temporal = {name: value for name, value in emoclip_state.items() if name.startswith("temporal.")}
    path = saved(temporal, tmp_path / "temporal.pth")
    with pytest.raises(ValueError, match="does not hold the image tower, the text tower, logit_scale: name the CLIP"):
        emoclip_checkpoint.convert(path, tmp_path / "hub")
    with pytest.raises(ValueError, match="gives embeddings of 24 numbers, the checkpoint has 32"):
        emoclip_checkpoint.convert(path, tmp_path / "hub", clip=str(clip_dir))
    path = saved(emoclip_state, tmp_path / "whole.pth")
    with pytest.raises(ValueError, match=r"the checkpoint holds all of its CLIP: --clip .* would not be used"):
        emoclip_checkpoint.convert(path, tmp_path / "hub", clip=str(clip_dir))


def test_a_clip_with_missing_weights_is_refused(tmp_path, emoclip_state, clip_dir):
    shutil.copytree(clip_dir, tmp_path / "clip")
    weights = load_file(clip_dir / "model.safetensors")
    del weights["text_projection.weight"]
    save_file(weights, tmp_path / "clip" / "model.safetensors", metadata={"format": "pt"})
    temporal = {name: value for name, value in emoclip_state.items() if name.startswith("temporal.")}
    path = saved(temporal, tmp_path / "temporal.pth")
    with pytest.raises(ValueError, match=r"is no whole CLIP: it holds nothing for text_projection\.weight"):
        emoclip_checkpoint.convert(path, tmp_path / "hub", clip=str(tmp_path / "clip"))


# ---- class texts and labels ----


def test_an_embedding_that_is_not_in_the_token_table(tmp_path, dferclip_state):
    dferclip_state["prompt_learner.token_suffix"][2, 1] += 1e-6
    path = saved(dferclip_state, tmp_path / "checkpoint.pth")
    with pytest.raises(ValueError, match="the embedding of class 2, token 1 is not in the checkpoint's token table"):
        dferclip_checkpoint.convert(path, tmp_path / "hub")


def test_prompts_that_do_not_fill_the_text_tower(tmp_path, dferclip_state):
    dferclip_state["prompt_learner.token_suffix"] = dferclip_state["prompt_learner.token_suffix"][:, :-2]
    path = saved(dferclip_state, tmp_path / "checkpoint.pth")
    with pytest.raises(ValueError, match=r"1 \+ 4 \+ 13 tokens does not fill the 20 positions"):
        dferclip_checkpoint.convert(path, tmp_path / "hub")


@pytest.mark.parametrize(
    ("number_of_classes", "labels", "message"),
    [
        (3, None, "has 3 classes, and only those with 7 or 11 have names by default: give 3 names"),
        (7, "a,b", "--labels has 2 names, but the checkpoint has 7 classes"),
        (2, "a,a", "empty or repeated name"),
        (2, "a,", "empty or repeated name"),
    ],
)
def test_labels_that_do_not_fit(tmp_path, number_of_classes, labels, message):
    model = DferClip(Clip(32), Temporal(32, **SIZES), texts=SEVEN_TEXTS[:number_of_classes])
    path = save_checkpoint(tmp_path / "checkpoint.pth", model)
    with pytest.raises(SystemExit, match=message):
        dferclip_checkpoint.main([str(path), str(tmp_path / "hub"), *(["--labels", labels] if labels else [])])
    assert not (tmp_path / "hub").exists()


def test_eleven_classes_have_the_order_of_dferclip(tmp_path):
    texts = [*SEVEN_TEXTS, [9], [9, 9], [8], [7]]
    path = save_checkpoint(tmp_path / "checkpoint.pth", DferClip(Clip(32), Temporal(32, **SIZES), texts=texts))
    names = (
        "happiness, sadness, neutral, anger, surprise, disgust, fear, contempt, anxiety, helplessness, disappointment"
    )
    assert f"11 classes: {names}" in dferclip_checkpoint.convert(path, tmp_path / "hub")


# ---- tokenizer and output folder ----


def test_a_tokenizer_that_cannot_be_had_is_reported(tmp_path, emoclip_state, capsys):
    path = saved(emoclip_state, tmp_path / "checkpoint.pth")
    emoclip_checkpoint.main([str(path), str(tmp_path / "hub"), "--tokenizer", "nobody/nothing"])
    assert "MISSING: the tokenizer: nobody/nothing cannot be loaded" in capsys.readouterr().out
    files = {file.name for file in (tmp_path / "hub").iterdir()}
    assert {"config.json", "model.safetensors", "video_preprocessor_config.json", "README.md"} <= files
    assert not files & {"tokenizer.json", "processor_config.json"}


def test_a_tokenizer_of_another_text_tower_is_refused(tmp_path, emoclip_state, clip_dir):
    path = saved(emoclip_state, tmp_path / "checkpoint.pth")
    with pytest.raises(ValueError, match=r"the tokenizer .* has \d+ tokens .* but the checkpoint has 514"):
        emoclip_checkpoint.convert(path, tmp_path / "hub", tokenizer=str(clip_dir))
    assert not (tmp_path / "hub").exists()


def test_a_used_folder_is_refused_and_an_empty_one_filled(tmp_path, emoclip_state):
    path = saved(emoclip_state, tmp_path / "checkpoint.pth")
    with pytest.raises(FileExistsError, match="exists already"):
        emoclip_checkpoint.convert(path, tmp_path)
    (tmp_path / "empty").mkdir()
    emoclip_checkpoint.convert(path, tmp_path / "empty")
    assert (tmp_path / "empty" / "model.safetensors").is_file()


def test_nothing_is_left_of_a_failure(tmp_path, emoclip_state, monkeypatch):
    path = saved(emoclip_state, tmp_path / "checkpoint.pth")

    def no_space(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(hub_folder, "write_card", no_space)
    with pytest.raises(SystemExit, match="error: No space left on device"):
        emoclip_checkpoint.main([str(path), str(tmp_path / "hub")])
    assert list(tmp_path.iterdir()) == [path]
