# What can be done with this checkout. `make help` lists it.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
GO := $(shell command -v go || echo /usr/local/go/bin/go)
GOTEST := $(GO) test -shuffle=on -timeout 20m

# Packages whose tests are about goroutines run with the race detector, and
# only with it, so that no slow suite runs twice.
RACE := ./client ./internal/compute ./internal/follower ./internal/httpapi \
	./internal/operation ./internal/pgproxy ./internal/replication ./internal/source
# These start whole servers, each with several Postgres: one after the other.
E2E := ./test/e2e

# `make soak` lasts so long, and until so many branches are made; a failure prints
# the seed it ran with.
SOAK_TIME ?= 30m
SOAK_CREATES ?= 200
SOAK_SEED ?= $(shell date +%s)

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: build
build: ## bin/pgbough, one static binary
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/pgbough ./cmd/pgbough

.PHONY: setup
setup: ## install what running and testing need (root, Debian or Ubuntu)
	scripts/setup

.PHONY: demo
demo: ## a production under load, a server, a branch of it; ends by saying how to go on
	scripts/demo

.PHONY: test
test: ## everything: set-up, lint, unit and real Postgres tests, race, end to end
	scripts/setup --tools
	scripts/work-tree save
	$(MAKE) --no-print-directory lint build test-race test-plain test-e2e
	scripts/work-tree check

.PHONY: test-plain
test-plain: ## the tests of all other packages
	$(GOTEST) -p 2 $$($(GO) list ./... | grep -vxF -f <($(GO) list $(RACE) $(E2E)))

.PHONY: test-race
test-race: ## the packages that gain from it, with the race detector
	CGO_ENABLED=1 $(GOTEST) -race -p 2 $(RACE)

.PHONY: test-e2e
test-e2e: ## the binary against a real production, as users see it
	$(GO) test -shuffle=on -timeout 60m -p 1 -count=1 $(E2E)

.PHONY: lint
lint: ## gofumpt, go vet, golangci-lint, the layer test, go.mod
	scripts/setup --demo --tools
	scripts/lint

.PHONY: fmt
fmt: ## format all Go files as lint wants them
	scripts/setup --demo --tools
	.tools/bin/golangci-lint fmt ./...

.PHONY: bench
bench: build ## the benchmark table with its controls (long): make bench BENCH="-quick"
	$(GO) run ./bench $(BENCH)

.PHONY: soak
soak: ## long randomized runs: make soak SOAK_TIME=2h SOAK_SEED=1
	PGBOUGH_SOAK_TIME=$(SOAK_TIME) PGBOUGH_SOAK_CREATES=$(SOAK_CREATES) PGBOUGH_SOAK_SEED=$(SOAK_SEED) \
		$(GO) test -count=1 -p 1 -timeout 0 -run '^TestSoak' -v $(E2E)

.PHONY: clean
clean: ## remove what was built (.tools keeps the linters; scripts/demo --stop removes the demo)
	rm -rf bin
