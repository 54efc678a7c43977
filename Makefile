# Every target uses the active virtual environment, or makes .venv.
VENV := $(or $(VIRTUAL_ENV),.venv)
PYTHON := $(VENV)/bin/python
INSTALLED := $(VENV)/.emoclip-installed
RUN := outputs/synthetic_emoclip

.PHONY: demo test check style

## Renders faces, trains, evaluates, exports, and names the expression in held-out clips (and in VIDEO=path).
demo: $(INSTALLED)
	rm -rf $(RUN)
	$(PYTHON) -m accelerate.commands.launch --num_processes 1 --num_machines 1 --mixed_precision no \
		--dynamo_backend no training/train.py training/recipes/synthetic_emoclip.yaml run.output_dir=$(RUN)
	$(PYTHON) training/export.py $(RUN)
	$(PYTHON) examples/show_run.py $(RUN) $(if $(VIDEO),"$(VIDEO)")

## The tests, without network and GPU.
test: $(INSTALLED)
	$(PYTHON) -m pytest

## What continuous integration checks besides the tests.
check: $(INSTALLED)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

## Puts the source into the project's style.
style: $(INSTALLED)
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

$(INSTALLED): pyproject.toml
	test -x $(PYTHON) || python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --upgrade pip
	$(PYTHON) -m pip install --quiet --editable ".[dev]"
	touch $(INSTALLED)
