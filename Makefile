# `make` prints this help. Everything runs in .venv, which `make` makes by itself; the program itself needs none of it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

help:  ## print this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/test: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet pytest hypothesis prometheus_client openapi-spec-validator
	touch $@

$(VENV)/check: $(VENV)/test
	$(BIN)/python -m pip install --quiet ruff mypy
	touch $@

$(VENV)/deep: $(VENV)/test
	$(BIN)/python -m pip install --quiet h11 schemathesis
	touch $@

$(VENV)/bench: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet fastapi 'uvicorn[standard]' aiosqlite
	touch $@

serve:  ## run the daemon in the foreground
	$(PYTHON) -m stonemux serve

test: $(VENV)/test  ## all fast tests
	$(BIN)/python -m pytest

check: $(VENV)/check  ## lint, types, documents, tests: what CI runs
	$(BIN)/ruff check stonemux tests bench
	$(BIN)/ruff format --check stonemux tests bench
	$(BIN)/mypy
	$(BIN)/python -m pytest

deep: $(VENV)/deep  ## long tests: fuzzing, crashes, full disks, schemathesis
	HYPOTHESIS_PROFILE=deep $(BIN)/python -m pytest tests/test_model.py tests/deep

bench: $(VENV)/bench  ## measure, side by side with the baseline
	$(BIN)/python -m bench.run

docs:  ## rewrite what is generated: docs/reference.md and stonemux.toml.example
	$(PYTHON) -m stonemux reference > docs/reference.md
	$(PYTHON) -m stonemux reference --config > stonemux.toml.example

clean:  ## remove what was made
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help serve test check deep bench docs clean
