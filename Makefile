# make demo    train AutoEncNet on all four backends; table here, pictures in fastae-demo/
# make test    the whole test suite
# make bench   the benchmarks
# make peers   beside PyTorch, JAX and Keras; on an idle machine, some fifteen minutes
# make lint    ruff, cython-lint, mypy
# make dist    an sdist, and a wheel built from it, in dist/
# make clean   remove what was built; make distclean removes the virtual environment too
#
# Needs Python >= 3.11, a C compiler and make. Another Python: make PYTHON=python3.13 demo
# More arguments: make demo DEMO_ARGS="--data images.npz", make test PYTEST_ARGS="-k ops"

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# The install is editable: Python files count as they are, the compiled part is built again
# when one of these changes.
SOURCES := pyproject.toml setup.py fastae/cython_kernels.pyx \
	$(addprefix fastae/kernels/,table.py c_interface.py abi.txt) \
	$(wildcard $(addprefix fastae/kernels/compiled/*.,pyx pxd pxi h c in))
DEMO_ARGS ?= --out fastae-demo --force

# On two processes, then alone what measures time. Status 5: nothing was selected, which one of the two may say.
# pytest-benchmark does not time under xdist; told so, it does not warn.
PYTEST_TWICE = $(BIN)/python -m pytest -n 2 --dist worksteal --benchmark-disable -m "not timed" $(PYTEST_ARGS); \
	many=$$?; [ $$many -eq 0 ] || [ $$many -eq 5 ] || exit $$many; \
	$(BIN)/python -m pytest -m timed $(PYTEST_ARGS); \
	timed=$$?; [ $$timed -eq 0 ] || { [ $$timed -eq 5 ] && [ $$many -eq 0 ]; }

.PHONY: help demo examples test bench peers lint format readme dist clean distclean
.NOTPARALLEL:
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -10

demo: $(VENV)/.extra-demo
	$(BIN)/fastae demo $(DEMO_ARGS)

examples: $(VENV)/.extra-test  # their pictures in the README are made so
	for name in reconstruct codes denoise anomalies generate follow_training; do \
		$(BIN)/python examples/$$name.py --out docs/examples || exit 1; echo; done
	$(BIN)/python -c 'import fastae; fastae.plots.network(fastae.models.upsample_conv()).figure.savefig("docs/network.png")'

test: export CI := true  # every backend is installed here: one that cannot be loaded is a failure, not a skip
test: $(VENV)/.extra-test
	$(PYTEST_TWICE)

bench: $(VENV)/.extra-bench
	$(BIN)/python -m pytest --benchmark-only $(PYTEST_ARGS)

# The README shows what this wrote on a machine that had nothing else to do.
PEERS_ARGS ?= --out benchmarks/results --readme README.md
peers: $(VENV)/.extra-peers
	$(BIN)/python -m benchmarks.peers $(PEERS_ARGS)

lint: export PATH := $(abspath $(BIN)):$(PATH)  # cython-lint looks for pycodestyle there
lint: $(VENV)/.extra-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/cython-lint fastae
	$(BIN)/mypy fastae

format: $(VENV)/.extra-lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The README shows what the demo printed and drew on a machine that had nothing else to do.
readme: $(VENV)/.extra-demo
	mkdir -p build
	$(BIN)/fastae demo --out docs --force > build/demo.txt
	awk 'FNR == NR { sub(/^Pictures in docs/, "Pictures in fastae-demo"); text = text $$0 "\n"; next } \
		/^<!-- end/ { inside = 0 } \
		!inside { print } \
		/^<!-- begin: output of make demo/ { printf "```text\n%s```\n", text; inside = 1 }' build/demo.txt README.md > build/README.md
	cp build/README.md README.md

dist: $(VENV)/.build-tool
	rm -rf dist
	$(BIN)/python -m build

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "fastae needs Python >= 3.11; try: make PYTHON=python3.13" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.built: $(SOURCES) | $(BIN)/python
	@echo 'installing fastae into $(VENV), its compiled part takes a minute or so'
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

# fastae itself is there by now, so pip adds what the extra asks for and builds nothing again.
$(VENV)/.extra-%: pyproject.toml | $(VENV)/.built
	$(BIN)/python -m pip install --quiet 'fastae[$*]'
	@touch $@

$(VENV)/.build-tool: | $(BIN)/python
	$(BIN)/python -m pip install --quiet build
	@touch $@

clean:
	rm -rf build dist *.egg-info fastae-demo fastae-examples
	rm -rf fastae/include fastae/cython_kernels.pxd  # written by setup.py
	rm -rf .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find fastae \( -name '*.so' -o -name '*.nbi' -o -name '*.nbc' \) -delete
	find benchmarks examples fastae tests -name __pycache__ -prune -exec rm -rf {} +
	rm -f $(VENV)/.built

distclean: clean
	rm -rf $(VENV)
