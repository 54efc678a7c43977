# SPDX-License-Identifier: Apache-2.0
"""The reproduction: verdicts follow from clips by rule, the document from records, and records from runs."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from training import train
from training.compare import reproduce
from training.compare.calibration import calibration_error
from training.metrics.bootstrap import interval
from training.metrics.pcc.pcc import pearson_correlation
from training.metrics.uar.uar import unweighted_average_recall
from training.reproduction.claims import FOLDER, Claims, Comparison, load_claims
from training.reproduction.numbers import FAILS, HOLDS, NOT_RUN, UNDECIDED, Results, over_drawn_seeds
from training.reproduction.readme import read_block, write_block
from training.reproduction.records import keep, load_kept
from training.reproduction.runs import run_missing

ROOT = FOLDER.parents[1]
CLIPS = [f"clip{number:03d}" for number in range(200)]
LABELS = [("joy", "anger")[number % 2] for number in range(200)]


def toy_claims(parts=None):
    rows = {name: {"title": f"method {name}", "recipe": "captions"} for name in "abcd"}
    summary = {"rows": ["a"], "sets": ["test"]}
    return Claims(seeds=[0, 1, 2], margin=0.02, sizes={}, common=[], rows=rows, parts=parts or {}, summary=summary)


def toy_records(**shares):
    """Of each row three runs, each of which finds another random share of the clips."""
    records = []
    for row, share in shares.items():
        for seed in range(3):
            rng = np.random.default_rng([seed, ord(row)])
            hits = rng.random(200) < share
            confidence = rng.uniform(0.5, 1, 200).round(4).tolist()
            test = {"clips": CLIPS, "labels": LABELS, "hits": "".join("01"[int(hit)] for hit in hits)}
            test |= {"confidence": confidence, "calibrated_confidence": confidence, "uar": 0.0}
            records.append({"row": row, "seed": seed, "part": None, "sets": {"test": test}})
    return records


def verdict(comparison, **shares):
    return Results(toy_claims(), toy_records(**shares)).compare(Comparison(**comparison)).verdict


def test_a_verdict_follows_from_the_interval_of_the_gain():
    assert verdict({"better": "a", "than": "b"}, a=0.9, b=0.5) == HOLDS
    assert verdict({"better": "a", "than": "b"}, a=0.5, b=0.9) == FAILS
    assert verdict({"better": "a", "than": "b"}, a=0.72, b=0.7) == UNDECIDED
    assert verdict({"better": "a", "than": "a"}, a=0.7) == FAILS  # exactly the same: there is no gain
    assert verdict({"no_better": "a", "than": "b"}, a=0.9, b=0.5) == FAILS
    assert verdict({"no_better": "a", "than": "b"}, a=0.5, b=0.9) == HOLDS
    assert verdict({"better": "a", "than": "b"}, a=0.9) == NOT_RUN


def test_a_gain_can_be_compared_with_another_one():
    more = {"better": "a", "than": "b", "more_than": {"better": "c", "than": "d"}}
    assert verdict(more, a=0.9, b=0.5, c=0.6, d=0.5) == HOLDS
    assert verdict(more, a=0.6, b=0.5, c=0.9, d=0.5) == FAILS
    assert verdict(more, a=0.9, b=0.5, c=0.6) == NOT_RUN


def test_of_errors_less_is_better():
    results = Results(toy_claims(), toy_records(a=0.75, b=0.2))  # scores say 0.75 on average
    finding = results.compare(Comparison(better="a", than="b", metric="ece"))
    assert finding.verdict == HOLDS
    assert finding.gain == pytest.approx(finding.second.value - finding.first.value)


def test_a_claim_fails_with_one_comparison_and_waits_for_all():
    def judge(*pairs, **shares):
        comparisons = [{"better": first, "than": second} for first, second in pairs]
        claims = toy_claims({"part": [{"claim": "yes", "source": "a paper", "comparisons": comparisons}]})
        ((_, found, _),) = Results(claims, toy_records(**shares)).judge_all()["part"]
        return found

    assert judge(("a", "b"), ("a", "c"), a=0.9, b=0.5, c=0.4) == HOLDS
    assert judge(("a", "b"), ("c", "a"), a=0.9, b=0.5, c=0.4) == FAILS
    assert judge(("a", "b"), ("a", "c"), a=0.9, b=0.5) == NOT_RUN
    assert judge(("a", "b"), ("a", "c"), a=0.9, b=0.5, c=0.89) == UNDECIDED


def test_scores_are_those_of_the_metrics():
    results = Results(toy_claims(), toy_records(a=0.7))
    for seed, record in enumerate(results.records["a"]):
        test = record["sets"]["test"]
        hits = np.array(list(test["hits"])) == "1"
        truth = np.array(LABELS) == "joy"
        right = unweighted_average_recall(truth, np.where(hits, truth, ~truth))
        assert results.score("a", "test", "uar").by_seed[seed] == pytest.approx(right)
        assert results.score("a", "test", "war").by_seed[seed] == pytest.approx(hits.mean())
        expected = calibration_error(np.array(test["confidence"]), hits)
        assert results.score("a", "test", "ece").by_seed[seed] == pytest.approx(expected)
    found = np.array([list(record["sets"]["test"]["hits"]) for record in results.records["a"]]) == "1"
    changing = (found.any(axis=0) & ~found.all(axis=0)).mean()
    assert results.score("a", "test", "changes").value == pytest.approx(changing)


def test_correlations_are_means_over_the_targets():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(200, 2))
    predicted = truth + rng.normal(size=(200, 2))
    test = {"clips": CLIPS, "truth": truth.tolist(), "predicted": predicted.tolist()}
    records = [{"row": "a", "seed": seed, "part": None, "sets": {"test": test}} for seed in range(3)]
    expected = np.mean([pearson_correlation(truth[:, n], predicted[:, n]) for n in range(2)])
    assert Results(toy_claims(), records).score("a", "test", "pcc").value == pytest.approx(expected)


def test_parts_of_a_row_are_one_set_of_clips():
    claims = toy_claims()
    claims.rows["a"].each = ["data.leave_out=joy", "data.leave_out=anger"]
    halves = []
    for record in toy_records(a=0.7):
        test = record["sets"]["test"]
        for part, label in enumerate(("joy", "anger")):
            kept = [number for number, own in enumerate(LABELS) if own == label]
            chosen = {name: [test[name][number] for number in kept] for name in ("clips", "labels")}
            hits = "".join(test["hits"][number] for number in kept)
            halves.append(record | {"part": part, "sets": {"test": chosen | {"hits": hits}}})
    score = Results(claims, halves).score("a", "test")
    whole = Results(toy_claims(), toy_records(a=0.7)).score("a", "test")
    assert score.clips == whole.clips
    assert score.by_seed == pytest.approx(whole.by_seed)
    assert Results(claims, halves[:-1]).score("a", "test") is None  # one part is missing


def test_the_interval_is_over_seeds_too():
    rng = np.random.default_rng(0)
    spreads = []
    for _ in range(300):  # three seeds of a method whose scores spread by 1: their mean spreads by 0.58
        low, high = interval(over_drawn_seeds(np.tile(rng.normal(size=3), (1000, 1))))
        spreads.append(((high - low) / 2 / 1.96) ** 2)
    assert np.sqrt(np.mean(spreads)) == pytest.approx(1 / np.sqrt(3), rel=0.15)


def test_what_is_kept_says_the_same(tmp_path):
    comparisons = [{"better": "a", "than": "b"}, {"better": "a", "than": "b", "metric": "ece"}]
    claims = toy_claims({"part": [{"claim": "yes", "source": "a paper", "comparisons": comparisons}]})
    records = toy_records(a=0.9, b=0.85)
    keep(records, claims, tmp_path / "kept.json")
    kept = load_kept(tmp_path / "kept.json")
    for row, metric in (("a", "uar"), ("b", "ece")):
        first, second = (Results(claims, some).score(row, "test", metric) for some in (records, kept))
        assert first.by_seed == second.by_seed
        assert first.interval == second.interval
    assert "calibrated_confidence" not in kept[0]["sets"]["test"]  # nothing is compared by it


def test_an_unknown_row_is_named():
    with pytest.raises(SystemExit, match="has no row nonsense; it has captions, classes"):
        reproduce.main(["--rows", "nonsense"])


def test_the_readme_block_is_put_between_its_markers_alone(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- results: written by make reproduce -->\nold\n<!-- /results -->\nafter\n")
    write_block(readme, "new | \\1")
    assert read_block(readme) == "new | \\1"
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    readme.write_text("nothing")
    with pytest.raises(ValueError, match="one pair of lines"):
        write_block(readme, "new")


@pytest.mark.parametrize("fast", [False, True])
def test_claims_name_what_there_is(fast):
    claims = load_claims(fast=fast)
    sets = {}
    for run in claims.runs():
        recipe = claims.recipe(run, Path("outputs"))
        sets[run.row] = recipe.data.evaluation
        assert recipe.run.seed == run.seed
        for needed in claims.needs(run):
            assert needed in claims.runs()
    for comparison in (one for part in claims.parts.values() for claim in part for one in claim.comparisons):
        for row, clips, _ in comparison.operands:
            assert clips in sets[row]
    for one in claims.tuning:
        assert {one.used, *one.tried} <= set(claims.rows)


@pytest.fixture
def tiny_claims(clip_dir, own_videos, tmp_path):
    """Two rows that train in a second, of which the first starts from what the second has learnt."""
    (tmp_path / "tiny.yaml").write_text(f"""
