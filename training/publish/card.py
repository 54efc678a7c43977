# SPDX-License-Identifier: Apache-2.0
"""Model cards: templates of hub_cards/, filled from a run's metrics, its recipe and the model's configuration.

No value in a card is entered by hand. Neither cards nor the recipes published with them contain local folder names.
"""

import copy
import importlib
import json
import re
import tempfile
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2
import yaml
from huggingface_hub import EvalResult, ModelCardData, hf_hub_download
from transformers import PreTrainedConfig, PreTrainedModel

from emoclip.typed_text import markdown_text
from modeling_emoclip.pipeline_emoclip import TASK
from training.data.expression_videos import ExpressionVideos
from training.data.own_videos import OwnVideos
from training.publish.redaction import without_folders, without_secrets
from training.recipe import DataRecipe, DataSource, EvaluationSet, Recipe, load_recipe

HUB_CARDS = Path(__file__).resolve().parents[2] / "hub_cards"
TEMPLATES = {
    "EmoCLIPModel": "emoclip.md",
    "EmoCLIPForPromptClassification": "dferclip.md",
    "EmoCLIPForVideoClassification": "classifier.md",
    "EmoCLIPForVideoRegression": "regression.md",
}
THIS = "<this repository or folder>"
# CLIP checkpoints that the recipes start from; they are recognized without a request to the Hub.
CLIPS = ("openai/clip-vit-base-patch32", "openai/clip-vit-base-patch16", "openai/clip-vit-large-patch14")
TAGS = ["facial-expression-recognition", "emotion-recognition", "clip"]


def percent(share: float) -> float:
    return round(100 * share, 2)


def rounded(value: float) -> float:
    return round(value, 4)


METRICS = {"uar": percent, "war": percent, **dict.fromkeys(("pcc", "ccc", "mae", "rmse"), rounded)}


@dataclass
class DataSet:
    """Description of a data set in a card."""

    name: str
    licence: str = ""
    homepage: str = ""
    citation: str = ""
    is_licensed: bool = False
    """Licensed under an agreement that may also cover derived work."""
    is_rendered: bool = False
    """Synthetic; shows no real people."""
    is_learnt: bool = False
    """Used to train the weights, not only to evaluate them."""
    uses: list[str] = field(default_factory=list)


def data_sets(recipe: Recipe, seen: frozenset[str] = frozenset()) -> list[DataSet]:
    """Lists the data sets of training, of evaluation, and of the run whose weights this one started from.

    Args:
        seen: checkpoints already visited; the recipe of a repository that was trained twice can refer to itself.
    """
    found: dict[str, DataSet] = {}

    def add(data_set: DataSet, use: str, is_learnt: bool):
        known = found.setdefault(data_set.name, data_set)
        known.is_learnt |= is_learnt
        known.uses += [use] * (use not in known.uses)

    if recipe.optim.epochs > 0:
        add(describe(recipe.data), "training", True)
    for evaluation_set in recipe.data.evaluation.values():
        add(describe(evaluation_set.data or recipe.data), "evaluation", False)
    init = recipe.model.init
    if init in seen:
        return list(found.values())
    if earlier := init and recipe_of(init):
        for data_set in data_sets(earlier, seen | {init}):
            if data_set.is_learnt:
                add(data_set, "training of the weights that this run started from", True)
    elif init and is_emoclip(init):
        unknown = "not known: no recipe lies with the weights that this run started from"
        add(DataSet("unknown", unknown, is_licensed=True), "training of the weights that this run started from", True)
    return list(found.values())


def describe(source: DataRecipe | DataSource) -> DataSet:
    """Describes a data set by its builder's metadata; the data itself need not be present.

    If the builder is unknown, as in the recipe of an external run, the data set counts as licensed.
    """
    module, _, name = source.builder.rpartition(".")
    try:
        builder_class = getattr(importlib.import_module(f"training.data.{module}"), name)
    except (ImportError, AttributeError):
        return DataSet(source.builder, "not known: its builder is not in this installation", is_licensed=True)
    with tempfile.TemporaryDirectory() as cache:  # `datasets` creates a lock file for every builder
        info = builder_class(cache_dir=cache, config_name=source.config_name).info
    if issubclass(builder_class, OwnVideos):
        return DataSet("videos of the publisher's own", "not published; all rights with their owners")
    is_licensed = issubclass(builder_class, ExpressionVideos)
    return DataSet(name, info.license, info.homepage, info.citation, is_licensed, is_rendered=not is_licensed)


