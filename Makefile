# Every command of the project. `make help` lists them.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# One release tree serves the images, the benchmark and the simulator: static programs run in an empty image.
TARGET := x86_64-unknown-linux-gnu
RELEASE := RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --locked --target $(TARGET)
BIN := target/$(TARGET)/release
IMAGES := target/images
CACHE := $(or $(HOLDFAST_CACHE),$(HOME)/.cache/holdfast)

CLUSTER_TOOL := tests/cluster/cluster
E2E := target/debug/holdfast-e2e
E2E_IMAGES = --broker-image "$$(cat $(IMAGES)/broker.name)" --operator-image "$$(cat $(IMAGES)/operator.name)"
SEEDS ?= 200
CASE ?=
FAULT ?=
RUNS ?= 1
STRIKES ?= 20

# The crates whose tests start neither processes nor clusters.
PURE := holdfast-wire holdfast-session holdfast-queue holdfast-journal holdfast-replica holdfast-engine holdfast-sim holdfast-e2e holdfast-drill

.PHONY: help
help: ## list the commands
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

.PHONY: install
install: ## install what the project needs on a new machine (Debian, as root)
	.ci/install

.PHONY: check
check: ## format, lints, and every test that needs no process and no cluster
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo test --locked $(PURE:%=-p %)
	cargo test --locked -p holdfast -p holdfast-csi

.PHONY: test
test: install check sim test-processes test-chart test-csi ## everything that CI runs
	$(MAKE) e2e STRIKES=3

.PHONY: test-processes
test-processes: ## real broker processes: kills, bad input, lost and locked data directories
	cargo test --locked -p holdfast-node

.PHONY: test-chart
test-chart: ## helm lint, and charts/install.yaml against what the chart renders
	tests/cluster/build helm
	$(CACHE)/bin/helm lint charts/holdfast --strict
	HOLDFAST_REQUIRE_HELM=1 cargo test --locked -p holdfast --test crds

.PHONY: test-csi
test-csi: build ## the test storage's driver against csi-sanity (as root)
	tests/csi/sanity $(BIN)/holdfast-csi

.PHONY: sim
sim: ## the simulator: SEEDS=n seeds, or one with SEED=x; PROFILE=small, mixed, rot, replicas, membership or policies, or FAULT=n of the fault list
	$(RELEASE) -p holdfast-sim
	$(BIN)/holdfast-sim --seeds $(SEEDS) $(if $(SEED),--seed $(SEED)) $(if $(PROFILE),--profile $(PROFILE)) $(if $(FAULT),--fault $(FAULT))

.PHONY: sim-faults
sim-faults: ## every fault of the list that can be simulated, SEEDS=n runs each
	$(RELEASE) -p holdfast-sim
	$(BIN)/holdfast-sim --faults --seeds $(SEEDS)

.PHONY: mutants
mutants: ## the simulator's test of itself: within how many seeds each planted bug is found, 200 at most
	$(RELEASE) -p holdfast-sim --features mutants
	$(BIN)/holdfast-sim --mutants --seeds 200

.PHONY: build
build: ## the release programs, and the test storage's driver, which shares what the operator is built from
	$(RELEASE) -p holdfast-node -p holdfast -p holdfast-csi

# A tag that changes with the program: a cluster that is up already must not go on with the one of before.
.PHONY: image
image: build ## the broker's and the operator's images, in target/images; TAG=… names them
	mkdir -p $(IMAGES)
	for name in broker operator; do \
	  tag="$(or $(TAG),dev-$$(sha256sum $(BIN)/holdfast-$$name | cut -c1-12))"; \
	  tests/cluster/image $(BIN)/holdfast-$$name -o $(IMAGES)/$$name.tar -t holdfast/$$name:$$tag; \
	  echo holdfast/$$name:$$tag >$(IMAGES)/$$name.name; \
	done

.PHONY: crds
crds: ## write crds/ anew from the Rust types
	cargo run --locked -p holdfast --bin holdfast-operator -- crds --output crds --chart charts/holdfast
	HOLDFAST_REGENERATE=1 cargo test --locked -p holdfast --test crds

.PHONY: cluster-up
cluster-up: build ## start the local three-zone Kubernetes
	tests/cluster/build
	$(CLUSTER_TOOL) up

.PHONY: cluster-down
cluster-down: ## end it and remove everything it left
	$(CLUSTER_TOOL) down

.PHONY: cluster-images
cluster-images: cluster-up image
	$(CLUSTER_TOOL) load-image $(IMAGES)/broker.tar
	$(CLUSTER_TOOL) load-image $(IMAGES)/operator.tar

.PHONY: e2e
e2e: cluster-images ## the end-to-end cases on the local cluster: all, or CASE=name
	cargo build --locked -p holdfast-e2e
	$(CLUSTER_TOOL) exec -- $(E2E) $(E2E_IMAGES) cases --strikes $(STRIKES) $(CASE)

.PHONY: demo
ifeq ($(CLUSTER),existing)
demo: ## the main job on a cluster of its own (CLUSTER=existing IMAGE=… OPERATOR_IMAGE=… for yours)
	@test -n "$(IMAGE)" -a -n "$(OPERATOR_IMAGE)" || { echo "CLUSTER=existing needs IMAGE= and OPERATOR_IMAGE=, a broker and an operator image that your cluster can pull (make image builds both)"; exit 2; }
	cargo build --locked -p holdfast-e2e
	$(E2E) --broker-image "$(IMAGE)" --operator-image "$(OPERATOR_IMAGE)" demo --existing
else
demo: install cluster-images
	cargo build --locked -p holdfast-e2e
	$(CLUSTER_TOOL) exec -- $(E2E) $(E2E_IMAGES) demo
endif

.PHONY: drill
drill: ## the fault list against real processes (as root): all, or FAULT=n, RUNS=k times each; FAULT=list lists them
	$(RELEASE) -p holdfast-node -p holdfast-drill
	$(BIN)/holdfast-drill --broker $(BIN)/holdfast-broker --runs $(RUNS) $(if $(filter list,$(FAULT)),--list,$(FAULT))

.PHONY: bench
bench: build ## three broker processes under PerfTest and a load of our own: rates, latencies, cost of a message
	$(RELEASE) -p holdfast-node --example load
	.config/bench $(BIN)/holdfast-broker $(BIN)/examples/load

.PHONY: bench-queues
bench-queues: build ## 10,000 idle replicated queues: declares a second, memory, CPU, restarts
	cargo build --locked -p holdfast-node --example many_queues
	.config/bench-queues target/debug/examples/many_queues $(BIN)/holdfast-broker

.PHONY: bench-restart
bench-restart: ## seconds until a killed member with ten million queued messages serves again
	$(RELEASE) -p holdfast-engine --example restart
	.config/bench-restart $(BIN)/examples/restart

.PHONY: bench-memory
bench-memory: ## memory for each queued message, at ten million ready and unacknowledged
	$(RELEASE) -p holdfast-engine --example queue_memory
	.config/bench-memory $(BIN)/examples/queue_memory
