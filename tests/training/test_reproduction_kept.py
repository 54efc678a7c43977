# SPDX-License-Identifier: Apache-2.0
"""What the repository keeps of the reproduction: the document says what the records say, and they come out again."""

import re

import pytest

from training import train
from training.recipe import load_recipe
from training.reproduction.claims import FOLDER, load_claims
from training.reproduction.document import document_text
from training.reproduction.numbers import Results
from training.reproduction.readme import read_block, readme_block
from training.reproduction.records import load_kept
from training.reproduction.runs import outcome

ROOT = FOLDER.parents[1]
KEPT = ROOT / "docs" / "reproduction" / "results.json"


@pytest.fixture(scope="module")
def kept():
    return Results(load_claims(), load_kept(KEPT))


def test_the_document_is_that_of_the_kept_records(kept):
    text = (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")
    assert text == document_text(kept, kept.judge_all(), "reproduction")
    for picture in re.findall(r"\]\((reproduction/[a-z_]+\.(?:png|jpg))\)", text):
        assert (ROOT / "docs" / picture).is_file()


def test_the_readme_shows_the_kept_records(kept):
    assert read_block(ROOT / "README.md") == readme_block(kept)


def test_kept_records_are_of_the_runs_that_the_claims_name(kept):
    claims = kept.claims
    runs = {(run.row, run.seed, run.part): run for run in claims.runs()}
    for record in (one for records in kept.records.values() for one in records):
        run = runs[record["row"], record["seed"], record["part"]]
        assert record["overrides"] == claims.overrides(run)
        assert record["recipe"] == f"training/reproduction/{claims.rows[run.row].recipe}.yaml"
        assert record["commit"] != "unknown"


def run_again(claims, row, tmp_path, *overrides, sets=("test",)):
    """A row's first run once more: clip -> was it right?"""
    run = next(run for run in claims.runs() if run.row == row)
    small = [*claims.overrides(run), *overrides]
    places = [f"data.cache_dir={tmp_path / 'cache'}", f"run.output_dir={tmp_path / 'run'}", f"run.seed={run.seed}"]
    recipe = load_recipe(claims.recipe_file(run), [*small, *places])
    recipe.data.evaluation = {name: recipe.data.evaluation[name] for name in sets}
    metrics = train.run(recipe)
    found = {}
    for name in sets:
        one = outcome(tmp_path / "run", name, metrics["final"][name], scale=1.0)
        found |= {(name, clip): hit for clip, hit in zip(one["clips"], one["hits"], strict=True)}
    return found


def differing(found, records):
    """Of the clips that were scored again those that came out in another way than is kept."""
    kept = {(name, clip): hit for name, test in records[0]["sets"].items()
            for clip, hit in zip(test["clips"], test.get("hits", ""), strict=False)}  # fmt: skip
    assert set(found) <= set(kept)
    return [clip for clip, hit in found.items() if hit != kept[clip]]


def test_a_row_comes_out_again(kept, tmp_path):
    """CLIP with the mean of the frames on the first clips of each emotion; they are drawn anew for it."""
    sizes = {"num_train": 8, "num_validation": 8, "num_test_per_class": 4, "num_order_pairs": 0}
    sizes = [f"data.options.{name}={size}" for name, size in sizes.items()]
    found = run_again(kept.claims, "frames", tmp_path, *sizes, sets=("test", "held_out"))
    assert len(found) == 4 * 11
    assert len(differing(found, kept.records["frames"])) <= 1  # another processor may round a near tie the other way


@pytest.mark.slow
def test_a_trained_row_comes_out_again(kept, tmp_path):
    found = run_again(kept.claims, "linear_probe", tmp_path)
    assert len(found) == 700
    assert len(differing(found, kept.records["linear_probe"])) <= 14  # 2 %: training amplifies another rounding
