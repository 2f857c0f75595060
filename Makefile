# Every target sets up what it needs; `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PYTHONPATH := operator:tools
# A module is one worker's, with the servers that it starts.
PARALLEL := -n logical --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help demo up down venv lock crds profiles docs lint test test-unit test-gate test-api test-kernel test-cluster bench programs controlplane clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

demo: venv ## a real cluster, real pods, and every claim shown; with KUBECONFIG set, on that cluster
	$(BIN)/python -m demo

up: venv ## bring up the project's own cluster with pinwarden installed, and leave it running
	$(BIN)/python -m cluster up

down: ## end it, leaving nothing behind
	$(BIN)/python -m cluster down

venv: $(VENV)/.installed ## the project's Python environment, from the hash-pinned lock

$(VENV)/.installed: requirements-dev.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements-dev.lock
	touch $@

lock: venv ## resolve the dependencies anew
	$(BIN)/pip-compile $(LOCK) -o requirements.lock pyproject.toml
	$(BIN)/pip-compile $(LOCK) --extra dev -c requirements.lock -o requirements-dev.lock pyproject.toml

LOCK := --quiet --upgrade --generate-hashes --strip-extras --allow-unsafe --no-annotate --no-header \
	--no-emit-find-links --no-emit-index-url --no-emit-trusted-host

crds: venv ## write crds/ anew from the models
	$(BIN)/python -m pinwarden crds --output-dir crds

profiles: ## write the runtime's default seccomp rules anew from containerd's source
	cd $(RUNTIME) && CGO_ENABLED=0 GOFLAGS= GOWORK=off GOARCH=amd64 \
		go run -mod=readonly -trimpath ./defaultprofile >$(CURDIR)/$(RULES).new
	mv $(RULES).new $(RULES)

RUNTIME := tools/cluster/go/runtime
RULES := operator/pinwarden/agent/gates/seccomp/runtime_default.json

docs: venv ## write docs/semantics.md anew from the marks of the tests
	$(BIN)/python tools/semantics.py

lint: venv ## format check, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy operator tools tests bench
	$(BIN)/lint-imports

test: lint test-unit test-gate test-api test-kernel test-cluster ## every test

test-unit: venv ## pure core and edges, seconds
	$(BIN)/pytest $(PARALLEL) tests/unit

test-gate: venv ## the seccomp gate on this machine's own kernel, as root
	$(BIN)/pytest $(PARALLEL) tests/gate

test-api: programs ## on a real API server
	$(BIN)/pytest $(PARALLEL) tests/api

test-kernel: venv ## in a guest with a real kernel, as root with every capability
	$(BIN)/python -m cluster guest --timeout 1800 -- env PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 $(BIN)/pytest -p no:cacheprovider tests/kernel

test-cluster: venv ## on a whole cluster with a real node
	$(BIN)/pytest tests/cluster

bench: venv ## every figure of bench/README.md, about half an hour
	$(BIN)/python bench/plan_scale.py
	$(BIN)/python bench/agent_scan.py
	$(BIN)/python bench/borrow_cost.py
	$(BIN)/python bench/apply_latency.py
	$(BIN)/python bench/gate_latency.py
	$(BIN)/python -m cluster guest -- $(BIN)/python bench/overshoot.py
	$(BIN)/python bench/operator_scale.py

programs: venv ## the programs of Kubernetes, built from source into the cache; minutes, once
	$(BIN)/python -m cluster build

controlplane: venv ## a real API server on loopback, until Ctrl-C
	$(BIN)/python -m cluster controlplane

clean: ## remove the environment and caches of this checkout (not the shared build cache)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build
