# SPDX-License-Identifier: Apache-2.0
"""The card of a model: templates of hub_cards/, filled from a run's metrics, its recipe and the model's configuration.

Nothing in a card is typed by hand, and nothing in it or in the recipe beside it names a folder of this machine.
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

from modeling_emoclip.pipeline_emoclip import TASK
from modeling_emoclip.typed_text import markdown_text
from training.data.expression_videos import ExpressionVideos
from training.data.own_videos import OwnVideos
from training.published import without_folders, without_secrets
from training.recipe import DataRecipe, DataSource, EvaluationSet, Recipe, load_recipe

HUB_CARDS = Path(__file__).resolve().parents[1] / "hub_cards"
TEMPLATES = {
    "EmoCLIPModel": "emoclip.md",
    "EmoCLIPForPromptClassification": "dferclip.md",
    "EmoCLIPForVideoClassification": "classifier.md",
    "EmoCLIPForVideoRegression": "regression.md",
}
THIS = "<this repository or folder>"
# Known without asking the Hub: what the recipes start from.
CLIPS = ("openai/clip-vit-base-patch32", "openai/clip-vit-base-patch16", "openai/clip-vit-large-patch14")
TAGS = ["facial-expression-recognition", "emotion-recognition", "clip"]


def percent(share: float) -> float:
    return round(100 * share, 2)


def rounded(value: float) -> float:
    return round(value, 4)


METRICS = {"uar": percent, "war": percent, **dict.fromkeys(("pcc", "ccc", "mae", "rmse"), rounded)}


@dataclass
class DataSet:
    """What a card says of a data set that a run has used."""

    name: str
    licence: str = ""
    homepage: str = ""
    citation: str = ""
    is_licensed: bool = False
    """By an agreement that may also bind what is made from it."""
    is_rendered: bool = False
    """Nobody is shown."""
    is_learnt: bool = False
    """The weights come from it, rather than a number only."""
    uses: list[str] = field(default_factory=list)


def data_sets(recipe: Recipe, seen: frozenset[str] = frozenset()) -> list[DataSet]:
    """Of training, of evaluation, and of the run whose weights this one started from.

    Args:
        seen: weights that led here: a repository that was trained on twice names itself.
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
    """A data set as its builder knows it, whether it is on this machine or not.

    One whose builder is not known here, as in the recipe of somebody else's run, counts as licensed.
    """
    module, _, name = source.builder.rpartition(".")
    try:
        builder_class = getattr(importlib.import_module(f"training.data.{module}"), name)
    except (ImportError, AttributeError):
        return DataSet(source.builder, "not known: its builder is not in this installation", is_licensed=True)
    with tempfile.TemporaryDirectory() as cache:  # `datasets` makes a lock file for every builder
        info = builder_class(cache_dir=cache, config_name=source.config_name).info
    if issubclass(builder_class, OwnVideos):
        return DataSet("videos of the publisher's own", "not published; all rights with their owners")
    is_licensed = issubclass(builder_class, ExpressionVideos)
    return DataSet(name, info.license, info.homepage, info.citation, is_licensed, is_rendered=not is_licensed)


def recipe_of(init: str) -> Recipe | None:
    """Of the run that made some weights, where it lies with them in their folder or Hub repository."""
    path = Path(init, "recipe.yaml") if Path(init).is_dir() else _on_hub(init, "recipe.yaml")
    try:
        return load_recipe(path) if path else None
    except (OSError, ValueError):
        return None


@lru_cache  # asked at the start of a run, so that no card waits for the network later
def _on_hub(repo_id: str, name: str) -> str | None:
    try:
        return hf_hub_download(repo_id, name)
    except (OSError, ValueError):
        return None


def is_emoclip(init: str) -> bool:
    """Whether a folder or Hub repository holds more than a CLIP, so that somebody has trained it on something."""
    is_hub_id = not Path(init).is_dir() and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", init) is not None
    path = _on_hub(init, "config.json") if is_hub_id else Path(init, "config.json")
    if path is None or not Path(path).is_file():
        return is_hub_id and init not in CLIPS  # nobody can tell: what may be licensed counts as licensed
    try:
        return json.loads(Path(path).read_text(encoding="utf-8")).get("model_type") == "emoclip"
    except (ValueError, AttributeError):
        return True


def base_model(recipe: Recipe, seen: frozenset[str] = frozenset()) -> str | None:
    """The Hub id at which the chain of runs began; `seen` as of `data_sets`."""
    init = recipe.model.init
    if init is None or not Path(init).is_dir():
        return init
    earlier = None if init in seen else recipe_of(init)
    return base_model(earlier, seen | {init}) if earlier else None


