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
demo: setup ## The main job on the local Kubernetes (CONTEXT=name: on a cluster of yours)
	$(PY) -m examples.demo cluster $(if $(CONTEXT),--context $(CONTEXT))

demo-laptop: setup ## The same FineTuneJob, run by the trainer alone: no Kubernetes, no root
	$(PY) -m examples.demo laptop

test: setup ## Every tier; ends non-zero when one could not run
	$(PY) -m tests.run

##@ While you work
.PHONY: setup check generate lock format images chart bench gpu-check clean help
setup: .venv/.complete ## .venv with the three packages and the tools, as locked

.tools/.uv-$(UV_VERSION):
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
