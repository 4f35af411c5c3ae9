# `make help` lists all commands. `make demo` and `make test` are the two main ones.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON3 ?= python3
UV_VERSION := 0.13.8
UV := .tools/bin/uv
PY := .venv/bin/python
NODES ?= 1
WORKERS ?= 3
MEMBERS := crds operator trainer_image cli ui
ASSETS := ui/finetune_ui/static/vendor

include tests/cluster/cluster.mk

##@ Start here
.PHONY: demo demo-laptop test
demo: setup ## Train a model on the local Kubernetes (CONTEXT=name: on your own cluster; CPU=1: without GPUs)
	$(PY) -m examples.demo cluster $(if $(CONTEXT),--context $(CONTEXT)) $(if $(CPU),--cpu)

demo-laptop: .venv/.complete ## Run the same FineTuneJob with the trainer alone: no Kubernetes, no root
	$(PY) -m examples.demo laptop

# The slow tiers start first: e2e and controlplane beside each other. The third worker computes in what they leave of the CPU.
test: setup ## Run all tests, several tiers at once; fails if a tier cannot run here
	$(MAKE) --no-print-directory -j2 static programs
	$(PY) -m pytest -n $(WORKERS) --no-loadscope-reorder --durations=25 tests/e2e tests/controlplane tests/helm tests/trainer tests/unit

##@ While you work
.PHONY: setup check static unit programs docs format generate lock assets images sbom audit chart audit-chart sweep sweep-faults gpu-check clean help
check: setup ## Lint, types, import contracts, drift of generated files, unit tests: under 100 seconds
	$(MAKE) --no-print-directory -j2 static unit

unit: setup
	$(PY) -m pytest -q -n 2 tests/unit

static: setup
	.venv/bin/ruff check --quiet . && .venv/bin/ruff format --quiet --check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo
	$(PY) -m finetune_api generate --check
	$(PY) -m finetune_cli.importing.table --check
	$(PY) -m tests.docsite.troubleshooting --check
	$(PY) -m tests.chart_values --check

format: setup ## Run ruff's formatter and its safe fixes
	.venv/bin/ruff format . && .venv/bin/ruff check --fix .

generate: setup ## Generate CRD, editor schema, API reference, tables of docs/, and the chart's schema and README
	$(PY) -m finetune_api generate
	$(PY) -m finetune_cli.importing.table
	$(PY) -m tests.docsite.troubleshooting
	$(PY) -m tests.chart_values

docs: setup ## Build the documentation site into build/site. A broken link is an error
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build

# What takes minutes the first time is not left to a test, which has a time limit. Tests report what could not be built.
programs: setup assets
	-$(PYTHON3) -m tests.cluster build
	-$(PYTHON3) -m tests.images
	-$(PY) -m tests.s3.server
	-$(PYTHON3) -c 'from tests.cluster import packages; packages.ensure(packages.BROWSER)'

images: assets ## Build all images (PUSH=local: and push them to the local cluster with that name)
	$(PYTHON3) -m tests.images $(if $(PUSH),--push $(PUSH))

sbom: ## Write what each image contains into dist/, as CycloneDX JSON (it is in the images, too: /usr/share/sbom)
	$(PYTHON3) -m tests.sbom

audit: setup ## Ask advisory databases about the locked packages: 0 none known, 1 advisories, 2 nobody could be asked
	$(PY) -m tests.audit

chart: setup ## Lint the chart and pack it into dist/
	$(PY) -m tests.chart

audit-chart: setup ## Run kubeconform, kube-score and checkov on the chart: no finding without a reason
	$(PY) -m tests.chart_audit

sweep: setup ## Run the slow tests: all combinations, faults at every call (writes docs/fault-sweep.md), examples on a real model
	$(PY) -m pytest --sweep -m sweep tests/e2e tests/controlplane tests/trainer tests/unit
	$(PY) -m pytest tests/trainer/test_examples.py tests/trainer/training/test_learns.py --sweep --timeout 14400
	$(MAKE) --no-print-directory sweep-faults

