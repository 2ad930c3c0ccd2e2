# Everything runs in .venv, which is made on first use from constraints.txt.
#   make quickstart   train a small model, change what it prefers, show it
#   make test         format, lint, imports, types and the fast tests
#   make certify      the long checks: whole runs against their references
#   make docs         write docs/losses.md and its plots from the losses
#   make format       format and sort imports
#   make clean        remove caches and build outputs (not .venv, not runs/)

PYTHON ?= python3
# Test processes. Each grows to about 7 GB.
JOBS ?= 2
WORKDIR ?= runs/quickstart

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input

# Nothing here downloads a model or a data set.
export HF_HUB_OFFLINE := 1

.PHONY: quickstart test check certify docs format clean
.DELETE_ON_ERROR:

quickstart: .venv/installed
	$(BIN)/python -m jaxpref.launch --config=configs/quickstart.py \
	  --workdir=$(WORKDIR)

test: check
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal --durations=8

check: .venv/installed-test
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

# As users run it: compiled at XLA's own optimization level, not at the tests',
# and one device with all threads.
# What was measured is written to docs/certificates.md.
certify: .venv/installed-test
	mkdir -p docs
	XLA_FLAGS="--xla_backend_optimization_level=3 \
	  --xla_cpu_multi_thread_eigen=true $$XLA_FLAGS" \
	  JAXPREF_CERTIFICATES=docs/certificates.md \
	  $(BIN)/python -m pytest -m certify

docs: .venv/installed-test
	$(BIN)/python docs/make_losses.py

format: .venv/installed-test
	$(BIN)/ruff check --fix --select I --quiet .
	$(BIN)/ruff format .

clean:
	rm -rf .cache .pytest_cache .ruff_cache build dist *.egg-info
	find configs jaxpref tests -name __pycache__ -type d -prune \
	  -exec rm -rf {} +

.venv/installed: .venv/created pyproject.toml constraints.txt
	@echo "Installing into .venv; the first time this takes a few minutes."
	$(PIP) install --quiet -c constraints.txt -e .
	@touch $@

.venv/installed-test: .venv/created pyproject.toml constraints.txt
	@echo "Installing into .venv; the first time this takes a few minutes."
	$(PIP) install --quiet -c constraints.txt -e '.[test,plan]'
	@touch $@ .venv/installed

.venv/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "jaxpref needs Python 3.11 or newer, and $(PYTHON) is" \
	    "$$($(PYTHON) --version 2>&1): name another, as in" \
	    "'make PYTHON=python3.12 $(firstword $(MAKECMDGOALS))'." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "$(PYTHON) cannot make virtual environments: it lacks the" \
	    "module venv or ensurepip. On Debian and Ubuntu: apt install" \
	    "python3-venv." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@
