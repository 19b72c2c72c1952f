# One environment for everything, in .venv. `make` alone says what there is.

VENV := .venv
BIN := $(VENV)/bin
# The first of these that is Python 3.11 or newer.
PYTHON ?= $(shell for python in python3.11 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$python; break; }; done)
PIP := $(BIN)/python -m pip --disable-pip-version-check
LOCK := build/lock
SHIPPED := src flows tasks blocks deployments

.PHONY: help demo test check chaos bench lock clean FORCE

help:
	@echo "make demo    set up, play real telescope data through the system, and show the page; Ctrl-C stops it"
	@echo "make test    set up, and run the gates and all tests"
	@echo "make check   the gates alone: ruff, mypy, import-linter"
	@echo "make chaos   kill the station 500 times, take Prefect away for 10 minutes, and compare the books; half an hour"
	@echo "make bench   the benchmarks; prints one table"
	@echo "make lock    choose all versions anew, and write them to constraints.txt"
	@echo "make clean   remove the environment and what was built"

demo: $(VENV)/installed
	@exec $(BIN)/p3s demo demo

# In three processes on two cores: most tests wait, for servers that start and for what comes back. With two
# processes the cores were idle for half of the time.
test: check
	$(BIN)/python -m pytest -n 3 -m "not alone"
	$(BIN)/python -m pytest -m alone

check: $(VENV)/tools
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

chaos: $(VENV)/tools
	P3S_KILLS=500 $(BIN)/python -m pytest tests/station/test_station_kills.py
	P3S_OUTAGE_S=600 $(BIN)/python -m pytest tests/station/test_station_prefect.py

bench: $(VENV)/tools
	$(BIN)/python -m benchmarks

lock:
	@$(call need_python)
	rm -rf $(LOCK)
	$(PYTHON) -m venv $(LOCK)
	$(LOCK)/bin/python -m pip install --quiet --upgrade pip "setuptools>=77"
	$(LOCK)/bin/python -m pip install --quiet --group dev .
	{ sed '/^[^#]/,$$d' constraints.txt; \
	  $(LOCK)/bin/python -m pip freeze --all --exclude p3s-prefect | LC_ALL=C sort -f; } > $(LOCK)/constraints.txt
	mv $(LOCK)/constraints.txt constraints.txt
	rm -rf $(LOCK)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

# The environment is made when the versions or the project's own declarations have changed. The package is linked into
# it file by file (strict), as the static checks need it; so it is linked again when a file has come or gone.
$(VENV)/installed: constraints.txt pyproject.toml $(VENV)/files
	@$(call need_python)
	@echo "Setting up $(VENV): 600 MB, and a minute or two the first time."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install -qq --constraint constraints.txt pip setuptools
	@$(PIP) install -qq --constraint constraints.txt --no-build-isolation \
		--config-settings editable_mode=strict --editable .
	@touch $@

$(VENV)/tools: $(VENV)/installed
	@$(PIP) install -qq --constraint constraints.txt --group dev
	@touch $@

$(VENV)/files: FORCE
	@mkdir -p $(VENV)
	@find $(SHIPPED) -type f ! -name '.*' ! -path '*/__pycache__/*' | LC_ALL=C sort > $@.new
	@if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

need_python = test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: install it, or say make PYTHON=..." >&2; exit 1; }