def recipe_of(init: str) -> Recipe | None:
    """Loads the recipe stored beside weights in a folder or Hub repository; `None` if there is none."""
    path = Path(init, "recipe.yaml") if Path(init).is_dir() else _on_hub(init, "recipe.yaml")
    try:
        return load_recipe(path) if path else None
    except (OSError, ValueError):
        return None


@lru_cache  # filled at the start of a run, so that cards do not wait for the network later
def _on_hub(repo_id: str, name: str) -> str | None:
    try:
        return hf_hub_download(repo_id, name)
    except (OSError, ValueError):
        return None


def is_emoclip(init: str) -> bool:
    """Returns whether a folder or Hub repository contains, or may contain, a trained EmoCLIP rather than a CLIP."""
    is_hub_id = not Path(init).is_dir() and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", init) is not None
    path = _on_hub(init, "config.json") if is_hub_id else Path(init, "config.json")
    if path is None or not Path(path).is_file():
        return is_hub_id and init not in CLIPS  # unknown repositories count as trained, possibly on licensed data
    try:
        return json.loads(Path(path).read_text(encoding="utf-8")).get("model_type") == "emoclip"
    except (ValueError, AttributeError):
        return True


def base_model(recipe: Recipe, seen: frozenset[str] = frozenset()) -> str | None:
    """Returns the Hub id at the start of the chain of runs; `seen` is as in `data_sets`."""
    init = recipe.model.init
    if init is None or not Path(init).is_dir():
        return init
    earlier = None if init in seen else recipe_of(init)
    return base_model(earlier, seen | {init}) if earlier else None


def published_recipe(recipe: Recipe) -> dict:
    """Returns the recipe without machine-specific fields; folders become their last name or the data set's name."""
    values = recipe.to_dict()
    for name in ("output_dir", "resume", "push_to_hub"):
        del values["run"][name]
    del values["data"]["cache_dir"]
    for source in (values["data"], *(one["data"] for one in values["data"]["evaluation"].values())):
        if source and source["data_dir"]:
            source["data_dir"] = source["builder"].rpartition(".")[2]
    return without_folders(without_secrets(values))


def recipe_text(values: dict) -> str:
    """Returns the fields that differ from the defaults, as YAML that `load_recipe` can read."""
    evaluation = {n: _changed(one, asdict(EvaluationSet())) for n, one in values["data"]["evaluation"].items()}
    values = values | {"data": values["data"] | {"evaluation": evaluation}}
    values = _changed(values, Recipe().to_dict())
    values = {name: value for name, value in values.items() if value != {}}
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110).rstrip()
    return text.replace("```", "` ` `")  # backticks in a title would end the card's code block


def _changed(values: dict, default: dict) -> dict:
    return {
        name: _changed(value, default[name]) if isinstance(value, dict) and default.get(name) else value
        for name, value in values.items()
        if name not in default or value != default[name]
    }


def eval_results(metrics: dict, recipe: Recipe) -> list[EvalResult]:
    """Builds the card's model-index from the scores of all evaluation sets; shares become percentages."""
    results = []
    for name, final in metrics.get("final", {}).items():
        evaluation_set = recipe.data.evaluation.get(name, EvaluationSet())
        source = evaluation_set.data or recipe.data
        where = {
            "task_type": "video-classification",
            "dataset_type": source.builder.split(".")[0],
            "dataset_name": f"{describe(source).name}, {name}",
            # The Hub would merge results with the same configuration and split.
            "dataset_config": f"{source.config_name or 'default'}, {name}",
            "dataset_split": evaluation_set.split,
        }
        parts = {"": final} if "targets" not in final else {f" of {t}": s for t, s in final["targets"].items()}
        for of_target, scores in parts.items():
            for metric, in_model_index in METRICS.items():
                if scores.get(metric) is None:  # not applicable, or undefined
                    continue
                value = {"metric_type": metric, "metric_value": in_model_index(scores[metric])}
                if interval := scores.get(f"{metric}_interval"):
                    share = final["intervals"]["share"]
                    value["metric_args"] = {f"interval_{100 * share:g}": [in_model_index(x) for x in interval]}
                unit = " in percent" if in_model_index is percent else ""
                results.append(EvalResult(metric_name=f"{metric.upper()}{of_target}{unit}", **where, **value))
    return results


