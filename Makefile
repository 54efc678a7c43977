# Every target uses the active virtual environment, or makes .venv.
VENV := $(or $(VIRTUAL_ENV),.venv)
PYTHON := $(VENV)/bin/python
INSTALLED := $(VENV)/.emoclip-installed
RUN := outputs/synthetic_emoclip

.PHONY: demo test slow-tests reproduce common-tests check style

## Renders faces, trains, evaluates, exports, and names the expression in held-out clips (and in VIDEO=path).
demo: $(INSTALLED)
	rm -rf $(RUN)
	$(PYTHON) -m accelerate.commands.launch --num_processes 1 --num_machines 1 --mixed_precision no \
		--dynamo_backend no training/train.py training/recipes/synthetic_emoclip.yaml run.output_dir=$(RUN)
	$(PYTHON) -m training.publish.export $(RUN)
	$(PYTHON) examples/show_run.py $(RUN) $(if $(VIDEO),"$(VIDEO)")

## The tests, without network and GPU.
test: $(INSTALLED)
	$(PYTHON) -m pytest

## The tests that `test` leaves out, since they take long.
slow-tests: $(INSTALLED)
	$(PYTHON) -m pytest -m slow

## The claims of both papers in the rendered world -> docs/reproduction.md: half an hour; FAST=1 in minutes, to see it run.
reproduce: $(INSTALLED)
	$(PYTHON) -m training.compare.reproduce --processes 2 $(if $(FAST),--fast)

## transformers' own tests of every model, from the source distribution of the installed version; needs network once.
common-tests: $(INSTALLED)
	version=$$($(PYTHON) -c "import transformers; print(transformers.__version__)") && \
	source=build/transformers-$$version && \
	if ! test -d $$source; then \
		$(PYTHON) -m pip download --quiet --no-deps --no-binary transformers --dest build transformers==$$version && \
		tar -xzf $$source.tar.gz -C build; \
	fi && \
	TRANSFORMERS_SOURCE=$$source $(PYTHON) -m pytest -m slow tests/modeling/test_transformers_common.py

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
