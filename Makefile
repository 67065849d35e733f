# Two commands do all the set-up: `make demo` and `make test`. Everything lands in .venv.
PYTHON ?= python3
PIP_FLAGS ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt

.PHONY: help demo test test-slow lint docs check release-check clean

help:  ## List the commands.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(VENV)/base: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e .
	@touch $@

$(VENV)/dev: $(VENV)/base
	$(INSTALL) -e '.[dev]'
	@touch $@

demo: $(VENV)/base  ## Quantize the shipped example network on the built-in walkers.
	$(BIN)/qgait-ptq quantize examples/models/gaitbase-small.pt --bits 8 --test-walkers 6 --out demo-out

# Tests start many programs, which are slow where bytecode is not kept.
test: $(VENV)/dev  ## Run the test suite.
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q -n auto --dist loadfile

test-slow: $(VENV)/dev  ## Run the tests that take minutes.
	$(BIN)/python -m pytest -q -m slow

lint: $(VENV)/dev  ## Lint, format and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/dev  ## Build the documentation into docs-out/; a broken link is an error.
	$(BIN)/mkdocs build --quiet --config-file docs/site/mkdocs.yml

check: lint docs test  ## What CI runs.

release-check: $(VENV)/dev  ## Build wheels and sdists into dist/, and try each in an empty environment.
	$(BIN)/python .ci/distribution/release_check.py

clean:  ## Remove the environment and what the demo wrote.
	rm -rf $(VENV) demo-out docs-out dist