extends: {ROOT / "training" / "recipes" / "own_videos.yaml"}
model:
  init: {clip_dir}
  config: {{temporal_num_layers: 1, temporal_num_heads: 2, temporal_head_dim: 8, temporal_intermediate_size: 16}}
  video_processor: {{num_frames: 4, frame_sampling: segment_middle}}
data:
  data_dir: {own_videos}
  cache_dir: {tmp_path / "cache"}
  validation_share: 0.25
  frame_sampling: segment_random
  evaluation: {{test: {{split: train}}, validation: {{split: train}}}}
optim: {{epochs: 1, batch_size: 6, milestones: []}}
run: {{evaluate_start: false, pictures: false, num_workers: 0}}
""")
    recipe = str(tmp_path / "tiny")
    rows = {
        "later": {"title": "second", "recipe": recipe, "overrides": ["model.init=$first"], "seeds": [0]},
        "first": {"title": "first", "recipe": recipe, "overrides": ["optim.epochs=$epochs"]},
    }
    return Claims(seeds=[1, 2], margin=0.02, sizes={"epochs": 2}, common=[], rows=rows)


def test_what_is_done_is_not_run_again(tiny_claims, tmp_path, monkeypatch):
    started = []

    def run(recipe):
        started.append(Path(recipe.run.output_dir).name)
        return train_run(recipe)

    train_run = train.run
    monkeypatch.setattr(train, "run", run)
    run_missing(tiny_claims, tmp_path / "runs", tiny_claims.runs())
    assert started == ["first_seed1", "first_seed2", "later_seed0"]  # what others start from comes first
    (tmp_path / "runs" / "first_seed2" / "record.json").unlink()
    run_missing(tiny_claims, tmp_path / "runs", tiny_claims.runs())
    assert started[3:] == ["first_seed2"]
    tiny_claims.sizes["epochs"] = 3
    with pytest.raises(FileExistsError, match="has other overrides than claims"):
        run_missing(tiny_claims, tmp_path / "runs", tiny_claims.runs())
    assert started[4:] == []


def test_a_record_says_what_was_run_and_what_came_out(tiny_claims, tmp_path):
    run = tiny_claims.runs()[1]
    run_missing(tiny_claims, tmp_path / "runs", [run])
    folder = tmp_path / "runs" / run.name
    record = json.loads((folder / "record.json").read_text())
    assert record["row"] == "first"
    assert record["overrides"] == ["optim.epochs=2"]
    assert re.fullmatch(r"[0-9a-f]{10}\+?|unknown", record["commit"])
    metrics = json.loads((folder / "metrics.json").read_text())
    for name, test in record["sets"].items():
        assert test["uar"] == metrics["final"][name]["uar"]
        assert test["hits"].count("1") / len(test["clips"]) == pytest.approx(metrics["final"][name]["war"])
    tiny_claims.rows = {"first": tiny_claims.rows["first"]}
    tiny_claims.seeds, tiny_claims.summary = [1], {"rows": [], "sets": []}
    score = Results(tiny_claims, [record]).score("first", "test")
    assert score.value == pytest.approx(metrics["final"]["test"]["uar"])


def test_two_runs_of_a_row_differ_in_the_seed_alone():
    claims = load_claims()
    first, second = (
        claims.recipe(run, Path("outputs")) for run in claims.runs() if run.row == "dferclip" and run.seed < 2
    )
    second.run.seed, second.run.output_dir = first.run.seed, first.run.output_dir
    assert first == second
