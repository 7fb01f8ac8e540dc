# `make` prints this help. Tools go into .venv, which `make` creates; the program itself needs none of them.
PYTHON ?= python3
# A read-only checkout keeps its tools and build results elsewhere, and stores nothing about its tests. What is there is
# run, so the folder must be ours: anybody could have made one of that name.
ifneq ($(shell test -w . && echo yes),yes)
ELSEWHERE := $(shell d=$${TMPDIR:-/tmp}/stonemux-$$(id -u); mkdir -m 700 $$d 2> /dev/null; test -O $$d && test ! -L $$d && echo $$d)
$(if $(ELSEWHERE),,$(error this folder is read-only, and stonemux-UID in TMPDIR or /tmp is somebody else's: set TMPDIR to a folder of yours))
endif
VENV := $(if $(ELSEWHERE),$(ELSEWHERE)/venv,.venv)
DIST := $(if $(ELSEWHERE),$(ELSEWHERE)/dist,dist)
export HYPOTHESIS_STORAGE_DIRECTORY := $(if $(ELSEWHERE),$(ELSEWHERE)/hypothesis,.hypothesis)
# Compiled files are kept there even if the environment asks for none: collecting the tests without them takes 5 s longer.
export PYTHONPYCACHEPREFIX := $(if $(ELSEWHERE),$(VENV),$(CURDIR)/$(VENV))/bytecode
unexport PYTHONDONTWRITEBYTECODE
PYTEST = $(BIN)/python -m pytest$(if $(ELSEWHERE), -p no:cacheprovider)
BIN := $(VENV)/bin
EXTRA = $(PYTHON) -c "import sys, tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies'][sys.argv[1]])"

help:  ## print this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# pyproject.toml lists the packages for each kind of work, under the extra of the same name.
$(VENV)/.%: pyproject.toml
	@$(PYTHON) -m stonemux --version > /dev/null  # exits with a message if Python is too old
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$($(EXTRA) $*)
	touch $@

serve:  ## run the daemon in the foreground
	$(PYTHON) -m stonemux serve

test: $(VENV)/.test  ## run all fast tests
	$(PYTEST) -n auto --dist worksteal

faces: $(VENV)/.test  ## run the contract tests over every face; `make test` alternates between the faces
	STONEMUX_FACES=all $(PYTEST) -n auto --dist worksteal $$(grep -l '[(, ]face[,)]' tests/test_*.py)

lint: $(VENV)/.check $(VENV)/.test  ## check style and types
	$(BIN)/ruff check stonemux tests bench
	$(BIN)/ruff format --check stonemux tests bench
	$(BIN)/mypy

check: lint faces test  ## run everything that a commit must pass

deep: $(VENV)/.test $(VENV)/.deep  ## run the long tests: fuzzing, crashes, full disks, schemathesis
	HYPOTHESIS_PROFILE=deep $(PYTEST) tests/test_model.py tests/deep

conformance:  ## run the MCP conformance suite (from npm)
	PYTHON=$(PYTHON) tests/conformance/run.sh

bench: $(VENV)/.bench  ## measure against the baseline
	$(BIN)/python -m bench.run

PEERS := redis-server beanstalkd etcd-server nats-server
# Installs packages only if asked to (BENCH_INSTALL), or on a CI runner (which sets CI).
PEERS_READY := $(if $(BENCH_INSTALL)$(CI),$$(test "$$(id -u)" = 0 || echo sudo) apt-get install -qq -y \
	--no-install-recommends $(PEERS),@echo "what is not installed is left out; BENCH_INSTALL=1 installs: $(PEERS)")
bench-peers: $(VENV)/.bench  ## compare with redis, etcd, ... (BENCH_INSTALL=1 installs them); writes docs/benchmarks.md
	$(PEERS_READY)
	$(BIN)/python -m bench.against --runs 3 --report docs

docs:  ## regenerate docs/reference.md, stonemux.toml.example, and stonemux/methods.py
	$(PYTHON) -m stonemux reference > docs/reference.md
	$(PYTHON) -m stonemux reference --config > stonemux.toml.example
	$(PYTHON) -m stonemux reference --client > stonemux/methods.py

pyz:  ## build dist/stonemux.pyz: everything in one file, for any Python 3.11 or newer
	$(PYTHON) -m stonemux.release --into $(DIST) pyz

release:  ## build dist/: the single file, a wheel, a source archive, and their checksums
	$(PYTHON) -m stonemux.release --into $(DIST)

clean:  ## remove everything that `make` created
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis $(DIST) build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help serve test faces lint check deep conformance bench bench-peers docs pyz release clean
.SECONDARY:
