# `make help` lists every habit; `make demo` and `make test` are the two that matter.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON3 ?= python3
UV_VERSION := 0.13.8
UV := .tools/bin/uv
PY := .venv/bin/python
NODES ?= 1
MEMBERS := crds operator trainer_image

include tests/cluster/cluster.mk

##@ Start here
.PHONY: demo demo-laptop test
demo: setup ## The main job on the local Kubernetes (CONTEXT=name: on a cluster of yours; CPU=1: without GPUs)
	$(PY) -m examples.demo cluster $(if $(CONTEXT),--context $(CONTEXT)) $(if $(CPU),--cpu)

demo-laptop: setup ## The same FineTuneJob, run by the trainer alone: no Kubernetes, no root
	$(PY) -m examples.demo laptop

test: setup static ## Every tier; ends non-zero when one could not run
	$(PY) -m pytest --durations=25 tests/unit tests/trainer tests/controlplane tests/e2e

##@ While you work
.PHONY: setup check static format generate lock images chart sweep gpu-check clean help
check: setup static ## Lint, types, contracts, drift of generated files, unit tests: under two minutes
	$(PY) -m pytest -q tests/unit

static: setup
	.venv/bin/ruff check --quiet . && .venv/bin/ruff format --quiet --check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo
	$(PY) -m finetune_api generate --check

format: setup ## Ruff's formatter and its safe fixes
	.venv/bin/ruff format . && .venv/bin/ruff check --fix .

generate: setup ## CRD, chart's CRD, editors' schema and API reference, from crds/finetune_api
	$(PY) -m finetune_api generate

images: ## Both images (PUSH=local: and push them to the local cluster of that name)
	$(PYTHON3) -m tests.images $(if $(PUSH),--push $(PUSH))

chart: setup ## Lint the chart and pack it into dist/
	$(PY) -m tests.chart

sweep: setup ## Slow tests: faults at every call, examples on a real model, learning by three seeds (two hours)
	$(PY) -m pytest tests/trainer/test_examples.py tests/trainer/test_learns.py tests/controlplane/test_faults.py \
		--sweep --timeout 7200

gpu-check: setup ## On a machine with a GPU: every tuning method in bf16, throughput and memory
	$(PY) -m tests.bench.gpu_check

clean: cluster-down ## Stop the cluster, remove what is built in the checkout
	rm -rf .venv .tools build dist .cluster

setup: .venv/.complete ## .venv with the three packages and the tools, as locked

.tools/.uv-$(UV_VERSION):
	@$(PYTHON3) -c 'import ensurepip, venv' 2>/dev/null || { apt-get update -qq && apt-get install -y -qq python3-venv; } \
		|| { echo "Python's venv is missing: install python3-venv (Debian) and try again" >&2; exit 1; }
	$(PYTHON3) -m venv .tools && .tools/bin/python -m pip install --quiet uv==$(UV_VERSION) && touch $@

.venv/.complete: .tools/.uv-$(UV_VERSION) requirements/dev.txt $(MEMBERS:%=%/pyproject.toml)
	@echo "installing requirements/dev.txt into .venv (torch alone is some gigabytes)"
	$(UV) venv --quiet --allow-existing --python $(PYTHON3) .venv
	$(UV) pip sync --quiet --require-hashes --compile-bytecode --python .venv requirements/dev.txt
	$(UV) pip install --quiet --no-deps --python .venv $(MEMBERS:%=-e %)
	touch $@

LOCK := $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --no-emit-package finetune-api
lock: .tools/.uv-$(UV_VERSION) ## Resolve the three lock files anew (UPGRADE=1: to the newest allowed)
	$(LOCK) $(if $(UPGRADE),--upgrade) -o requirements/dev.txt requirements/dev.in $(MEMBERS:%=%/pyproject.toml)
	$(LOCK) -c requirements/dev.txt -o requirements/operator.txt operator/pyproject.toml crds/pyproject.toml
	$(LOCK) -c requirements/dev.txt -o requirements/trainer.txt trainer_image/pyproject.toml crds/pyproject.toml

help: ## This list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
