# SPDX-License-Identifier: Apache-2.0
"""transformers' own model tests, out of its source distribution: they are neither installed nor copied here.

`make common-tests` downloads the source distribution of the installed version and runs them.
"""

import importlib
import importlib.machinery
import os
import sys
import types
from pathlib import Path

import pytest
import transformers

FOLDER_VARIABLE = "TRANSFORMERS_SOURCE"  # the unpacked source distribution: it holds tests/test_modeling_common.py
PACKAGE = "transformers_source_tests"

# What the suite imports but the source distribution leaves out. An empty mixin adds no test: EmoCLIP generates no
# text, and test_transformers_behaviour.py exports both encoders.
LEFT_OUT = {"exporters.test_export": "ExportTesterMixin", "generation.test_utils": "GenerationTesterMixin"}


def model_tester_mixin() -> type:
    """`ModelTesterMixin` of the installed version of transformers, or a skip of the module that asks for it."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if not folder:
        pytest.skip(f"{FOLDER_VARIABLE} is not set; run `make common-tests`", allow_module_level=True)
    name = f"transformers-{transformers.__version__}"
    if Path(folder).name != name:
        raise RuntimeError(f"{FOLDER_VARIABLE} is {folder}, but must be a folder {name}: the tests fit one version")
    os.environ.setdefault("RUN_SLOW", "1")  # read when the suite is imported; without it its slow tests are skipped
    _add_package(PACKAGE, Path(folder, "tests").resolve())
    for module, mixin in LEFT_OUT.items():
        if not Path(folder, "tests", *module.split(".")).with_suffix(".py").exists():
            _add_package(f"{PACKAGE}.{module.split('.')[0]}", None)
            stand_in = types.ModuleType(f"{PACKAGE}.{module}")
            setattr(stand_in, mixin, type(mixin, (), {}))
            sys.modules[stand_in.__name__] = stand_in
    return importlib.import_module(f"{PACKAGE}.test_modeling_common").ModelTesterMixin


def _add_package(name: str, folder: Path | None) -> None:
    package = types.ModuleType(name)
    package.__path__ = [] if folder is None else [str(folder)]
    package.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
    sys.modules[name] = package
