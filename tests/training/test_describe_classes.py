# SPDX-License-Identifier: Apache-2.0
"""describe_classes asks a real server on loopback, and tiny language models that learn their answers here."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from modeling_emoclip.label_scoring import COMPOUND_SEPARATOR
from training.build import load_class_descriptions
from training.data.describe_classes import main, to_text

# DFER-CLIP's question, as the paper prints it.
PAPER = (
    "Q: What visual features are useful for {0}'s facial expressions? "
    "A: Useful visual features for {0} facial expressions include:"
)
BORED = ["drooping eyelids, a slack mouth", "half-closed eyes, a yawn", "a blank gaze", "a tilted head"]


# ---- answers ----


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("drooping eyelids, a slack mouth, and a blank gaze.", "drooping eyelids, a slack mouth, a blank gaze"),
        (" a frown and lowered brows. The head is bowed.", "a frown and lowered brows, the head is bowed"),
        (
            "Sure! Here are some useful features for boredom:\n\n1. **Drooping eyelids** - they hang.\n2. *Slack* jaw"
            "\n\nThese features help. Let me know if you need more!",
            "drooping eyelids, they hang, slack jaw",
        ),
        ("- **Eyes:** Half-closed\n- **Mouth**: slack (AU 26), a yawn", "eyes half-closed, mouth slack, a yawn"),
        ("### Eyes\n* half-closed eyes\n* unfocused gaze\n### Mouth\n\u2022 slack lips", None),
        ("1. Heavy eyelids 2. Slack jaw 3) a yawn", "heavy eyelids, slack jaw, a yawn"),
        ("A: Useful features include: heavy eyelids, a yawn\nQ: And for anger?\nA: fists", "heavy eyelids, a yawn"),
        ("Here are some features:\n\nheavy eyelids; a yawn\n\nHope this helps.", "heavy eyelids, a yawn"),
        ("<think>Eyes, perhaps: closed?</think>\n\nheavy eyelids, a yawn, a yawn", "heavy eyelids, a yawn"),
    ],
)
def test_an_answer_becomes_one_phrase(answer, text):
    assert to_text(answer) == (text or "half-closed eyes, unfocused gaze, slack lips")


@pytest.mark.parametrize(
    "answer", ["", "?!", "42", "<think>eyes, a mouth", "I'm sorry, but faces are private.", "1.\n2."]
)
def test_an_answer_without_description_is_empty(answer):
    assert to_text(answer) == ""


def test_a_long_answer_ends_with_a_whole_feature_that_clip_still_reads():
    features = [f"feature {letter} of a very long list" for letter in "abcdefghijklmnopqrstuvwxyz"]
    kept = to_text("\n".join(f"- {feature}" for feature in features)).split(", ")
    assert kept == features[: len(kept)] and 3 <= len(kept)
    assert len(", ".join(kept).replace(",", " ,").split()) <= 40  # of 77 tokens; a word may be several


# ---- a server ----


@pytest.fixture
def server():
    """A chat completions server on loopback: `requests` it got, and `answer(body)`: a text, or (status, bytes)."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            httpd.requests.append({"path": self.path, "key": self.headers.get("authorization"), **body})
            answer = httpd.answer(body)
            if not isinstance(answer, tuple):
                message = {"role": "assistant", "content": answer}
                answer = 200, json.dumps({"choices": [{"index": 0, "message": message}]}).encode()
            self.send_response(answer[0])
            self.send_header("content-length", str(len(answer[1])))
            self.end_headers()
            self.wfile.write(answer[1])

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.daemon_threads = True
        httpd.requests, httpd.url = [], f"http://127.0.0.1:{httpd.server_port}/v1"
        httpd.answer = lambda body: f"- text {body['seed']} of a face\n- {label_of(body)} eyes"
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield httpd
        httpd.shutdown()


