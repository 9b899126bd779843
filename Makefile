# A fresh machine needs Python 3.11 or newer and make; everything else is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo relay test lint types bench network soak browser client docs clean

help: ## list the commands
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "meshpeer needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: $(STAMP) ## a relay and three bots as processes of their own, for about ten seconds
	$(BIN)/meshpeer demo --seconds 10

relay: $(STAMP) ## the server that peers meet at, on port 3001 of this machine, with its dashboard
	$(BIN)/meshpeer relay

test: JOBS ?= 2
test: lint types ## lint, type-check and run every test, in JOBS=2 processes
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The browser's client needs no build, so its types are looked at only where npm and the compiler are.
TSC := npm exec --yes --package=typescript@5.9 -- tsc

types: $(STAMP)
	$(BIN)/mypy
	@if $(TSC) --version >/dev/null 2>&1; then \
		$(TSC) -p tests/browser/tsconfig.json && echo "meshpeer.js: no type errors"; \
	else \
		echo "meshpeer.js: not type-checked, npm has no TypeScript here"; \
	fi

bench: $(STAMP) ## measure against raw aiortc in the same run; writes build/bench.json
	$(BIN)/python -m tests.bench

network: $(STAMP) ## connect and recover in real networks of namespaces (root); writes docs/recovery.md
	$(BIN)/python -m tests.network

soak: MINUTES ?= 2
soak: $(STAMP) ## eight processes talk for MINUTES=2 while everything breaks (root): nothing is lost
	$(BIN)/python -m tests.soak --minutes $(MINUTES)

browser: $(STAMP) ## people, bots and outages with a real Chromium (root); writes docs/browser.md, docs/recovery.md
	$(BIN)/python -m tests.browser

client: $(STAMP) ## put the parts of the browser's client together into meshpeer.js
	$(BIN)/python -m tests.browser.join

docs: $(STAMP) ## redraw the diagrams and tables in docs/ that are made from the code
	$(BIN)/python -m tests.docs.generate

clean: ## remove what the other commands made
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
