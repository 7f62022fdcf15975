# Two commands: `make demo` and `make test`. Each sets up everything it needs in .venv, the tests of the
# adapters in .venv-frameworks, the site in .venv-docs.
# For who changes the project: `make check`, `make docs`, `make chaos`, `make fuzz`, `make audit-dependencies`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
INSTALL := --disable-pip-version-check install --quiet --constraint constraints.txt
PIP    := $(BIN)/pip $(INSTALL)
ARGS   ?=

# Apart from the suite: fastai imports a library that changes the routes of Starlette in its process,
# and what a framework pins should not decide what the service is tested with.
FRAMEWORKS := .venv-frameworks

DOCS := .venv-docs

.PHONY: demo test test-frameworks check check-page chaos docs screenshots fuzz audit-dependencies clean

demo: $(VENV)/.demo            ## train a real model twice, watch it on the page (ARGS=--exit ends after it)
	$(BIN)/snc demo $(ARGS)

test: check                    ## format, lint, types, import contracts, then the whole suite (ARGS: a part)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto $(or $(ARGS),--ignore tests/integrations)
	$(if $(ARGS),,@$(MAKE) --no-print-directory test-frameworks docs)

chaos: $(VENV)/.test           ## full disks, power losses, flipped bits, leaping clocks; 100 rounds of kill -9 (ARGS="--rounds 9")
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/hardening -k "chaos or disk or power"
	OMP_NUM_THREADS=1 $(BIN)/python bench/service/power.py
	OMP_NUM_THREADS=1 $(BIN)/python bench/service/damage.py
	OMP_NUM_THREADS=1 $(BIN)/python bench/service/chaos.py $(ARGS)

test-frameworks: $(FRAMEWORKS)/.test  ## the adapters and the coverage, with the frameworks themselves
	@if test -f $<; then \
	OMP_NUM_THREADS=1 $(FRAMEWORKS)/bin/python -m pytest tests/integrations --numprocesses auto $(ARGS); \
	else echo 'The adapters are not tested: the extra [frameworks] cannot be installed here, see above'; fi

# A link or an anchor that leads nowhere ends it, and so does a page that no menu lists.
docs: $(DOCS)/.docs            ## the site: site/VERSION/index.html
	@if test -f $<; then NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict; \
	else echo 'The site is not built: the extra [docs] cannot be installed here, see above'; fi

screenshots: $(VENV)/.test     ## docs/page.png and docs/gallery, by Chromium (ARGS="--steps 60 decay-sign")
	OMP_NUM_THREADS=1 $(BIN)/python .ci/screenshots.py $(ARGS)

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

fuzz: $(VENV)/.test            ## mutated inputs by the million, and schemathesis (EXAMPLES=100 of each operation)
	OMP_NUM_THREADS=1 $(BIN)/python bench/service/fuzz.py $(FUZZ)
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

# Never fails: without the stamp the tests say that they are skipped.
# torchvision, which fastai and timm ask for, comes from PyPI built for CUDA. Beside a CPU build of torch
# its import fails, and that of transformers with it: it goes where only the tests of timm look for it.
$(FRAMEWORKS)/.test: pyproject.toml constraints.txt
	@rm -f $@
	test -x $(FRAMEWORKS)/bin/python || $(PYTHON) -m venv $(FRAMEWORKS)
	-$(FRAMEWORKS)/bin/pip $(INSTALL) --editable '.[test,frameworks]' && touch $@
	@$(FRAMEWORKS)/bin/python -c 'import torchvision' 2>/dev/null || { \
	rm -rf $(FRAMEWORKS)/aside && mkdir $(FRAMEWORKS)/aside && \
	mv $(FRAMEWORKS)/lib/python3*/site-packages/torchvision* $(FRAMEWORKS)/aside/; } || true

# Never fails, as above.
$(DOCS)/.docs: pyproject.toml constraints.txt
	@rm -f $@
	test -x $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS)
	-$(DOCS)/bin/pip $(INSTALL) --editable '.[docs]' && touch $@

$(VENV)/.node: package.json package-lock.json | $(BIN)/python
	npm ci --no-audit --no-fund --silent
	touch $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) $(FRAMEWORKS) $(DOCS) node_modules site
