# The few commands of this project, the same for people and for CI. `make help` lists them.

PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3; do command -v $$name && break; done)
GPU_PYTHON ?= python3
GPU_RESULTS ?= docs/results/h200
# Further options of the benchmark there, for instance --tune.
GPU_BENCH ?=
VENV ?= .venv
BIN := $(VENV)/bin
CONFIG ?=
# How many tests run at the same time; `make test JOBS=0` runs one after the other, in this process.
JOBS ?= 2
# How many requests `make fuzz` makes up for each test.
EXAMPLES ?= 1000
# Options of the two parts of `make chaos`: one group's shards (--shards 3), a whole server (--short, which takes a
# quarter of an hour, where the full form takes a night; --parts stops,updates; --resume).
CHAOS ?=
CHAOS_SERVER ?=

# Some tests and recipes read datasets from FEWSHARD_DATA; without it those tests skip and say so.
ifneq ($(wildcard ../shared/data),)
export FEWSHARD_DATA ?= $(abspath ../shared/data)
endif

# Tests of the chart read KubeRay's CRD from FEWSHARD_KUBERAY_CRD; without it some skip and say so.
ifneq ($(wildcard ../shared/k8s/rayservice-crd-*.yaml),)
export FEWSHARD_KUBERAY_CRD ?= $(abspath $(lastword $(sort $(wildcard ../shared/k8s/rayservice-crd-*.yaml))))
endif

.DEFAULT_GOAL := help
.PHONY: help setup serve test check check-all bench chaos chart clients fuzz gpu-check image clean

help: ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20

setup: $(VENV)/.installed ## create the virtual environment (once; again when the pins or pyproject.toml change)

serve: $(VENV)/.installed ## serve the bundled models, or those of CONFIG=fewshard.yaml
	$(BIN)/fewshard serve $(CONFIG)

# A test that fails is run once more and listed as RERUN: machines of others stall for seconds.
test: $(VENV)/.installed ## run the tests, except those marked slow
	$(BIN)/pytest -n $(JOBS) --dist loadfile --durations 10 --reruns 1 -r R

check: $(VENV)/.installed ## lint, formatting, types, import arrows, version
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -q tests/repo/test_version.py

check-all: check ## check, then every test, the slow ones included
	$(BIN)/pytest -m ''

bench: $(VENV)/.installed ## measure the server beside an application that does nothing
	$(BIN)/python benchmarks/server.py

fuzz: $(VENV)/.installed ## made-up requests and checkpoint files, EXAMPLES=1000 for each test, on this machine alone
	FEWSHARD_FUZZ_EXAMPLES=$(EXAMPLES) $(BIN)/pytest -m '' -rP tests/serve/fuzz tests/models/fuzz

chaos: $(VENV)/.installed ## kill, stop, flood, update: the shards of a model, then a server: a table; CHAOS_SERVER=--short
	$(BIN)/python benchmarks/chaos.py $(CHAOS)
	$(BIN)/python benchmarks/server_chaos.py $(CHAOS_SERVER)

chart: $(VENV)/.installed ## the Helm chart: bring its files up to date, lint, render, validate, count
	$(BIN)/python -W ignore helm/chart_sync.py
	$(BIN)/python -W ignore helm/chart_check.py

clients: $(VENV)/.installed ## ask a server by real clients of other projects, in environments of their own below .clients; a table
	$(BIN)/python tests/clients/run.py

image: ## build the image with buildah and ask it for a prediction; see deploy/build.sh
	deploy/build.sh

gpu-check: ## on a GPU, with GPU_PYTHON's torch: test kernels and models, then measure into GPU_RESULTS
	$(GPU_PYTHON) -c 'import torch; assert torch.cuda.is_available(), "torch sees no GPU"'
	PYTHONPATH=core:kernels:models $(GPU_PYTHON) -m pytest tests/kernels tests/models
	PYTHONPATH=core:kernels:models $(GPU_PYTHON) -m fewshard_models.bench --device cuda --out $(GPU_RESULTS) $(GPU_BENCH)

clean: ## remove caches and build outputs; the virtual environment stays
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find core kernels models serve loadtest tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# torch goes first and alone, so that nothing else can pull another build of it. Then pip checks that the pins fit.
$(VENV)/.locked: requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' requirements.lock)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	touch $@

$(VENV)/.installed: $(VENV)/.locked pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@
