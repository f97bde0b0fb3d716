# Each target sets up its own environment in .venv on a fresh machine: Python 3.11+ and make are all it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

.PHONY: demo test lint bench escapes soak fuzz clean

demo: $(STAMP)
	$(BIN)/ringfence demo

# Three at a time: on two processors a third of the time would else be spent waiting for processes. Each file is one
# worker's, and names of cases must not depend on the hash seed.
test: $(STAMP) lint
	PYTHONHASHSEED=0 $(BIN)/python -m pytest -m "not soak" --numprocesses 3 --dist loadfile --no-loadscope-reorder

lint: $(STAMP)
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/mypy
	$(BIN)/lint-imports

# The suite once more as root, as a user with and without namespaces, and under a container's filter.
test-levels: $(STAMP)
	$(BIN)/python -m pytest -m "soak or not soak" --timeout 1800 tests/integration/test_standings.py

bench: $(STAMP)
	$(BIN)/python -m benchmarks

# Every attempt to escape, as a call, at import and from a thread, on every profile, in every standing: an hour or less.
escapes: $(STAMP)
	$(BIN)/python -m tests.escape --profiles all --modes all

soak: $(STAMP)
	$(BIN)/python -m pytest -m soak --timeout 7200

# Minutes for each target; FUZZ_SEED=2 tries other inputs.
fuzz: $(STAMP)
	FUZZ_SECONDS=$${FUZZ_SECONDS:-600} $(BIN)/python -m pytest -m soak tests/fuzz -s --numprocesses 2 --timeout 7200

# pip older than 25.1 does not know dependency groups: take a new one first. Compiled here as an installation from a wheel
# is: under PYTHONDONTWRITEBYTECODE an import would else compile each time, which takes three times as long.
$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable ".[numpy]" --group test --group bench
	$(BIN)/python -m compileall -q src
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache
