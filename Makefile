# One verb per target. Needs python3 >= 3.11 with venv; everything else is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin
# where PyTorch comes from; empty: the default index, whose build for x86 Linux brings CUDA and several GB.
# TORCH_INDEX=https://download.pytorch.org/whl/cpu takes the build without
TORCH_INDEX ?=

.PHONY: sweep sweep-standard smoke test test-all lint bench clean

sweep: .venv/installed
	$(BIN)/usim sweep run sota_embedded --folder runs/embedded

sweep-standard: .venv/installed
	$(BIN)/usim sweep run sota_standard --folder runs/standard

smoke: .venv/installed
	$(BIN)/usim sweep run smoke --folder runs/smoke

# worksteal: each worker begins with a half of its own, so what a file's tests share is made once
test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal -m "not slow"

test-all: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

lint: .venv/tested
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/tested
	$(BIN)/python benchmarks/throughput.py

clean:
	rm -rf .venv runs

.venv/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "python >= 3.11 is needed; set PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv --clear .venv || { echo "the venv module is needed (Debian: apt-get install python3-venv)"; exit 1; }
	touch $@

.venv/installed: pyproject.toml constraints.txt .venv/created
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/tested: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,ray]'
	touch $@
