# Two commands do everything on a machine with Python 3.11 (venv) and make:
#   make demo   installs Meshbus and runs it: bus, six services, Bookinfo behind real Envoys
#   make test   installs Meshbus for development and runs its tests
PYTHON ?= python3
VENV ?= .venv
TEST_VENV ?= .venv-test
PIP_FLAGS ?= --disable-pip-version-check -q

.PHONY: demo test bench native lint types contracts drift clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Meshbus needs Python 3.11 or newer: make PYTHON=python3.11 demo")'
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install $(PIP_FLAGS) -e '.[standalone]'
	touch $@

$(TEST_VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Meshbus needs Python 3.11 or newer: make PYTHON=python3.11 test")'
	test -x $(TEST_VENV)/bin/python || $(PYTHON) -m venv $(TEST_VENV)
	$(TEST_VENV)/bin/python -m pip install $(PIP_FLAGS) -e '.[standalone,dev]'
	touch $@

demo: $(VENV)/.installed
	$(VENV)/bin/meshbus demo $(ARGS)

# Everything that needs no root and no minutes; .ci/run adds the slow suites.
test: $(TEST_VENV)/.installed
	$(TEST_VENV)/bin/python -m pytest -q -m "not slow and not root" $(ARGS)

# What a gateway costs on this machine, in some minutes; bench/README.md says how it measures.
# make bench ARGS="--services 1000 --sidecars 2000"; ARGS="--compare BEFORE.json AFTER.json"
bench: $(TEST_VENV)/.installed
	$(TEST_VENV)/bin/python bench/run.py $(ARGS)

# The native carrier of the xds-gateway, built by the Rust toolchain that is there; optional.
native: $(VENV)/.installed
	PATH="$$PATH:$$HOME/.cargo/bin"; command -v cargo >/dev/null || { echo "make native needs cargo, the Rust toolchain" >&2; exit 1; }; \
	$(VENV)/bin/python -m pip install $(PIP_FLAGS) --force-reinstall ./native

lint: $(TEST_VENV)/.installed
	$(TEST_VENV)/bin/ruff check .
	$(TEST_VENV)/bin/ruff format --check .

types: $(TEST_VENV)/.installed
	$(TEST_VENV)/bin/mypy

contracts: $(TEST_VENV)/.installed
	$(TEST_VENV)/bin/lint-imports

# Generated files are what their generators give.
drift: $(TEST_VENV)/.installed
	$(TEST_VENV)/bin/python -m meshbus.schema.write --check
	$(TEST_VENV)/bin/python -m meshbus.cli.compatibility --check

clean:
	rm -rf $(VENV) $(TEST_VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
