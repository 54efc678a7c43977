# SPDX-License-Identifier: Apache-2.0
"""docs/data_sets.md is what the code says."""

from pathlib import Path

import pytest

from training.data.data_set_table import BUILDERS, counts_table, official_table, page
from training.data.mafw import MAFW

DOCS = Path(__file__).parents[2] / "docs" / "data_sets.md"


def test_the_page_is_up_to_date():
    hint = "python -m training.data.data_set_table > docs/data_sets.md"
    assert DOCS.read_text(encoding="utf-8") == page(), f"run {hint}"


@pytest.mark.parametrize("name", BUILDERS)
def test_the_page_names_every_configuration_and_homepage(name):
    text = DOCS.read_text(encoding="utf-8")
    for config in BUILDERS[name].BUILDER_CONFIGS:
        assert f"`{config.name}`" in text
    assert BUILDERS[name].HOMEPAGE in text


def test_tables_fit_in_a_terminal(tmp_path):
    """The longest labels and names of configurations there are: 43 compounds in five folds."""
    counts = {}
    for fold in range(1, 6):
        builder = MAFW(config_name=f"compound_fold{fold}", cache_dir=str(tmp_path))
        counts[builder.config.name] = official_table(builder, {"train": [], "test": []})
    lines = list(counts_table(counts))
    assert max(map(len, lines)) <= 100
    assert sum(line.startswith("disgust_helplessness_disappointment") for line in lines) >= 2
    assert all(sum(f"compound_fold{fold}" in line for line in lines) == 2 for fold in range(1, 6))