def published_recipe(recipe: Recipe) -> dict:
    """The recipe without what is this machine's; of a folder its last name is left, of a data set's the set's."""
    values = recipe.to_dict()
    for name in ("output_dir", "resume", "push_to_hub"):
        del values["run"][name]
    del values["data"]["cache_dir"]
    for source in (values["data"], *(one["data"] for one in values["data"]["evaluation"].values())):
        if source and source["data_dir"]:
            source["data_dir"] = source["builder"].rpartition(".")[2]
    return without_folders(without_secrets(values))


def recipe_text(values: dict) -> str:
    """What differs from the defaults, as YAML that `load_recipe` reads."""
    evaluation = {n: _changed(one, asdict(EvaluationSet())) for n, one in values["data"]["evaluation"].items()}
    values = values | {"data": values["data"] | {"evaluation": evaluation}}
    values = _changed(values, Recipe().to_dict())
    values = {name: value for name, value in values.items() if value != {}}
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110).rstrip()
    return text.replace("```", "` ` `")  # a title of these would end the block of code that the card has the recipe in


def _changed(values: dict, default: dict) -> dict:
    return {
        name: _changed(value, default[name]) if isinstance(value, dict) and default.get(name) else value
        for name, value in values.items()
        if name not in default or value != default[name]
    }


def eval_results(metrics: dict, recipe: Recipe) -> list[EvalResult]:
    """Scores of all evaluation sets for the card's model-index; shares become percent."""
    results = []
    for name, final in metrics.get("final", {}).items():
        evaluation_set = recipe.data.evaluation.get(name, EvaluationSet())
        source = evaluation_set.data or recipe.data
        where = {
            "task_type": "video-classification",
            "dataset_type": source.builder.split(".")[0],
            "dataset_name": f"{describe(source).name}, {name}",
            # Results with the same configuration and split would become one.
            "dataset_config": f"{source.config_name or 'default'}, {name}",
            "dataset_split": evaluation_set.split,
        }
        parts = {"": final} if "targets" not in final else {f" of {t}": s for t, s in final["targets"].items()}
        for of_target, scores in parts.items():
            for metric, in_model_index in METRICS.items():
                if scores.get(metric) is None:  # not of this kind, or undefined
                    continue
                value = {"metric_type": metric, "metric_value": in_model_index(scores[metric])}
                if interval := scores.get(f"{metric}_interval"):
                    share = final["intervals"]["share"]
                    value["metric_args"] = {f"interval_{100 * share:g}": [in_model_index(x) for x in interval]}
                unit = " in percent" if in_model_index is percent else ""
                results.append(EvalResult(metric_name=f"{metric.upper()}{of_target}{unit}", **where, **value))
    return results


def licence(learnt: list[DataSet]) -> dict:
    """What the card's head says, for which the Hub has a list of identifiers."""
    if licensed := [one for one in learnt if one.is_licensed]:
        names = "-".join(one.name.lower() for one in licensed)
        link = {"license_link": licensed[0].homepage} if licensed[0].homepage else {}
        return {"license": "other", "license_name": f"{names}-agreement", **link}
    if not all(one.is_rendered for one in learnt):
        return {"license": "other", "license_name": "all-rights-reserved"}
    return {"license": "apache-2.0"}


def head(metrics: dict, recipe: Recipe, model_class: str, sets: list[DataSet]) -> str:
    """The YAML that the Hub reads."""
    is_clip = model_class == "CLIPModel"
    card_data = ModelCardData(
        **licence([one for one in sets if one.is_learnt]),
        language="en",
        library_name="transformers",
        # The Hub has no task of the pipeline's name.
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
    """The card.

    Args:
        metrics: of the finished run; of one that is under way its title, epochs and history.
        template: of hub_cards/, if not that of the model's class.
        pictures: evaluation set -> file beside the card.
        repo: for the example of use.
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
        # From here on what people have typed: titles, labels, descriptions, names of sets.
        metrics=as_text(metrics),
        recipe=_recipe_as_text(recipe),
        config=_config_as_text(model.config),
        pictures={markdown_text(name): picture for name, picture in (pictures or {}).items()},
    )


def as_text(value: Any) -> Any:
    """Returns nested dicts and lists in which each text, names of fields too, is one that Markdown shows as typed."""
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
    """A template of hub_cards/, filled; a name that the template uses and `values` lack is an error."""
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
    """`3 h 5 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
