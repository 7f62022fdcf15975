# Two commands: `make demo` and `make test`. Each sets up everything it needs in .venv.
# For who changes the project: `make check`, `make chaos`, `make fuzz`, `make audit-dependencies`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip --disable-pip-version-check install --quiet --constraint constraints.txt
ARGS   ?=

.PHONY: demo test test-frameworks check check-page chaos fuzz audit-dependencies clean

demo: $(VENV)/.demo            ## train a real model twice, watch it on the page (ARGS=--exit ends after it)
	$(BIN)/snc demo $(ARGS)

test: check                    ## format, lint, types, import contracts, then the whole suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto $(ARGS)

chaos: $(VENV)/.test           ## full disks, leaping clocks, bad networks; 50 rounds of kill -9 (ARGS="--rounds 9")
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/hardening -k chaos
	OMP_NUM_THREADS=1 $(BIN)/python bench/service/chaos.py $(ARGS)

# In a step of its own: with them installed a test of routes failed once; and fastai asks for a torchvision
# whose build on PyPI needs CUDA and breaks what imports it beside a CPU build of torch.
test-frameworks: $(VENV)/.test ## the adapters, with the frameworks themselves
	$(PIP) --editable '.[test,frameworks]'
	$(BIN)/python -c 'import torchvision' 2>/dev/null || $(BIN)/pip uninstall --quiet --yes torchvision
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/integrations --numprocesses auto $(ARGS)

check: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@if command -v npm >/dev/null; then $(MAKE) --no-print-directory check-page; \
	else echo 'The page is not type-checked: that needs npm (apt-get install npm)'; fi

check-page: $(VENV)/.node       ## the types of the page's JavaScript
	node_modules/.bin/tsc --project tsconfig.json
	node_modules/.bin/tsc --project tsconfig.strict.json

fuzz: $(VENV)/.test            ## the long runs: schemathesis with all checks (EXAMPLES=100 of each operation)
	SNC_SCHEMATHESIS_EXAMPLES=$(or $(EXAMPLES),100) $(if $(LOG),SNC_SCHEMATHESIS_LOG=$(LOG)) \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/api/test_schemathesis.py $(ARGS)

audit-dependencies: $(VENV)/.test $(VENV)/audit/bin/pip-audit  ## known vulnerabilities of what is installed
	$(BIN)/python .ci/audit_dependencies.py $(VENV)/audit/bin/pip-audit \
	"$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

# In an environment of its own, so that it does not change what it audits.
$(VENV)/audit/bin/pip-audit: | $(BIN)/python
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/pip --disable-pip-version-check install --quiet 'pip-audit>=2.7'

# The stamp files make set-up run once, and again when what is to be installed changes.
$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[demo]'
	touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[test]'
	touch $@ $(VENV)/.demo

$(VENV)/.node: package.json package-lock.json | $(BIN)/python
	npm ci --no-audit --no-fund --silent
	touch $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) node_modules
