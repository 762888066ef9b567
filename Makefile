# Two targets do everything on a Debian machine that has Go, make and root:
#
#     make demo    an upgrade and a failed one, under load, on a real systemd
#     make test    all checks and all tests, on systemd 252 and 257
#
# They install what they lack. Without root the system tests are left out.

.PHONY: help build demo test pure system check format vet cross bench fuzz soak picture tools images clean
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

GO ?= go
export CGO_ENABLED := 0

# CI may come without a home directory; Go needs one for its caches.
ifeq ($(HOME),)
export HOME := $(or $(shell getent passwd "$$(id -u)" | cut -d: -f6),$(CURDIR)/.home)
endif

# The version is linked in, so Go need not ask git for it. Where the checkout belongs to another user git refuses, and
# the build with it.
export GOFLAGS := $(GOFLAGS) -buildvcs=false
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null)
COMMIT := $(shell git rev-parse HEAD 2>/dev/null)
DATE := $(shell TZ=UTC git log -1 --date=format-local:%Y-%m-%dT%H:%M:%SZ --format=%cd 2>/dev/null)
CMD := github.com/zdt-dev/zdt/cmd
LINK := $(if $(VERSION),-X $(CMD).linkedVersion=$(VERSION) -X $(CMD).linkedCommit=$(COMMIT) -X $(CMD).linkedDate=$(DATE))

# How many packages with system tests run at the same time, and how many tests of each. What a guest costs is its boot,
# and package guest bounds those by itself.
SYSTEST_P ?= 2
SYSTEST_PARALLEL ?= 6
FUZZTIME ?= 10s
SOAK ?= 200

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build bin/zdt
	$(GO) build -trimpath -ldflags '-s -w $(LINK)' -o bin/zdt .

demo: tools-demo ## watch an upgrade and a rollback under load (needs root)
	@$(GO) build -o bin/demo ./internal/demo
	@bin/demo

picture: tools-demo ## render docs/upgrade.svg from a real upgrade (needs root)
	@$(GO) build -o bin/demo ./internal/demo
	@bin/demo -svg docs/upgrade.svg

test: ## all checks and all tests
	@$(MAKE) --no-print-directory tools
	@$(MAKE) --no-print-directory check
	@$(MAKE) --no-print-directory pure
	@$(MAKE) --no-print-directory system

# Everything but the system tests. -race needs a C compiler. A program with the race detector sleeps for a second before
# it exits unless told not to, and the tests of handoff and upgrade start hundreds. What takes longest begins first, here and
# below: the others run beside it.
pure: ## the tests that need no systemd, with the race detector
	@if .ci/tools has cc; then \
		echo "go test -race ./..."; \
		ZDT_SYSTEST=off CGO_ENABLED=1 GORACE=atexit_sleep_ms=0 $(GO) test -race -timeout 15m ./upgrade ./...; \
	else \
		echo "no C compiler: testing without the race detector"; \
		ZDT_SYSTEST=off $(GO) test -timeout 10m ./upgrade ./...; \
	fi

# Without -race and cgo: the test binaries also run inside guests, whose C library may be older than the host's.
system: ## the tests that boot systemd (need root)
	@if [[ $$(id -u) != 0 && $${ZDT_SYSTEST:-} != require ]]; then \
		echo "system tests skipped: booting systemd needs root (sudo make test)"; exit; \
	fi; \
	if [[ $$(id -u) = 0 ]]; then $(MAKE) --no-print-directory images; fi; \
	packages="./internal/systest $$(grep -rl --include='*_test.go' '"github.com/zdt-dev/zdt/internal/guest"' . | xargs dirname | sort -u | tr '\n' ' ')"; \
	echo "go test $$packages"; \
	$(GO) test -count=1 -timeout 20m -p $(SYSTEST_P) -parallel $(SYSTEST_PARALLEL) $$packages

check: format vet cross ## gofmt, go vet, other platforms

format:
	@bad=$$(gofmt -l .); if [[ $$bad ]]; then printf 'gofmt -w these:\n%s\n' "$$bad"; exit 1; fi

vet:
	$(GO) vet ./...

# zdt runs on Linux; the library has to build wherever its users develop.
cross:
	GOARCH=arm64 $(GO) build ./...
	GOOS=darwin $(GO) build ./handoff/...
	GOOS=windows $(GO) build ./handoff/...

bench: tools-demo ## the numbers of docs/performance.md (needs root)
	@$(GO) build -o bin/bench ./internal/bench
	@bin/bench

fuzz: ## every fuzz target for FUZZTIME (10s)
	@for package in $$($(GO) list ./...); do \
		for target in $$(ZDT_SYSTEST=off $(GO) test -list '^Fuzz' $$package | grep '^Fuzz' || true); do \
			echo "$$package $$target"; \
			ZDT_SYSTEST=off $(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$package; \
		done; \
	done

# One guest at a time, and nothing else on the machine: TestThousandsMoveAtOnce judges how long requests wait.
soak: tools-demo ## SOAK (200) upgrades in a row under load, 10,000 connections at once (needs root)
	@$(GO) build -o bin/demo ./internal/demo
	@bin/demo -soak $(SOAK)
	@ZDT_SYSTEST=require ZDT_SOAK=$(SOAK) $(GO) test -count=1 -timeout 2h -parallel 1 -v \
		-run '^Test(ConnectionsStay|UndoneGivesBack|ThousandsMoveAtOnce|WhatCannotMoveClosesPolitely)$$' ./internal/systest

tools: ## install what make test needs and this machine lacks
	@.ci/tools install test

tools-demo:
	@.ci/tools install demo

images: ## build the root file systems of the guests
	@$(GO) run ./internal/guest/image

clean: ## remove what was built here
	rm -rf bin
