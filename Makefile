# Every target sets up what it needs; `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PYTHONPATH := operator:tools
# Byte code is kept: the suites start hundreds of interpreters.
unexport PYTHONDONTWRITEBYTECODE
# A module is one worker's, with the servers that it starts.
MODULES := --dist loadfile --no-loadscope-reorder
PARALLEL := -n logical $(MODULES)

# What must be there before tests of programs that are built from source.
BUILT := programs

.DEFAULT_GOAL := help
.PHONY: help demo up down venv prerequisites lock crds bpf manifests profiles docs pictures site lint test test-unit test-gate test-api test-image test-kernel in-emulated-guest in-uml-guest test-cluster image release upgrade-check bench fuzz programs controlplane clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

demo: venv ## a real cluster, real pods, and every claim shown; with KUBECONFIG set, on that cluster
	$(BIN)/python -m demo

up: venv ## bring up the project's own cluster with pinwarden installed, and leave it running; NODES="uml uml qemu" for others than one "uml"
	$(BIN)/python -m cluster up $(NODES)

down: ## end it, leaving nothing behind
	$(BIN)/python -m cluster down

venv: $(VENV)/.installed ## the project's Python environment, from the hash-pinned lock

$(VENV)/.installed: requirements-dev.lock | prerequisites
	@echo "installing the Python environment and the Go toolchain into $(VENV), about a minute"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --require-hashes -r requirements-dev.lock
	@touch $@

prerequisites:
	@tools/prerequisites.sh $(PYTHON)

lock: venv ## resolve the dependencies anew
	$(BIN)/pip-compile $(LOCK) -o requirements.lock pyproject.toml
	$(BIN)/pip-compile $(LOCK) --extra dev --extra docs -c requirements.lock -o requirements-dev.lock pyproject.toml

LOCK := --quiet --upgrade --generate-hashes --strip-extras --allow-unsafe --no-annotate --no-header \
	--no-emit-find-links --no-emit-index-url --no-emit-trusted-host

crds: venv ## write crds/ anew from the models
	$(BIN)/python -m pinwarden crds --output-dir crds
	$(BIN)/python -m pinwarden crds --output-dir charts/pinwarden/crds

bpf: venv ## compile the BPF programs into the package, with Debian's clang
	$(BIN)/python -m cluster bpf

manifests: venv ## write manifests/ anew from the chart, for those without Helm
	$(BIN)/python tools/docs/chart.py manifests manifests

profiles: venv ## write the runtime's default seccomp rules anew from containerd's source
	cd $(RUNTIME) && CGO_ENABLED=0 GOFLAGS= GOWORK=off GOARCH=amd64 \
		$(CURDIR)/$(BIN)/go run -mod=readonly -trimpath ./defaultprofile >$(CURDIR)/$(RULES).new
	mv $(RULES).new $(RULES)

RUNTIME := tools/cluster/go/cluster
RULES := operator/pinwarden/node/seccomp/runtime_default.json

docs: venv ## write anew what is generated: docs/ semantics, reference, metrics, alerts, dashboards, and the chart's README and files
	$(BIN)/python tools/docs/semantics.py
	$(BIN)/python tools/docs/reference.py
	$(BIN)/python -m monitoring
	$(BIN)/python tools/docs/chart.py readme

pictures: programs ## draw the dashboards of docs/images anew, from a run of the test that makes every alert fire
	PINWARDEN_PICTURES=docs/images $(BIN)/pytest tests/api/test_monitoring.py

site: venv ## the documentation as a site in build/site; PINWARDEN_REPOSITORY is where links to other files lead
	$(BIN)/sphinx-build $(SITE) -d build/doctrees docs build/site

SITE := --builder html --nitpicky --fail-on-warning --keep-going --fresh-env --quiet

lint: venv ## format check, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --num-workers auto operator tools tests bench
	$(BIN)/lint-imports

test: lint test-unit programs ## every test; what waits runs beside what computes
	$(MAKE) --jobs=2 --keep-going --output-sync=target BUILT=venv test-kernel test-gate test-cluster test-api test-image

test-unit: venv ## pure core and edges, seconds
	$(BIN)/pytest $(PARALLEL) tests/unit

# A gate spends at most a quarter of a processor on one pod, so these tests wait more than they compute. None uses hypothesis.
test-gate: venv ## the seccomp gate on this machine's own kernel, as root
	$(BIN)/pytest -p no:hypothesispytest -n $$((2 * $$(nproc))) --dist worksteal tests/gate

# A worker for each processor, and one for each of the four modules that mostly wait.
test-api: $(BUILT) ## on a real API server
	$(BIN)/pytest -n $$(($$(nproc) + 4)) $(MODULES) tests/api

test-image: venv ## the release image, built twice and run in a root of its own, as root
	$(BIN)/pytest tests/image

test-kernel: bpf ## on real kernels in guests (Debian's, emulated, and user-mode Linux), as root with every capability
	$(MAKE) --output-sync=target in-emulated-guest in-uml-guest

KERNEL_TEST := env PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 $(BIN)/pytest -p no:cacheprovider tests/kernel

in-emulated-guest: bpf
	$(BIN)/python -m cluster guest --kind qemu --timeout 1800 -- $(KERNEL_TEST) -m emulated

in-uml-guest: venv
	$(BIN)/python -m cluster guest --kind uml --timeout 1800 -- $(KERNEL_TEST) -m "not emulated"

# Each worker has a cluster of its own, and mostly waits for it.
test-cluster: $(BUILT) ## on whole clusters with real nodes
	$(BIN)/pytest -n 3 $(MODULES) tests/cluster

image: venv ## the image of operator and agent, as an OCI archive in build/
	$(BIN)/python -m release image

release: venv ## every file of a release of the last commit, in dist/; publishes nothing; VERSION=X.Y.Z is checked
	$(BIN)/python -m release make $(if $(VERSION),--version $(VERSION))

upgrade-check: venv ## upgrade a running cluster from another commit to this tree and back, and check that nothing is lost; FROM=COMMIT
	$(BIN)/python -m release upgrade-check $(or $(FROM),HEAD~1)

bench: venv ## every figure of bench/README.md, about an hour
	$(BIN)/python bench/plan_scale.py
	$(BIN)/python bench/agent_scan.py
	$(BIN)/python bench/borrow_cost.py
	$(BIN)/python bench/apply_latency.py
	$(BIN)/python bench/gate_latency.py
	$(BIN)/python -m cluster guest -- $(BIN)/python bench/overshoot.py
	$(BIN)/python bench/nri_plugin.py
	$(BIN)/python bench/nri_start.py
	$(BIN)/python bench/operator_scale.py
	$(BIN)/python bench/cluster_nodes.py

SEED := $(shell date +%s)

fuzz: venv ## 10,000 objects to the operator and 10,000 inputs to the node's processes, about an hour; SEED=N makes a run again
	$(BIN)/python bench/fuzz.py operator --seed $(SEED)
	$(BIN)/python -m cluster guest --kind uml --timeout 7200 -- $(BIN)/python bench/fuzz.py node --seed $(SEED)

programs: venv ## what clusters and tests are made of, built from source into the cache; minutes, once
	$(BIN)/python -m cluster build

controlplane: venv ## a real API server on loopback, until Ctrl-C
	$(BIN)/python -m cluster controlplane

clean: ## remove the environment and caches of this checkout (not the shared build cache)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build
