# make demo    bare hosts become a call fleet on this machine, with calls held on every slot
# make test    everything: lint, types, unit tests, and the lab tests on real hosts (root; installs what it needs)
# make check   the quick part, no hosts
# make chaos   the long forms that `make test` leaves out: hosts that hang, links that go silent, every kind of drift
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# Unit tests mostly wait, so there are more of them at a time than cores. Lab tests have one lab and run alone.
UNIT_WORKERS ?= 4

.PHONY: demo test check lint types unit lab-test chaos venv lock clean

demo: venv
	$(BIN)/python -m lab.demo

test: check lab-test

check: lint types unit

venv: $(VENV)/.installed

$(VENV)/.installed: requirements/run.txt requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "callfleet needs Python 3.11 or newer: set PYTHON=" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { apt-get update -qq && apt-get install -y -qq python3-venv; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --require-hashes -r requirements/run.txt -r requirements/dev.txt
	$(BIN)/pip install --quiet --no-deps --editable .
	touch $@

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: venv
	$(BIN)/mypy

unit: venv
	$(BIN)/pytest -q -m "not lab" -n $(UNIT_WORKERS) --dist worksteal

lab-test: venv
	$(BIN)/pytest -q -m "lab and not long"

chaos: venv
	$(BIN)/pytest -q -m "lab and long"

# Pins every dependency with its hashes again, from what pyproject.toml and requirements/dev.in ask for.
lock: venv
	$(BIN)/pip install --quiet pip-tools
	$(BIN)/pip-compile -q --generate-hashes --no-emit-index-url --no-emit-find-links --no-emit-options --no-header --strip-extras --allow-unsafe -o requirements/run.txt pyproject.toml
	$(BIN)/pip-compile -q --generate-hashes --no-emit-index-url --no-emit-find-links --no-emit-options --no-header --strip-extras --allow-unsafe -o requirements/dev.txt requirements/dev.in

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
