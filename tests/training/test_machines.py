# SPDX-License-Identifier: Apache-2.0
"""The machine files are ones that accelerate takes; the documentation names each."""

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from transformers.models.clip import modeling_clip

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "training" / "machines").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_accelerate_takes_it(path):
    config = load_config_from_file(str(path))  # refuses unknown keys
    assert config.num_processes >= 1
    assert f"training/machines/{path.name}" in (ROOT / "docs" / "training.md").read_text()
    layer = getattr(config, "fsdp_config", {}).get("fsdp_transformer_layer_cls_to_wrap")
    assert layer is None or hasattr(modeling_clip, layer)
