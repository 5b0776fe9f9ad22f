# Headwater: `make help` lists the targets. Everything runs in .venv, which `make venv` builds from
# pyproject.toml, constraints.txt and the C source, and rebuilds when one of them changes.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
# Which Python 3.11 builds the environment; empty means: look for one.
PYTHON ?=
# Extra words for pip, e.g. PIP_ARGS="--index-url ..." for another build of torch.
PIP_ARGS ?=
DEMO_ARGS ?=
BENCH ?=
PYTEST_ARGS ?=

# The stamp's name holds what the environment was built from: another content or another place, another stamp.
STAMP := $(VENV)/.installed-$(shell { cat pyproject.toml constraints.txt data_tools/tokenizer/_segments.c; pwd; } | sha256sum | cut -c1-16)
UNIT_TESTS := tests/unit tests/architecture
DISTRIBUTED_TESTS := tests/integration tests/distributed
# Test files side by side; not those that start ranks (marker: distributed), which fill the machine by themselves.
# In their order, folders with long files first: by itself xdist begins with the files that have many tests, and ends
# with one worker in a file of few and long ones.
PARALLEL := --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

.PHONY: help venv demo bench test test-slow test-slurm lint check format clean

help:
	@echo "make demo              corpus -> pretraining -> finetuning -> export on this machine (DEMO_ARGS=--small: the shortest form)"
	echo "make test              unit, architecture and the fast distributed tests (10 to 12 minutes)"
	echo "make test-slow         the tests that make test leaves out (about 15 minutes)"
	echo "make test-slurm        tests on a two-node SLURM cluster on this machine (root on Debian; else skipped)"
	echo "make bench             all benchmarks beside their peers, on an idle machine (BENCH=gpt: one of them)"
	echo "make lint              format, lint, types, import rules"
	echo "make check             lint, and all unit and architecture tests"
	echo "make format            rewrite the sources in the project's format"
	echo "make venv              build .venv (PYTHON=/path/to/python3.11 chooses the interpreter)"
	echo "make clean             remove caches and build products; keeps .venv and runs/"

venv: $(STAMP)
	@echo "$(VENV) is current"

$(STAMP):
	@python=""
	for candidate in $(if $(PYTHON),"$(PYTHON)",python3.11 python3 python); do
		if "$$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' >/dev/null 2>&1; then
			python="$$candidate"
			break
		fi
	done
	if [ -z "$$python" ]; then
		echo "make venv: error: $(if $(PYTHON),$(PYTHON) is not a working Python 3.11,no Python 3.11 on PATH); install it or run: make venv PYTHON=/path/to/python3.11" >&2
		exit 2
	fi
	rm -f $(VENV)/.installed-*
	if ! $(BIN)/python -c 'import sys, pip; sys.exit(sys.version_info[:2] != (3, 11))' >/dev/null 2>&1; then
		echo "make venv: creating $(VENV) with $$("$$python" --version)"
		rm -rf $(VENV)
		if ! "$$python" -m venv $(VENV); then
			rm -rf $(VENV)
			echo "make venv: error: $$python -m venv failed (on Debian and Ubuntu: install python3.11-venv)" >&2
			exit 2
		fi
	fi
	echo "make venv: installing the versions in constraints.txt (a few minutes the first time)"
	# torch first: packages that build from source look for it.
	$(BIN)/python -m pip install $(if $(CI),--quiet) $(PIP_ARGS) -c constraints.txt setuptools torch
	$(BIN)/python -m pip install $(if $(CI),--quiet) $(PIP_ARGS) -c constraints.txt -e '.[hf,dev]'
	$(BIN)/python -m pip check
	touch $@

demo: $(STAMP)
	@$(BIN)/python -m launch.demo $(DEMO_ARGS)

test: $(STAMP)
	@$(BIN)/python -m pytest $(PARALLEL) -m "not slow and not distributed" $(PYTEST_ARGS) $(DISTRIBUTED_TESTS) $(UNIT_TESTS)
	$(BIN)/python -m pytest -m "not slow and distributed" $(PYTEST_ARGS) $(DISTRIBUTED_TESTS)

test-slow: $(STAMP)
	@$(BIN)/python -m pytest $(PARALLEL) -m "slow and not distributed" $(PYTEST_ARGS) $(DISTRIBUTED_TESTS) $(UNIT_TESTS)
	$(BIN)/python -m pytest -m "slow and distributed" $(PYTEST_ARGS) $(DISTRIBUTED_TESTS)

bench: $(STAMP)
	@$(BIN)/python -m benchmarks $(BENCH)

test-slurm: $(STAMP)
	@$(BIN)/python -m pytest $(PYTEST_ARGS) tests/slurm

lint: $(STAMP)
	@$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint
	@$(BIN)/python -m pytest $(PARALLEL) $(PYTEST_ARGS) $(UNIT_TESTS)

format: $(STAMP)
	@$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	@rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print0 | xargs -0 --no-run-if-empty rm -rf
