# SPDX-License-Identifier: Apache-2.0
"""Nothing stale: what is kept between calls follows every way in which a model can change; padding has its mask."""

import copy

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from video_files import write_video

from emoclip import (
    EmoCLIPConfig,
    EmoCLIPForPromptClassification,
    EmoCLIPModel,
    EmoCLIPProcessor,
    EmoCLIPVideoProcessor,
    ZeroShotVideoClassificationPipeline,
)

LABELS = ["happiness", "sadness", "anger"]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    return [write_video(folder / "short.mp4", num_frames=13), write_video(folder / "long.mp4", num_frames=42)]


@pytest.fixture
def model(clip_dir):
    torch.manual_seed(0)
    model = EmoCLIPModel.from_clip(clip_dir, temporal_num_layers=1).eval()
    torch.nn.init.normal_(model.temporal.output_projection.weight)
    return model


def make_pipe(model, clip_dir, num_frames=4, **options):
    processor = EmoCLIPProcessor.from_clip(clip_dir, num_frames=num_frames)
    return ZeroShotVideoClassificationPipeline(model=model, processor=processor, **options)


def scores_of(pipe, clip):
    return {entry["label"]: entry["score"] for entry in pipe(clip, LABELS)}


def in_place(model):
    with torch.no_grad():
        model.text_projection.weight.copy_(torch.randn_like(model.text_projection.weight))


def through_data(model):
    for parameter in (*model.vision_model.parameters(), *model.text_model.parameters()):
        parameter.data.mul_(0.5)


def other_data(model):
    for parameter in (*model.vision_model.parameters(), *model.text_model.parameters()):
        parameter.data = parameter.data * 0.5


def loaded(model):
    model.load_state_dict({name: 0.7 * value for name, value in model.state_dict().items()})


@pytest.mark.parametrize("change", [in_place, through_data, other_data, loaded, torch.nn.Module.double])
@pytest.mark.parametrize("options", [{}, {"dtype": "bfloat16"}], ids=str)
def test_scores_are_those_of_the_weights_that_are_there_now(model, clip_dir, clips, change, options):
    if options and change is torch.nn.Module.double:
        options = {}  # the others choose a dtype themselves
    pipe = make_pipe(model, clip_dir, **options)
    before = scores_of(pipe, clips[0])
    change(model)
    after = scores_of(pipe, clips[0])
    assert after == scores_of(make_pipe(model, clip_dir, **options), clips[0])
    assert after != before


def test_another_model_in_its_place(model, clip_dir, clips):
    pipe = make_pipe(model, clip_dir, dtype="bfloat16")
    scores_of(pipe, clips[0])
    other = copy.deepcopy(model)
    through_data(other)
    pipe.model = other
    assert scores_of(pipe, clips[0]) == scores_of(make_pipe(other, clip_dir, dtype="bfloat16"), clips[0])


def test_an_adapter_that_is_switched_off(model, clip_dir, clips):
    pipe = make_pipe(model, clip_dir)
    plain = scores_of(pipe, clips[0])
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    with_adapter = scores_of(pipe, clips[0])
    assert with_adapter != plain
    with adapted.disable_adapter():
        assert scores_of(pipe, clips[0]) == pytest.approx(plain, abs=1e-6)
    assert scores_of(pipe, clips[0]) == with_adapter


def test_a_time_line_notices_that_its_text_encoder_has_changed(model, clip_dir, clips):
    pipe = make_pipe(model, clip_dir)
    timeline = pipe.timeline(clips[0], LABELS, faces="none", progress=False)
    in_place(model)
    with pytest.raises(ValueError, match="another text encoder"):
        timeline.rescore(["calm"])


def test_the_prompt_models_class_embeddings_follow_data_too(clip_dir):
    texts = {"happiness": "a smile", "anger": "lowered eyebrows"}
    model = EmoCLIPForPromptClassification.from_clip(clip_dir, class_descriptions=texts).eval()
    with torch.no_grad():
        before = model.get_class_embeds().clone()
        model.text_projection.weight.data.copy_(torch.randn_like(model.text_projection.weight))
        after = model.get_class_embeds()
        assert not torch.allclose(before, after)


# --- clips of unequal length


@pytest.mark.parametrize("how", [{"fps": 4}, {"do_sample_frames": False}], ids=str)
@pytest.mark.parametrize("options", [{"batch_size": 2}, {"batch_size": 2, "num_workers": 1}], ids=str)
def test_a_batch_of_unequal_clips_has_the_scores_of_each_alone(model, clip_dir, clips, how, options):
    pipe = make_pipe(model, clip_dir)
    for name, value in how.items():
        setattr(pipe.processor.video_processor, name, value)
    alone = [scores_of(pipe, clip) for clip in clips]
    together = pipe([str(clip) for clip in clips], LABELS, **options)
    for one, several in zip(alone, together, strict=True):
        assert {entry["label"]: entry["score"] for entry in several} == pytest.approx(one, abs=1e-6)


def test_every_way_to_hand_over_several_clips(model, clip_dir, clips):
    pipe = make_pipe(model, clip_dir)
    frames = np.random.default_rng(0).integers(0, 255, (2, 4, 32, 32, 3), dtype=np.uint8)
    expected = [pipe(clip, LABELS) for clip in frames]
    for several in (frames, torch.from_numpy(frames), list(frames), tuple(frames), [list(clip) for clip in frames]):
        assert pipe(several, LABELS) == expected
    assert pipe(list(frames[0]), LABELS) == pipe(tuple(frames[0]), LABELS) == expected[0]
    paths = tuple(map(str, clips))
    assert pipe(paths, LABELS) == pipe(list(paths), LABELS) == [pipe(path, LABELS) for path in paths]
    assert pipe(frames[:1], LABELS) == expected[:1] == pipe([frames[0]], LABELS)


