# `make help` lists the targets. Each one that needs the environment creates it first.

.DEFAULT_GOAL := help

VENV ?= .venv
BIN := $(VENV)/bin
# Newer than pyproject.toml once everything in it is installed.
INSTALLED := $(VENV)/.installed

# Name of the first run, and more words for lsp, pytest or the benchmarks.
RUN ?= first_run
ARGS ?=

SUITABLE := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 15))

# deepspeed compiles its extensions when they are first used, not when it is installed.
export DS_BUILD_OPS := 0
# Environments that share torch's default folder rebuild each other's extensions.
export TORCH_EXTENSIONS_DIR := $(abspath $(VENV))/torch_extensions

.PHONY: help setup check test test-all test-gpu bench train clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /|/' \
		| awk -F'|' '{ printf "  make %-10s %s\n", $$1, $$2 }'

setup: $(INSTALLED) ## create .venv and install lsp into it; PYTHON=… chooses the interpreter

$(INSTALLED): pyproject.toml
	@if ! $(BIN)/python -c '' 2>/dev/null; then \
		for python in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
			if $$python -c "$(SUITABLE)" 2>/dev/null; then found=$$python; break; fi; \
		done; \
		if [ -z "$$found" ]; then \
			echo "no Python >= 3.11 with venv found: install one, or name it, make setup PYTHON=…" >&2; \
			exit 2; \
		fi; \
		echo "creating $(VENV) with $$($$found --version)"; \
		$$found -m venv --clear $(VENV) || exit 2; \
	fi
	@echo "installing into $(VENV): some minutes, once"
	@$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

check: $(INSTALLED) ## lint, format, types, import rule, shell scripts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	@scripts=$$(ls .ci/run launch/*.sh launch/*.sbatch 2>/dev/null); \
	if command -v shellcheck >/dev/null; then echo "shellcheck -x $$scripts"; shellcheck -x $$scripts; fi

test: $(INSTALLED) ## the fast tests; ARGS="-k reformer" chooses
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(ARGS)

test-all: $(INSTALLED) ## the slow ones too
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not gpu and not multi_gpu and not network" $(ARGS)

test-gpu: $(INSTALLED) ## those that need CUDA
	$(BIN)/python -m pytest -q -m "gpu or multi_gpu" $(ARGS)

bench: $(INSTALLED) ## side by side with transformers: time and memory
	$(BIN)/python benchmarks/reformer_vs_transformers.py $(ARGS)

train: $(INSTALLED) ## a first run and its export; the same command goes on where it stopped
	$(BIN)/lsp train experiment=first_run run_name=$(RUN) $(ARGS)
	$(BIN)/lsp export run=checkpoints/$(RUN) out=exported/$(RUN) overwrite=true

clean: ## remove caches and builds; .venv, checkpoints and prepared data stay
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
