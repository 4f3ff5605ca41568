# Two commands: `make demo` runs the quickstart, `make test` runs the checks. Both set up what they need in .venv.
# `make PYTHON=/path/to/python3.12 demo` uses that Python, and makes .venv again where another one made it.
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
# Where it is set, as in many containers, each of a hundred processes compiles the package's files again.
unexport PYTHONDONTWRITEBYTECODE

# In Python's oldest syntax, since any may read it. Meta-World 3.1.1 has no release for 3.14.
CHECK_PYTHON := import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 13) or sys.exit( \
	"error: Python %d.%d cannot run RoboAlign: use 3.11, 3.12 or 3.13, as in: make PYTHON=/path/to/python3.12 demo" % v)
SET_UP = @$(PYTHON) -c '$(CHECK_PYTHON)' && $(PYTHON) $(ROOT)/tools/set_up.py $(VENV) \
	$(if $(filter file,$(origin PYTHON)),,--asked)

.PHONY: demo test setup setup-libero setup-small setup-bench setup-all lint base clean

demo: setup
	@echo "checking this machine (the first start of PyTorch can take a minute)"
	@cd $(ROOT) && $(BIN)/roboalign doctor --quiet && $(BIN)/roboalign run recipes/quickstart.yaml

test: setup-all lint
	cd $(ROOT) && OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: setup
	cd $(ROOT) && $(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy

# Remakes the base model that ships with the package (about half an hour on two cores).
base: setup
	cd $(ROOT) && $(BIN)/roboalign base recipes/base.yaml && $(BIN)/python -m tools.ship runs/base

setup:
	$(SET_UP) base

# LIBERO, which the quickstart does not need; its tests are skipped where it is absent.
setup-libero:
	$(SET_UP) base libero

# The weights of recipes/libero-small.yaml and what reads them; their tests are skipped where they are absent.
setup-small:
	$(SET_UP) base small

# lmms-eval, with which `roboalign bench` is compared; its tests are skipped where it is absent.
setup-bench:
	$(SET_UP) base bench

setup-all:
	$(SET_UP) base libero small bench

clean:
	rm -rf $(VENV) $(VENV).lock