# --- clear errors


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (LABELS, {"batch_size": 0}, "batch_size is 0, but must be a whole number from 1"),
        (LABELS, {"batch_size": 1.5}, r"batch_size is 1\.5"),
        (LABELS, {"num_workers": -1}, "num_workers is -1"),
        (LABELS, {"temperature": "2"}, "temperature is '2', but must be a number"),
        (LABELS, {"temperature": True}, "temperature is True"),
        (LABELS, {"temperature": float("nan")}, "temperature is nan"),
        (LABELS, {"abstain_below": "x"}, "abstain_below is 'x'"),
        (["C++", "c"], {}, r"Where \+ stands for itself, give the label with its text: \{'C\+\+': 'an expression"),
        ({"+1": None}, {}, "give the label with its text"),
        (["\ud800", "a"], {}, "half of one"),
        ({"a": "x\udfff"}, {}, "half of one"),
        (["a"], {"hypothesis_template": "\ud800 {}"}, "half of one"),
    ],
)
def test_bad_arguments_of_a_call(model, clip_dir, clips, labels, options, message):
    with pytest.raises(ValueError, match=message):
        make_pipe(model, clip_dir)(str(clips[0]), labels, **options)


def test_a_label_may_be_called_anything(model, clip_dir, clips):
    pipe = make_pipe(model, clip_dir)
    assert len(pipe(clips[0], ["\0background", "b"], multi_label=True)) == 2
    assert len(pipe(clips[0], {"C++": "an expression of C++", "c": None})) == 2


def test_a_text_that_is_cut_is_told_with_its_end(model, clip_dir, clips, caplog):
    pipe, beginning = make_pipe(model, clip_dir), "a smile " * 100
    with caplog.at_level("WARNING"):
        pipe(clips[0], {"first": f"{beginning} and a frown", "second": f"{beginning} and a smile"})
        pipe(clips[0], {"first": f"{beginning} and a frown", "second": f"{beginning} and a smile"})
    cut = [message for message in caplog.messages if "is cut" in message]
    assert len(cut) == 2, "once each"
    assert "the text tower reads" in cut[0] and "'a smile a smile" in cut[0]


def test_many_texts_go_through_the_tower_in_parts(model, clip_dir, monkeypatch):
    pipe, sizes = make_pipe(model, clip_dir), []
    encode = model.get_text_features

    def counted(**inputs):
        sizes.append(len(inputs["input_ids"]))
        return encode(**inputs)

    monkeypatch.setattr(model, "get_text_features", counted)
    texts = {f"label {number}": ((f"a face of kind {number}",),) for number in range(300)}
    together = pipe.class_embeds(texts)
    assert sizes == [256, 44]
    torch.testing.assert_close(together[299:], pipe.class_embeds({"label": texts["label 299"]}), atol=1e-5, rtol=0)


def test_a_clip_without_frames_is_refused(model):
    width = model.config.projection_dim
    with pytest.raises(ValueError, match="with at least one frame"):
        model.get_video_features(frame_embeds=torch.zeros(2, 0, width))
    with pytest.raises(ValueError, match="with at least one frame"):
        model.get_video_features(pixel_values_videos=torch.zeros(2, 0, 3, 32, 32))


# --- fields that nobody reads, and secrets


def test_the_hubs_arguments_are_the_hubs_and_are_not_saved(clip_dir, tmp_path, monkeypatch):
    from modeling_emoclip import processing_emoclip

    asked = []
    load = processing_emoclip.AutoTokenizer.from_pretrained

    def from_pretrained(name, **options):
        asked.append(dict(options))
        options.pop("revision", None)
        return load(name, **options)

    monkeypatch.setattr(processing_emoclip.AutoTokenizer, "from_pretrained", from_pretrained)
    hub = {"token": "hf_SECRET", "revision": "v9", "local_files_only": True}
    EmoCLIPProcessor.from_clip(clip_dir, num_frames=3, **hub).save_pretrained(tmp_path / "processor")
    assert asked[0].items() >= {"token": "hf_SECRET", "revision": "v9", "local_files_only": True}.items()
    assert not any("SECRET" in path.read_text() for path in (tmp_path / "processor").iterdir())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: EmoCLIPVideoProcessor(token="hf_SECRET"), "EmoCLIPVideoProcessor has no field token"),
        (lambda _: EmoCLIPVideoProcessor(num_frame=4), "no field num_frame; is it num_frames"),
        (lambda clip: EmoCLIPProcessor.from_clip(clip, num_frame=4), "no field num_frame; is it num_frames"),
        (lambda _: EmoCLIPConfig(temporal_layers=1), "no field temporal_layers; is it temporal_"),
        (lambda _: EmoCLIPConfig(projection_dims=1), "no field projection_dims; is it projection_dim"),
        (lambda clip: EmoCLIPModel.from_clip(clip, temporal_layers=1), "no field temporal_layers"),
    ],
)
def test_a_field_that_nobody_reads_is_refused(clip_dir, make, message):
    with pytest.raises(ValueError, match=message):
        make(clip_dir)