def label_of(body):
    return body["messages"][0]["content"].split("useful for ")[1].split("'s")[0]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """`run(*arguments)`: the command in `tmp_path`; what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def run(*arguments):
        main(["--cache-dir", "cache", *map(str, arguments)])
        return capsys.readouterr().out

    return run


@pytest.fixture
def start(tmp_path):
    """`start(*arguments)`: the command as a process in `tmp_path`, with its default cache there."""

    def start(*arguments):
        inherited = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
        return subprocess.Popen(
            [sys.executable, "-m", "training.data.describe_classes", *map(str, arguments)],
            env=inherited | {"HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "127.0.0.1"},
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def test_underscores_of_a_label_are_asked_for_as_blanks(server, run, tmp_path):
    run("--labels", "about_to_cry", "--model", server.url, "--num-texts", "1", "--output", "my.yaml")
    (message,) = server.requests[0]["messages"]
    assert " ".join(message["content"].split()) == PAPER.format("about to cry")
    assert list(yaml.safe_load((tmp_path / "my.yaml").read_text())) == ["about_to_cry"]


def test_the_papers_question_is_asked_and_the_answers_can_be_loaded(server, run, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "key-1")
    labels = ["bored", "about to cry"]
    arguments = ["--labels", *labels, "--model", server.url, "--num-texts", "2", "--output", "new/my.yaml"]
    run(*arguments, "--model-name", "some-model")
    asked = [
        (message["role"], " ".join(message["content"].split())) for r in server.requests for message in r["messages"]
    ]
    assert asked == [("user", PAPER.format(label)) for label in labels for _ in range(2)]
    for request in server.requests:
        sent = request["path"], request["model"], request["key"]
        assert sent == ("/v1/chat/completions", "some-model", "Bearer key-1")
    assert load_class_descriptions("new/my.yaml") == {
        label: [f"text {seed} of a face, {label} eyes" for seed in (0, 1)] for label in labels
    }


def test_without_a_key_the_hub_token_is_not_sent(server, run):
    assert yaml.safe_load(run("--labels", "bored", "--model", server.url))["bored"]
    assert server.requests and not [request for request in server.requests if "hf_secret" in str(request)]


def test_only_missing_answers_are_asked_for(server, run):
    first = run("--labels", "bored", "--model", server.url, "--num-texts", "2")
    assert len(server.requests) == 2
    assert run("--labels", "bored", "--model", server.url, "--num-texts", "2") == first and len(server.requests) == 2
    run("--labels", "bored", "tense", "--model", server.url, "--num-texts", "3")
    assert sorted((label_of(r), r["seed"]) for r in server.requests[2:]) == [
        ("bored", 2),
        *(("tense", seed) for seed in range(3)),
    ]
    for other in (["--model-name", "other"], ["--seed", "1"], ["--cache-dir", "elsewhere"]):
        server.requests.clear()
        run("--labels", "bored", "--model", server.url, "--num-texts", "2", *other)
        assert len(server.requests) == 2, other


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_goes_on_with_what_is_missing(server, start, tmp_path, how):
    usual, reached, released = server.answer, threading.Event(), threading.Event()

    def stuck_at_the_second_label(body):
        if label_of(body) == "tense":
            reached.set()
            released.wait(60)
        return usual(body)

    server.answer = stuck_at_the_second_label
    before = "# mine\nangry:\n- a frown\n"
    (tmp_path / "my.yaml").write_text(before)
    arguments = ["--labels", "bored", "tense", "--model", server.url, "--output", "my.yaml"]
    process = start(*arguments)
    assert reached.wait(60)
    process.send_signal(how)
    _, err = process.communicate(timeout=60)
    assert process.returncode and "Traceback" not in err
    assert (tmp_path / "my.yaml").read_text() == before
    released.set()
    server.answer = usual
    server.requests.clear()
    _, err = start(*arguments).communicate(timeout=60)
    assert [label_of(request) for request in server.requests] == ["tense"] * 3 and "2/2" in err
    assert set(yaml.safe_load((tmp_path / "my.yaml").read_text())) == {"angry", "bored", "tense"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "my.yaml"]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((500, b'{"error": "out of\\n memory"}'), "--model 'http.*500.*out of.*memory.*allowed are a folder"),
        ((401, b"who are you"), "--model 'http.*401.*who are you"),
        ((200, b"<html>hello</html>"), "--model 'http.*JSON.*allowed are a folder"),
        ((200, b"{}"), "--model 'http.*no choices.*allowed are a folder"),
        ("", "label 'tense'.*''"),
        (None, "label 'tense'.*''"),
        ("I'm sorry,\nbut no.", "label 'tense'.*I'm sorry,\\\\nbut no"),
        ("?" * 400, r"label 'tense'.*'\?{299}$"),
    ],
)
def test_a_failure_is_one_line_and_keeps_what_was_answered(server, run, tmp_path, answer, message):
    usual = server.answer
    server.answer = lambda body: answer if label_of(body) == "tense" else usual(body)
    arguments = ["--labels", "bored", "tense", "--model", server.url, "--num-texts", "1", "--output", "my.yaml"]
    with pytest.raises(SystemExit, match=rf"\Aerror: {message}.*\Z"):
        run(*arguments)
    assert not (tmp_path / "my.yaml").exists()
    server.answer = usual
    server.requests.clear()
    run(*arguments)
    assert [label_of(request) for request in server.requests] == ["tense"]


def test_an_unreachable_server_is_named_without_a_traceback(start):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
    process = start("--labels", "bored", "--model", url)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1 and out == "" and "Traceback" not in err
    assert err.splitlines()[-1].startswith(f"error: --model '{url}': ConnectError")


# ---- what is asked for, and the file ----


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labels", "bored", " "], "--labels has ''; allowed"),
        (["--labels", "bored", "tense", "bored"], "--labels has 'bored'; allowed"),
        (["--labels", "bored,tense"], "--labels has 'bored,tense'; allowed"),
        (["--labels", f"anger {COMPOUND_SEPARATOR} fear"], "--labels has 'anger . fear'; allowed"),
        (["--labels", "bored", "--num-texts", "0"], "--num-texts is 0; allowed are 1 to 100"),
        (["--labels", "bored", "--seed", "-1"], "--seed is -1; allowed are 0 to"),
        (["--labels", "bored", "--output", "list.yaml"], "--output list.yaml exists, but"),
        (["--labels", "bored", "--output", "broken.yaml"], "--output broken.yaml exists, but"),
        (["--labels", "bored", "--model", "gpt2", "--model-name", "x"], "--model-name is allowed with a URL"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_asked(server, run, tmp_path, arguments, message):
    (tmp_path / "list.yaml").write_text("- a frown\n")
    (tmp_path / "broken.yaml").write_text("anger: [a frown\n")
    with pytest.raises(SystemExit, match=f"^error: {message}"):
        run("--model", server.url, *arguments)
    assert server.requests == []


@pytest.mark.parametrize("style", ["# by hand\nbored: # really\n  - a yawn", "{bored: [a yawn]}\n"])
def test_other_labels_are_kept_and_other_texts_are_not_overwritten(server, run, tmp_path, style):
    file = tmp_path / "my.yaml"
    file.write_text(style)
    run("--labels", "tense", "no", "--model", server.url, "--num-texts", "1", "--output", "my.yaml")
    added = {label: [f"text 0 of a face, {label} eyes"] for label in ("tense", "no")}
    assert list(load_class_descriptions(str(file)).items()) == [("bored", ["a yawn"]), *added.items()]
    assert file.read_text().startswith(style if "#" in style else "bored:")
    before = file.read_text()
    again = ["--labels", "bored", "tense", "new", "--model", server.url, "--num-texts", "1", "--output", "my.yaml"]
    with pytest.raises(SystemExit, match=r"^error: --output my\.yaml has other texts for bored; .*--overwrite"):
        run(*again)
    assert file.read_text() == before
    run(*again, "--overwrite")
    assert load_class_descriptions(str(file)) == added | {
        label: [f"text 0 of a face, {label} eyes"] for label in ("bored", "new")
    }


# ---- a model ----


def save_language_model(folder, texts, chat_template=None):
    """A GPT-2 that has learnt `texts` by heart."""
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = bytes_, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<end>"], initial_alphabet=bytes_.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")
    tokenizer.chat_template = chat_template
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        sizes = {"vocab_size": len(tokenizer), "n_positions": 400, "n_embd": 64, "n_layer": 2, "n_head": 4}
        model = GPT2LMHeadModel(GPT2Config(**sizes, **dropout, bos_token_id=0, eos_token_id=0))
        batch = tokenizer([text + "<end>" for text in texts], return_tensors="pt", padding=True)
        labels = batch["input_ids"].masked_fill((batch["input_ids"] == 0).cumsum(1) > 1, -100)
        optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
        for _ in range(120):
            model(**batch, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def prompt(label):
    return PAPER.format(label).replace("? A:", "?\nA:")


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    """It continues texts, and would go on with a question of its own."""
    texts = [f"{prompt('bored')} {text}.\nQ: What about anger?" for text in BORED]
    return save_language_model(
        tmp_path_factory.mktemp("lm"), [*texts, f"{prompt('tense')}\n1. pressed lips\n2. a frown"]
    )


def test_a_local_model_gives_several_texts_that_follow_the_seed(language_model, run):
    ask = ["--labels", "bored", "tense", "--model", language_model, "--num-texts", "12"]
    first = yaml.safe_load(run(*ask))
    assert set(first["bored"]) <= set(BORED) and len(first["bored"]) >= 3
    assert first["tense"] == ["pressed lips, a frown"]
    assert yaml.safe_load(run(*ask, "--cache-dir", "another")) == first
    others = [yaml.safe_load(run(*ask, "--seed", seed))["bored"] for seed in (1, 2, 3)]
    assert [texts for texts in others if texts != first["bored"]]


def test_a_chat_model_is_asked_through_its_template(run):
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    template += "{% if add_generation_prompt %}<bot>{% endif %}"
    answer = "Sure! Here are some:\n\n- **Heavy** eyelids\n- a yawn"
    save_language_model("lm", [f"<user>{prompt('bored')}<bot>{answer}", f"{prompt('bored')} asked without"], template)
    assert yaml.safe_load(run("--labels", "bored", "--model", "lm")) == {"bored": ["heavy eyelids, a yawn"]}


def test_cached_answers_need_no_model_but_other_weights_are_another_model(language_model, run, start, tmp_path):
    shutil.copytree(language_model, tmp_path / "lm")
    ask = ["--labels", "tense", "--model", "lm", "--num-texts", "1", "--cache-dir", "cache"]
    answer = run(*ask)
    (tmp_path / "lm" / "config.json").unlink()
    assert start(*ask).communicate(timeout=60)[0] == answer == "tense:\n- pressed lips, a frown\n"
    os.utime(tmp_path / "lm" / "model.safetensors", (0, 0))
    with pytest.raises(SystemExit, match=r"^error: --model 'lm': "):
        run(*ask)


@pytest.mark.parametrize("model", ["does/not-exist", "./nowhere", "broken", "clip"])
def test_what_is_no_language_model_is_named(language_model, clip_dir, run, monkeypatch, model):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    shutil.copytree(clip_dir, "clip")
    shutil.copytree(language_model, "broken")
    os.truncate("broken/model.safetensors", 5000)
    with pytest.raises(SystemExit) as error:
        run("--labels", "bored", "--model", model)
    message = str(error.value)
    assert message.startswith(f"error: --model {model!r}: ") and "\n" not in message
    assert "allowed are a folder or Hub id of a causal language model" in message
