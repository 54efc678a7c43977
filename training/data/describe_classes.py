# SPDX-License-Identifier: Apache-2.0
"""Generates class descriptions by asking a language model what each label looks like on a face.

python -m training.data.describe_classes --labels bored tense "about to cry" --model FOLDER_OR_HUB_ID --output my.yaml
python -m training.data.describe_classes --labels bored --model http://localhost:8000/v1 --model-name NAME

The prompt is DFER-CLIP's (Zhao and Patras, BMVC 2023, arXiv 2308.13382). Pass the file to a recipe with
`data.class_descriptions=my.yaml`, but review it first: the model's answers are not checked. The model must be a
causal language model, or a server with OpenAI's chat completions API, with its key in OPENAI_API_KEY.
"""

import argparse
import hashlib
import json
import os
import re
import sys
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

import yaml
from huggingface_hub import InferenceClient, cached_assets_path
from tqdm.auto import tqdm

PROMPT = """Q: What visual features are useful for {label}'s facial expressions?
A: Useful visual features for {label} facial expressions include:"""
MODELS = "a folder or Hub id of a causal language model, and the base URL of a server of chat completions"
MAX_ANSWER_TOKENS = 256
# CLIP reads 77 tokens: 2 are special, 8 are DFER-CLIP's learnt contexts. Its tokenizer first splits a text as _PIECE
# does; a piece has 1.0 to 1.2 tokens on average in class_descriptions.yaml, 1.8 in anatomical terms.
MAX_PIECES = 38
_PIECE = re.compile(r"[^\W\d_]+|\d|[^\w\s]|_")
_PARENTHESES_AND_MARKDOWN = re.compile(r"\([^\d)][^)]*\)|[_`\"#\u201c\u201d]|\*(?!\s)|(?<=\S)\*")
_LIST_ITEM = re.compile(r"\s*(?:[-*\u2022]|\(?\d+[.)])\s*(?=[^\W\d])(.+)")
_PREAMBLE = re.compile(r"\A(A:\s*)?([^:.\n]*?\bincludes?\b:?|[^:\n]*\b(are|is|here|sure|features)\b[^:\n]*:|)", re.I)
_REFUSAL = re.compile(r"\W*(?:i\W?a?m sorry|sorry|unfortunately|i can(?:no|\W)t|i am unable|as an ai)\b", re.I)
_CHATTER = re.compile(r"\b(?:i|me|you|your|sure|certainly|of course|following)\b")
_to_yaml = partial(yaml.safe_dump, sort_keys=False, allow_unicode=True, width=1000)


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", nargs="+", required=True, help="separated by spaces; quote one of several words")
    parser.add_argument("--model", required=True, help="folder, Hub id, or base URL of an OpenAI-compatible server")
    parser.add_argument("--model-name", help="what the server of the URL calls its model")
    parser.add_argument(
        "--num-texts", type=int, default=3, help="answers for each label (3); equal ones become one text"
    )
    parser.add_argument("--output", type=Path, help="yaml file; its other labels are kept; default: print")
    parser.add_argument("--overwrite", action="store_true", help="replace labels that --output has with other texts")
    parser.add_argument("--seed", type=int, default=0, help="another one than 0 gives other answers")
    parser.add_argument("--cache-dir", type=Path, help="where answers are kept; default: the HuggingFace cache")
    try:
        _run(parser.parse_args(arguments))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        parser.exit(130, "\ninterrupted: the same command goes on with the first answer that is missing\n")


def _run(options: argparse.Namespace):
    labels = [label.strip() for label in options.labels]
    for label in labels:
        # "+" is modeling_emoclip.label_scoring.COMPOUND_SEPARATOR; a compound is described by its parts.
        if not label or set(label) & set(",+\n") or labels.count(label) > 1:
            raise ValueError(f"--labels has {label!r}; allowed are names, each once, without ',' and '+'")
    for name, allowed in {"num_texts": range(1, 101), "seed": range(10**6)}.items():
        if (value := getattr(options, name)) not in allowed:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; allowed are {allowed[0]} to {allowed[-1]}")
    model, is_url = options.model, options.model.startswith(("http://", "https://"))
    if options.model_name and not is_url:
        raise ValueError(f"--model-name is allowed with a URL, but --model is {model!r}")
    old = _read(options.output) if options.output else {}  # before the first request
    # Retraining in the same folder gives a different model, so cached answers must not be reused.
    weights = tuple(sorted(file.stat().st_mtime_ns for file in Path(model).glob("*.safetensors")))
    ask = partial(ask_server, model, options.model_name) if is_url else partial(ask_local, model, weights)
    cache_dir = options.cache_dir or cached_assets_path("emoclip", namespace="class_descriptions")
    new = describe(labels, ask, options.num_texts, options.seed, cache_dir)
    if not options.output:
        return print(_to_yaml(new), end="")
    if (other := [label for label in labels if old.get(label, new[label]) != new[label]]) and not options.overwrite:
        raise ValueError(f"--output {options.output} has other texts for {', '.join(other)}; allowed with --overwrite")
    add_to_file(options.output, new)
    print(f"wrote {options.output}; texts: {', '.join(f'{label} {len(texts)}' for label, texts in new.items())}")


def ask_local(model: str, weights: tuple[int, ...], prompt: str, seed: int) -> str:
    """Queries a local causal language model; `weights`, the times of its files, invalidates the cached pipeline."""
    from transformers import set_seed  # imported here because servers need no torch

    generate = _load_pipeline(model, weights)
    set_seed(seed)
    prompt = [{"role": "user", "content": prompt}] if generate.tokenizer.chat_template else prompt
    # A base model would continue with questions of its own.
    sampling = {"do_sample": True, "max_new_tokens": MAX_ANSWER_TOKENS, "stop_sequence": ["\nQ:"]}
    return generate(prompt, return_full_text=False, **sampling)[0]["generated_text"]


