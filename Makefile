# make demo        install everything into .venv and open the program on a sample volume
# make test        install what the tests need, then do everything that `make check` does
# make check       format, lint, types, import contracts, tests (without installing)
# make benchmark   measure clicks on labelled data: make benchmark APPRENTICE_DATA=path/to/folder/with/sets

PYTHON ?= python3
VENV ?= .venv
# Exact versions, so that what worked once works again; `make demo CONSTRAINTS=` takes the newest that pyproject.toml allows.
CONSTRAINTS ?= constraints.txt
APPRENTICE_DATA ?= data
ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PINNED := $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))
INSTALLED_FROM := pyproject.toml $(CONSTRAINTS)

export OMP_NUM_THREADS ?= 2
unexport QT_QPA_PLATFORM

.PHONY: demo test check format lint types contracts tests benchmark clean

demo: $(VENV)/.installed-all
	@echo "Opening the demo; without a screen a simulated user does the clicking instead."
	$(BIN)/apprentice demo $(ARGS)

test: $(VENV)/.installed-test
	@$(MAKE) --no-print-directory check

check: format lint types contracts tests
	@echo "All checks passed."

format:
	$(BIN)/ruff format --check

lint:
	$(BIN)/ruff check

types:
	$(BIN)/mypy

contracts:
	$(BIN)/lint-imports

tests:
	$(BIN)/python -m pytest $(ARGS)

benchmark: $(VENV)/.installed-all
	$(BIN)/apprentice benchmark $(sort $(dir $(wildcard $(APPRENTICE_DATA)/*/dataset.toml))) \
	    --policy none,recall,pi --robot centre,random --limit 16 --threads 1 --jobs 2 --json runs/benchmark.json --markdown docs/benchmark.md $(ARGS)

clean:
	rm -rf $(VENV) dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# A stamp says that the environment is as the configuration wants it, so that the second call starts at once.
$(VENV)/.installed-all: $(INSTALLED_FROM) | $(VENV)/.ready
	@echo "Installing napari-apprentice with napari and a Qt window into $(VENV) (a few minutes the first time)."
	$(PIP) install --quiet --editable ".[all]" $(PINNED)
	@touch $@

$(VENV)/.installed-test: $(INSTALLED_FROM) | $(VENV)/.ready
	@echo "Installing napari-apprentice and all that its tests need into $(VENV) (a few minutes the first time)."
	$(PIP) install --quiet --editable ".[test]" $(PINNED)
	$(PIP) check
	@touch $(VENV)/.installed-all $@

# torch comes first and alone: pip then takes the build that suits this machine, and nothing later replaces it.
$(VENV)/.ready:
	@.ci/system-packages
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.12 " )'
	@test -x $(BIN)/python || { echo "Making a virtual environment in $(VENV)."; $(PYTHON) -m venv $(VENV); }
	@echo "Installing PyTorch into $(VENV)."
	$(PIP) install --quiet torch $(PINNED)
	@touch $@
