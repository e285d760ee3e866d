# From a fresh clone, every target below makes what it needs first: a virtual environment with the pinned versions,
# and (demo, serve, test, test-full, bench) the bundled models in the user's cache folder. A second run takes seconds.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.ONESHELL:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
TABLE ?=
PIP := $(BIN)/python -m pip install --disable-pip-version-check --no-input --progress-bar off \
  --constraint constraints.txt

# Tests run side by side, a file at a time, each process on one core: models this small gain nothing from two.
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$(( n < 4 ? n : 4 )))
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: help demo serve bench reproduce test test-full check docs proto fmt models clean

help:
	@cat <<-'TEXT'
	make demo       ask the bundled pair a few questions through the server, with and without nudging
	make serve      start the gRPC server              (ARGS="--port 50052" passes options on)
	make bench      run the benchmarks                 (ARGS="..." likewise)
	make reproduce  make a table of the documents anew (TABLE=name; without it, list them)
	make test       the tests, as in continuous integration
	make test-full  the slow tests too
	make check      style, types, layers, generated code, reference
	make docs       write the reference of the Python interface into build/docs
	make fmt        rewrite the code in the house style
	make proto      generate the code of the gRPC API anew
	make models     fetch the bundled models, or verify them
	TEXT

$(VENV)/.installed: setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
	  echo "$(PYTHON) is too old: Python 3.11 or later is needed (choose one with: make PYTHON=python3.12 ...)" >&2
	  exit 1
	}
	if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then
	  echo "making the virtual environment $(VENV)"
	  $(PYTHON) -m venv $(VENV)
	fi
	echo "installing the pinned dependencies into $(VENV) (takes minutes the first time)"
	$(PIP) --editable '.[dev,all,triton]' \
	  2> >(grep -v '^WARNING: Location .* is ignored' >&2) \
	  | { grep --line-buffered -E '^ *Downloading .*(MB|GB)\)|^Installing collected' || true; } | cut -c1-100
	touch $@

models: $(VENV)/.installed
	@$(BIN)/trimtab models pull

demo: models
	@$(BIN)/trimtab demo $(ARGS)

serve: models
	@exec $(BIN)/trimtab serve $(ARGS)

bench: models
	@$(BIN)/trimtab bench $(ARGS)

# A reader of public data sets, and IFEval's checkers, which are files of a package whose own needs are not wanted.
$(VENV)/.reproduce: $(VENV)/.installed
	@echo "installing what reads public data sets and checks answers"
	$(PIP) --quiet --editable '.[data,eval]'
	$(PIP) --quiet --no-deps lm-eval
	touch $@

reproduce: $(if $(TABLE),models $(VENV)/.reproduce,$(VENV)/.installed)
	@$(BIN)/trimtab bench reproduce $(TABLE) $(ARGS)

test: models
	@$(PYTEST) -m "not full and not gpu" $(ARGS)

test-full: models
	@$(PYTEST) -m "not gpu" $(ARGS)

# mypy wants folders named as the packages are; these links are not under version control.
build/types/trimtab: Makefile
	@mkdir -p $@
	for folder in decode kernels server bench; do ln -sfn ../../../$$folder $@/$$folder; done
	ln -sfn ../../../server/proto/trimtab/v1 $@/v1
	touch $@

check: $(VENV)/.installed build/types/trimtab
	@failed=""
	run() { echo "== $$*"; "$$@" || failed="$$failed [$$*]"; }
	$(BIN)/python docs/programs.py build/types/documents
	run $(BIN)/ruff check --quiet .
	run $(BIN)/ruff format --check --quiet .
	run env MYPYPATH=build/types:examples/plugins $(BIN)/mypy -p trimtab -p trimtab_extras -p tests -p examples -p docs -p documents
	run $(BIN)/python -m pytest -q tests/test_layering.py
	run $(BIN)/python server/proto/generate.py --check
	run $(BIN)/python docs/api.py build/docs
	if [ -n "$$failed" ]; then echo "failed:$$failed" >&2; exit 1; fi

docs: $(VENV)/.installed
	@$(BIN)/python docs/api.py build/docs
	echo "build/docs/index.html"

proto: $(VENV)/.installed
	@$(BIN)/python server/proto/generate.py

fmt: $(VENV)/.installed
	@$(BIN)/ruff check --quiet --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build dist $(VENV) *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
