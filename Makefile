# On a fresh machine: `make demo`, `make check` and `make test`. Each makes .venv when it is missing.
PYTHON ?= python3
VENV := .venv
SEED ?= 3824290811
BIN := $(VENV)/bin
PROJECTS := pyproject.toml $(wildcard plugins/*/pyproject.toml)
PLUGINS := $(patsubst %/pyproject.toml,-e %,$(wildcard plugins/*/pyproject.toml))

# What `make check` runs, but for tests marked slow; docs/testing.md says how they are chosen. Files that are slow as a
# whole are not even read.
QUICK := tests/test_house_rules.py tests/surface \
    $(shell grep -L '^pytestmark = pytest.mark.slow' tests/contracts/test_*.py) tests/parity/test_bundled.py tests/parity/test_pth.py \
    tests/plugins/test_host.py tests/plugins/test_what_plugins_import.py tests/plugins/test_collections.py \
    tests/flow/test_folder_walks.py tests/cli/test_import.py
PYTEST = OMP_NUM_THREADS=1 $(BIN)/pytest -n logical --dist loadscope

.PHONY: demo check test lint clean

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mim-core needs Python 3.11 or newer; name one with: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.made $(PROJECTS)
	@echo "Installing mim-core and its plugins (torch is about 5 GB) ..."
	$(BIN)/pip install --quiet --disable-pip-version-check -e . $(PLUGINS)
	@touch $@

$(VENV)/.developed: $(VENV)/.made $(PROJECTS)
	@echo "Installing mim-core, its plugins and the tools for tests ..."
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]' $(PLUGINS)
	@touch $@ $(VENV)/.installed

# Pre-trains on the bundled images, judges the features, writes runs/demo/report.html. Run again: it goes on, or shows the table.
demo: $(VENV)/.installed
	$(BIN)/mim-image pretrain mae-vit-tiny --out runs/demo
	$(BIN)/mim-image evaluate runs/demo
	@echo "Open runs/demo/report.html: curves, reconstructions, scores."

# For every save: style, types and the quick tests.
check: $(VENV)/.developed lint
	MIM_QUICK=1 $(PYTEST) --maxprocesses 2 -m "not slow and not gpu" $(QUICK)

# Everything, in an order that is random and the same every time; another: make test SEED=last, or a number. One thread for each of up to four processes; a class or a module of tests stays in one.
test: $(VENV)/.developed lint
	$(PYTEST) --maxprocesses 4 --randomly-seed=$(SEED)

lint: $(VENV)/.developed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) runs dist build
