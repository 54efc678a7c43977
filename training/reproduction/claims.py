# SPDX-License-Identifier: Apache-2.0
"""Data classes of claims.yaml, which defines the runs and comparisons; its format is documented in the file."""

from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from string import Template
from typing import Any

import yaml
from huggingface_hub.dataclasses import strict

from training.recipe import Recipe, load_recipe

FOLDER = Path(__file__).parent


@strict
@dataclass
class Row:
    """Recipe with overrides, run for every seed."""

    title: str
    recipe: str
    """Name of a recipe file in this folder, without extension."""
    overrides: list[str] = field(default_factory=list)
    each: list[str] = field(default_factory=list)
    """Overrides with one run each, whose clips are pooled."""
    seeds: list[int] | None = None
    """Seeds of this row instead of the common ones, for example a single one if nothing is random."""
    values: dict = field(default_factory=dict)
    """Values of `$names` in the overrides, in addition to the sizes."""


@dataclass(frozen=True)
class Run:
    """Training run of a row."""

    row: str
    seed: int
    part: int | None = None
    """Index in `each`."""

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return "_".join([self.row, *([] if self.part is None else [f"part{self.part}"]), f"seed{self.seed}"])


@strict
@dataclass
class Comparison:
    """Comparison of two rows, each on one evaluation set by one metric; see claims.yaml."""

    than: str
    better: str | None = None
    no_better: str | None = None
    clips: str = "test"
    metric: str = "uar"
    than_clips: str | None = None
    than_metric: str | None = None
    more_than: Any = None
    note: str = ""

    def __post_init__(self):
        if (self.better is None) == (self.no_better is None):
            raise ValueError(f"a comparison with {self.than} must have either `better` or `no_better`")
        if self.more_than is not None:
            self.more_than = Comparison(**self.more_than)

    @property
    def operands(self) -> tuple[tuple[str, str, str], tuple[str, str, str]]:
        """Row, evaluation set and metric of both sides."""
        first = (self.better or self.no_better, self.clips, self.metric)
        return first, (self.than, self.than_clips or self.clips, self.than_metric or self.metric)


@strict
@dataclass
class Claim:
    """Claim with its source and the comparisons that test it."""

    claim: str
    source: str
    comparisons: list
    note: str = ""

    def __post_init__(self):
        self.comparisons = [Comparison(**one) for one in self.comparisons]


@strict
@dataclass
class Tuning:
    """Settings that were compared on the validation clips, including the one that is used."""

    used: str
    tried: list[str]
    clips: str = "validation"
    metric: str = "uar"


@strict
@dataclass
class Curve:
    """Scores of one method at increasing shares of the training clips."""

    title: str
    rows: list[str]
    clips: list[str]


@strict
@dataclass
class Claims:
    """Content of claims.yaml."""

    seeds: list[int]
    margin: float
    """Gains whose interval is entirely below this count as no gain."""
    sizes: dict[str, int]
    common: list[str]
    rows: dict
    sets: dict[str, str] = field(default_factory=dict)
    """Evaluation set -> title."""
    parts: dict = field(default_factory=dict)
    """Title -> claims."""
    tuning: list = field(default_factory=list)
    curves: list = field(default_factory=list)
    shares: list[str] = field(default_factory=list)
    """Shares of the training clips, in the order of a curve's rows."""
    tried: str = ""
    """Description of what was tuned and how."""
    consequences: str = ""
    """Description of changes made because of the results."""
    published: list = field(default_factory=list)
    """Published scores: title, scores by data set, source."""
    summary: dict[str, list[str]] = field(default_factory=dict)
    """`rows` and `sets` of the README's table."""

    def __post_init__(self):
        self.rows = {name: Row(**row) for name, row in self.rows.items()}
        self.parts = {title: [Claim(**one) for one in claims] for title, claims in self.parts.items()}
        self.tuning = [Tuning(**one) for one in self.tuning]
        self.curves = [Curve(**one) for one in self.curves]

    def runs(self) -> list[Run]:
        """Lists all runs, row by row, so that rows are completed one after the other."""
        return [
            Run(name, seed, part)
            for name, row in self.rows.items()
            for seed, part in product(row.seeds or self.seeds, range(len(row.each)) if row.each else [None])
        ]

    def overrides(self, run: Run) -> list[str]:
        """Returns the overrides that turn the row's recipe into this run; `$names` of folders are not replaced."""
        row = self.rows[run.row]
        return self._filled(row, [*self.common, *row.overrides, *([] if run.part is None else [row.each[run.part]])])

    def differences(self, row: str) -> list[str]:
        """Lists the row's own overrides; those of `each` are abbreviated to one entry."""
        own = self.rows[row]
        return self._filled(
            own, [*own.overrides, *([f"each of {len(own.each)}: {own.each[0]}, ..."] if own.each else [])]
        )

    def _filled(self, row: Row, texts: list[str]) -> list[str]:
        return [Template(text).safe_substitute(self.sizes | row.values) for text in texts]

    def needs(self, run: Run) -> list[Run]:
        """Lists the runs whose results this one starts from."""
        names = {match["named"] for text in self.overrides(run) for match in Template.pattern.finditer(text)}
        seeds = {name: row.seeds or self.seeds for name, row in self.rows.items() if name in names}
        return [Run(name, run.seed if run.seed in known else known[0]) for name, known in seeds.items()]

    def recipe(self, run: Run, output_dir: Path) -> Recipe:
        """Loads the recipe of a run, with its own folder in `output_dir`."""
        folders = {needed.row: output_dir.resolve() / needed.name for needed in self.needs(run)}
        overrides = [Template(text).substitute(folders) for text in self.overrides(run)]
        overrides += [f"run.output_dir={output_dir / run.name}", f"run.seed={run.seed}", "run.resume=true"]
        return load_recipe(self.recipe_file(run), overrides)

    def recipe_file(self, run: Run) -> Path:
        """Returns the recipe file of the run's row."""
        return FOLDER / f"{self.rows[run.row].recipe}.yaml"


def load_claims(path: Path = FOLDER / "claims.yaml", fast: bool = False) -> Claims:
    """Reads claims.yaml; `fast` selects the small version.

    Raises:
        ValueError, TypeError: a field is unknown or of the wrong type.
    """
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    small = values.pop("fast", {})
    if fast:
        values |= small
        values["rows"] = {name: row | {"seeds": values["seeds"]} for name, row in values["rows"].items()}
    return Claims(**values)