def licence(learnt: list[DataSet]) -> dict:
    """Returns the license fields of the card's metadata, with the Hub's license identifiers."""
    if licensed := [one for one in learnt if one.is_licensed]:
        names = "-".join(one.name.lower() for one in licensed)
        link = {"license_link": licensed[0].homepage} if licensed[0].homepage else {}
        return {"license": "other", "license_name": f"{names}-agreement", **link}
    if not all(one.is_rendered for one in learnt):
        return {"license": "other", "license_name": "all-rights-reserved"}
    return {"license": "apache-2.0"}


def head(metrics: dict, recipe: Recipe, model_class: str, sets: list[DataSet]) -> str:
    """Returns the card's YAML metadata for the Hub."""
    is_clip = model_class == "CLIPModel"
    card_data = ModelCardData(
        **licence([one for one in sets if one.is_learnt]),
        language="en",
        library_name="transformers",
        # The pipeline's own task does not exist on the Hub.
        pipeline_tag="zero-shot-image-classification" if is_clip else "video-classification",
        tags=[TASK] * (model_class == "EmoCLIPModel") + TAGS + ["custom_code"] * (not is_clip),
        base_model=base_model(recipe),
        model_name=metrics["title"],
        eval_results=eval_results(metrics, recipe) or None,
    )
    return card_data.to_yaml()


def write_card(
    metrics: dict,
    recipe: Recipe,
    model: PreTrainedModel,
    processor,
    template: str | None = None,
    pictures: dict[str, str] | None = None,
    repo: str = THIS,
) -> str:
    """Returns the text of the card.

    Args:
        metrics: metrics of a finished run, or title, epochs and history of a run in progress.
        template: file of hub_cards/; default: the template of the model's class.
        pictures: evaluation set -> file beside the card.
        repo: repository named in the usage example.
    """
    metrics, sets = metrics | {"title": metrics["title"] or type(model).__name__}, data_sets(recipe)
    return render_card(
        template or TEMPLATES[type(model).__name__],
        card_data=head(metrics, recipe, "CLIPModel" if template == "clip.md" else type(model).__name__, sets),
        recipe_text=recipe_text(published_recipe(recipe)),
        data_sets=sets,
        model_class=type(model).__name__,
        processor=processor,
        repo=repo,
        # The rest contains user text, which needs escaping: titles, labels, descriptions, names of sets.
        metrics=as_text(metrics),
        recipe=_recipe_as_text(recipe),
        config=_config_as_text(model.config),
        pictures={markdown_text(name): picture for name, picture in (pictures or {}).items()},
    )


def as_text(value: Any) -> Any:
    """Escapes every string in nested dicts and lists, including keys, so that Markdown shows it literally."""
    if isinstance(value, dict):
        return {as_text(name): as_text(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_text(inner) for inner in value]
    return markdown_text(value) if isinstance(value, str) else value


def _recipe_as_text(recipe: Recipe) -> Recipe:
    recipe = copy.deepcopy(recipe)
    recipe.title, recipe.reference = as_text(recipe.title), as_text(recipe.reference)
    for one in recipe.data.evaluation.values():
        one.candidate_labels, one.only_labels = as_text(one.candidate_labels), as_text(one.only_labels)
    recipe.data.evaluation = {markdown_text(name): one for name, one in recipe.data.evaluation.items()}
    return recipe


def _config_as_text(config: PreTrainedConfig) -> SimpleNamespace:
    names = ("id2label", "class_descriptions", "target_names")
    fields = {name: getattr(config, name) for name in config.to_dict() if hasattr(config, name)}
    return SimpleNamespace(**fields | {name: as_text(getattr(config, name)) for name in names})


def render_card(template: str, **values) -> str:
    """Renders a template of hub_cards/; a variable missing from `values` is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HUB_CARDS),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["duration"] = duration
    environment.filters["having"] = lambda sets, name: {key: one for key, one in sets.items() if name in one}
    text = environment.get_template(template).render(values)
    return re.sub(r"\n{3,}", "\n\n", text)


def duration(seconds: float) -> str:
    """Formats a duration, for example `3 h 5 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
