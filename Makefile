# Two commands: `make demo` and `make test`. Both set everything up on first use.
# PYTHON=python3.12 picks an interpreter (3.10 or later).
# TORCH_INDEX=https://download.pytorch.org/whl/cpu fetches the smaller CPU build of torch.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH_INDEX ?=
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: demo test setup format clean

demo: $(STAMP)
	$(BIN)/inlay demo -o demo

test: $(STAMP)
	$(BIN)/ruff check src tests tools benchmarks examples integrations
	$(BIN)/ruff format --check src tests tools benchmarks examples integrations
	$(BIN)/mypy --strict src
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 3 --dist loadfile

setup: $(STAMP)

format: $(STAMP)
	$(BIN)/ruff check --fix src tests tools benchmarks examples integrations
	$(BIN)/ruff format src tests tools benchmarks examples integrations
	$(BIN)/python tools/map.py

clean:
	rm -rf $(VENV) demo .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "inlay needs Python 3.10 or later; try make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "$(PYTHON) cannot make environments; install its venv package" >&2; exit 1; }

# torch comes first, so that everything after it settles for the build that was chosen.
$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing inlay and what it needs into $(VENV) (a few minutes, once)"
	$(PIP) install -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $(STAMP)
