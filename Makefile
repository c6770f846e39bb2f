# `make run` and `make test` do all the set-up on a fresh machine with Python 3.11 or newer. Nothing else is needed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CONFIG ?= $(if $(wildcard config.toml),config.toml,config.example.toml)

.DEFAULT_GOAL := help
.PHONY: help run test check format weights redis clean

help:  ## Show what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

run: $(BIN)/.installed weights  ## Set up, bring the demo weights, start the gateway on 127.0.0.1:8080
	@exec $(BIN)/gateway serve --config $(CONFIG)

test: $(BIN)/.installed-dev weights redis  ## Set up and run every test
	$(BIN)/python -m pytest

check: $(BIN)/.installed-dev  ## Lint, format and type checks, and `gateway check` on what is shipped
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/gateway check --config config.example.toml

format: $(BIN)/.installed-dev  ## Format the code
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

weights: $(BIN)/.installed
	@$(BIN)/gateway models pull --config config.example.toml smollm2-135m all-minilm-l6-v2

redis:
	@command -v redis-server >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	  { apt-get install -y -q redis-server || { apt-get update -q && apt-get install -y -q redis-server; }; } >/dev/null 2>&1; } || \
	  echo "redis-server is not installed, so the tests that need it are skipped; install it with: sudo apt-get install redis-server (or: brew install redis)"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; name it: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(BIN)/.installed: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing the pinned packages into $(VENV); the first time this takes a few minutes"
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[all]'
	@touch $@

# GLiNER refuses transformers from 5.17 on, by its metadata alone: its tests pass.
$(BIN)/.installed-dev: $(BIN)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[all,dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps gliner
	@touch $@

clean:  ## Remove the virtual environment and caches; the state folder .gateway stays
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build *.egg-info