sweep-faults: setup ## Faults at every call of the lives that have no result of today's operator (LIVES='retry,bad data': of these)
	$(PY) -m tests.controlplane.fault_sweep $(if $(LIVES),'$(LIVES)')

# In the trainer image where a container engine answers, else in .venv. Machines without our packages can run it, too:
# python3 -m tests.bench.gpu_check (docs/benchmarks.md).
gpu-check: ## Measure speed and memory on a GPU in ten minutes (ARGS="--cpu", "--only dpo", "--minutes 5")
	@if $(PYTHON3) -m tests.bench.gpu.container --available; then $(PYTHON3) -m tests.bench.gpu.container $(ARGS); \
		else $(MAKE) --no-print-directory .venv/.complete && $(PY) -m tests.bench.gpu_check $(ARGS); fi

clean: cluster-down ## Stop the cluster and remove everything built in the checkout
	rm -rf .venv .tools build dist .cluster ui/node_modules $(ASSETS)

setup: .venv/.complete $(ASSETS)/.complete ## Make .venv with the five packages and the tools, and fetch what browsers load, as locked

.tools/.uv-$(UV_VERSION):
	@$(PYTHON3) -c 'import ensurepip, venv' 2>/dev/null || { apt-get update -qq && apt-get install -y -qq python3-venv; } \
		|| { echo "Python's venv is missing. Install python3-venv (Debian) and try again" >&2; exit 1; }
	$(PYTHON3) -m venv .tools && .tools/bin/python -m pip install --quiet uv==$(UV_VERSION) && touch $@

.venv/.complete: .tools/.uv-$(UV_VERSION) requirements/dev.txt $(MEMBERS:%=%/pyproject.toml)
	@echo "installing requirements/dev.txt into .venv (torch alone has some gigabytes)"
	$(UV) venv --quiet --allow-existing --python $(PYTHON3) .venv
	$(UV) pip sync --quiet --require-hashes --compile-bytecode --python .venv requirements/dev.txt
	$(UV) pip install --quiet --no-deps --python .venv $(MEMBERS:%=-e %)
	touch $@

# npm reads where packages come from in the settings of the machine. The lock has a hash of each, and no address.
assets: $(ASSETS)/.complete ## Fetch what browsers load into the web page's package, as locked; and axe-core for its tests

$(ASSETS)/.complete: ui/package.json ui/package-lock.json
	@command -v npm >/dev/null || { apt-get update -qq && apt-get install -y -qq npm; } \
		|| { echo "npm is missing. Install it and try again" >&2; exit 1; }
	cd ui && npm ci --include=dev --ignore-scripts --no-audit --no-fund --silent
	mkdir -p $(ASSETS)
	cd ui/node_modules && cp htmx.org/dist/htmx.min.js htmx-ext-sse/dist/sse.min.js uplot/dist/uPlot.iife.min.js uplot/dist/uPlot.min.css \
		$(CURDIR)/$(ASSETS)/
	touch $@

LOCK := $(UV) pip compile --quiet --overrides requirements/overrides.txt --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --no-emit-package finetune-api --no-emit-package finetune-cli
lock: .tools/.uv-$(UV_VERSION) ## Resolve the four lock files again (UPGRADE=1: to the newest allowed versions)
	$(LOCK) $(if $(UPGRADE),--upgrade) -o requirements/dev.txt requirements/dev.in $(MEMBERS:%=%/pyproject.toml)
	$(LOCK) -c requirements/dev.txt -o requirements/operator.txt operator/pyproject.toml crds/pyproject.toml
	$(LOCK) -c requirements/dev.txt -o requirements/trainer.txt trainer_image/pyproject.toml crds/pyproject.toml
	$(LOCK) -c requirements/dev.txt -o requirements/ui.txt ui/pyproject.toml cli/pyproject.toml crds/pyproject.toml

help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