@cache
def _load_pipeline(model: str, weights: tuple[int, ...]):
    from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

    tokenizer = AutoTokenizer.from_pretrained(model)
    # pipeline() would also load a CLIP and fail only at generation.
    return pipeline("text-generation", model=AutoModelForCausalLM.from_pretrained(model), tokenizer=tokenizer)


def ask_server(url: str, model_name: str | None, prompt: str, seed: int) -> str:
    """Queries a server with OpenAI's chat completions API."""
    # Without a key, InferenceClient sends this machine's Hub token to any server.
    client = InferenceClient(base_url=url, api_key=os.environ.get("OPENAI_API_KEY") or "none", timeout=600)
    # Temperature and length are left to the server: some models reject these parameters.
    output = client.chat_completion([{"role": "user", "content": prompt}], model=model_name, seed=seed)
    if not output.choices:
        raise ValueError(f"no choices in {output}")
    return output.choices[0].message.content or ""


def describe(labels: list[str], ask: partial, num_texts: int, seed: int, cache_dir: Path) -> dict[str, list[str]]:
    """Returns label -> up to `num_texts` distinct texts, querying the model for answers not in `cache_dir`.

    `ask` takes a prompt and a seed; its bound arguments identify the model.

    Raises:
        ValueError: no answer, or one that describes nothing. It is not cached; earlier answers are.
    """
    descriptions = {}
    for label in (progress := tqdm(labels, "labels", unit="label")):
        progress.set_postfix_str(label)
        prompt, texts = PROMPT.format(label=label.replace("_", " ")), []
        for answer_seed in range(1000 * seed, 1000 * seed + num_texts):
            key = json.dumps([ask.args, prompt, answer_seed, MAX_ANSWER_TOKENS])
            file = cache_dir / f"{hashlib.sha256(key.encode()).hexdigest()}.txt"
            answer = file.read_text(encoding="utf-8") if file.is_file() else ""
            if not to_text(answer):
                try:
                    answer = ask(prompt, answer_seed)
                except Exception as error:  # each library raises its own if a model is missing, broken or unreachable
                    raise ValueError(f"--model {ask.args[0]!r}: {error!r:.500}; allowed are {MODELS}") from error
                if not to_text(answer):
                    raise ValueError(f"label {label!r}: the answer describes no face: {answer!r:.300}")
                _write(file, answer)
            texts.append(to_text(answer))
        descriptions[label] = list(dict.fromkeys(texts))
    return descriptions


def to_text(answer: str) -> str:
    """Converts a model's answer to one comma-separated text within CLIP's context; "" if it describes nothing."""
    answer = re.sub(r"<think>.*?(</think>|$)", "", answer, flags=re.S).split("\nQ:")[0].strip()
    answer = "" if _REFUSAL.match(answer) else answer
    answer = _PARENTHESES_AND_MARKDOWN.sub("", re.sub(r"[\u2013\u2014]", "-", answer))
    answer = re.sub(r"(?<=\S)\s+(?=\(?\d+[.)]\s*[^\W\d_])", "\n", answer)  # "1. a frown 2. a pout" in one line
    items = [match[1] for line in answer.splitlines() if (match := _LIST_ITEM.match(line))]
    if not items:
        paragraphs = [_PREAMBLE.sub("", part.strip()) for part in re.split(r"\n\s*\n", answer)]
        items = next((part.splitlines() for part in paragraphs if part), [])
    phrases, text = [], ""
    for item in (item.rstrip() for item in items if not item.rstrip().endswith(":")):
        item = re.sub(r"^(\w+)(:| -+)(?=\s)", r"\1", item)  # "Eyes: half closed"; a longer heading is a feature
        phrases += re.split(r"[,;:]\s|[.!?](?:\s|$)|\s-+\s", item)
    for phrase in dict.fromkeys(re.sub(r"^and ", "", phrase.strip(" \t.,:;!?'*-").lower()) for phrase in phrases):
        longer = f"{text}, {phrase}" if text else phrase
        if phrase and not _CHATTER.search(phrase) and len(_PIECE.findall(longer)) <= MAX_PIECES:
            text = longer
    return text if len(re.findall(r"[^\W\d_]{2,}", text)) >= 2 else ""


def add_to_file(path: Path, new: dict[str, list[str]]):
    """Adds `new` to a yaml file of label -> texts. Keeps other labels, and comments if no label is replaced."""
    old, content = _read(path), path.read_text(encoding="utf-8") if path.is_file() else ""
    if added := {label: texts for label, texts in new.items() if label not in old}:
        content = f"{content.rstrip()}\n{_to_yaml(added)}".lstrip()
    with suppress(yaml.YAMLError):  # lines cannot be added to `{anger: [a frown]}`
        if yaml.safe_load(content) == old | new:
            return _write(path, content)
    _write(path, _to_yaml(old | new))


def _read(path: Path) -> dict[str, list[str]]:
    with suppress(yaml.YAMLError, UnicodeDecodeError, AttributeError):
        descriptions = yaml.safe_load(path.read_text(encoding="utf-8") if path.exists() else "") or {}
        if all(isinstance(texts, list) for texts in descriptions.values()):
            return descriptions
    raise ValueError(f"--output {path} exists, but is not yaml of label -> list of texts")


def _write(path: Path, text: str):
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)  # atomic: an interruption leaves the old file


if __name__ == "__main__":
    main()
