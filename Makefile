# Every target sets itself up: a virtual environment in .venv, made again only when what it depends on has changed.
#   make demo    train a small language model three ways and compare      (DEMO="--steps 20 --arms eager,fuse")
#   make flowformer  the same for linear attention                        (FLOWFORMER="--tasks digits --steps 20")
#   make s4d     the same for a state-space model through FFTs            (S4D="--pixels 64 --arms eager,fuse")
#   make mamba   the same for transformers' Mamba                         (MAMBA="--seq 512 --arms eager,fuse")
#   make bench   fuse against PyTorch and its peers                       (BENCH="--suite vocab --quick")
#   make test    the test suite                                           (TESTS="tests/test_packaging.py -x")
#   make slow    the long sweeps
#   make check   ruff and mypy
#   make clean   remove the environment and everything built

PYTHON ?= python3
JOBS ?= 2
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo flowformer s4d mamba bench test slow check clean

demo: $(READY)
	$(BIN)/python examples/train_lm.py $(DEMO)

flowformer: $(READY)
	$(BIN)/python examples/flowformer.py $(FLOWFORMER)

s4d: $(READY)
	$(BIN)/python examples/s4d.py $(S4D)

mamba: $(READY)
	$(BIN)/python examples/mamba.py $(MAMBA)

bench: $(READY)
	$(BIN)/python -c "import matplotlib, tqdm" 2>/dev/null || \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python benchmarks/run.py $(BENCH)

test: $(READY)
	$(BIN)/python -m pytest -n $(JOBS) $(TESTS)

slow: $(READY)
	$(BIN)/python -m pytest -n $(JOBS) -m slow $(TESTS)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/python tools/link_types.py
	$(BIN)/mypy

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fuse needs Python 3.11 or newer: make PYTHON=...")'
	[ -x $(BIN)/python ] || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,demo]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find fuse passes codegen tests tools examples -name __pycache__ -prune -exec rm -rf {} +
