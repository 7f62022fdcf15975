# Two commands: `make demo` and `make test`. Each sets up everything it needs in .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip --disable-pip-version-check install --quiet --constraint constraints.txt
ARGS   ?=

.PHONY: demo test check chaos clean

demo: $(VENV)/.demo            ## train a real model twice, watch it on the page (ARGS=--exit ends after it)
	$(BIN)/snc demo $(ARGS)

test: check                    ## format, lint, types, import contracts, then the whole suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto $(ARGS)

chaos: $(VENV)/.test           ## kill -9 of everybody, 50 rounds per engine (ARGS="--rounds 10 --seed 7")
	OMP_NUM_THREADS=1 $(BIN)/python bench/chaos.py $(ARGS)

check: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The stamp files make set-up run once, and again when what is to be installed changes.
$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[demo]'
	touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[test]'
	touch $@ $(VENV)/.demo

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV)
