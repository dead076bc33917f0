# Targets need Go and, for tests and demo, root. Only generate and verify need clang.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CLANG ?= clang-16
LLVM_STRIP ?= llvm-strip-16
CLANG_FORMAT ?= clang-format-16
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null)

MODULE := github.com/xdp-cni/xdp-cni
GOBUILD := CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X $(MODULE)/internal/release.stamp=xdp-cni-release:$(VERSION):"
# asm/types.h is where Debian keeps what differs by architecture
BPF_CFLAGS := -isystem /usr/include/$(shell uname -m)-linux-gnu
C_FILES := $(wildcard bpf/*.c bpf/lib/*.h bpf/samples/*.c bpf/samples/lib/*.h plugin/programs/testdata/*.c)

# where test-runtimes keeps what it fetches
RUNTIMES ?= /var/cache/xdp-cni-runtimes

.PHONY: help generate verify build test test-kernels test-runtimes bench demo clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' Makefile | expand -t 18

generate: ## compile the BPF programs and generate their Go (clang 16 or later, libbpf-dev)
	BPF2GO_CC=$(CLANG) BPF2GO_STRIP=$(LLVM_STRIP) BPF2GO_CFLAGS="$(BPF_CFLAGS)" go generate ./bpf ./bpf/samples
	plugin/programs/testdata/compile $(CLANG) $(LLVM_STRIP) $(BPF_CFLAGS)

verify: generate ## check that generated files are up to date, and formats and lints
	git diff --exit-code -- bpf plugin/programs/testdata || { echo "generated files (git diff, above) are not up to date: commit what make generate made" >&2; exit 1; }
	$(CLANG_FORMAT) --dry-run --Werror $(C_FILES)
	@files=$$(gofmt -l .); [ -z "$$files" ] || { echo "gofmt: $$files" >&2; exit 1; }
	go mod tidy -diff
	go vet ./...
	go tool staticcheck ./...
	cd tests/manifests && go mod tidy -diff && go vet ./...
	staticcheck=$$(go tool -n staticcheck) && cd tests/runtimes && go mod tidy -diff && go vet ./... && "$$staticcheck" ./...

build: ## build the static binaries into bin/
	$(GOBUILD) -o bin/xdp ./plugin
	$(GOBUILD) -o bin/xdp-ipam ./ipam
	$(GOBUILD) -o bin/xdpctl ./cmd/xdpctl

test: build ## build and run every test (root)
	go test -timeout 30m -count=1 $(GOTESTFLAGS) ./...
	cd tests/manifests && go test -count=1 $(GOTESTFLAGS) ./...

KERNELS ?= /var/cache/kernels

test-kernels: ## run the tests that need root on other kernels, in VMs: ONLY="5.10 newest" KERNELSFLAGS=-short (root, QEMU)
	tests/kernels/fetch.sh $(KERNELS) $(ONLY)
	go run ./tests/kernels -dir $(KERNELS) -only "$(ONLY)" $(KERNELSFLAGS)

test-runtimes: build ## the plugins under containerd, podman and cnitool (root; fetches Debian's packages once; see docs/runtimes.md)
	tests/runtimes/fetch $(RUNTIMES) containerd-1.6 containerd-1.7 containerd-2.1 podman-4.3 systemd-252
	cd tests/runtimes && XDP_CNI_RUNTIMES=$(abspath $(RUNTIMES)) go test -timeout 60m -count=1 $(GOTESTFLAGS) ./...

bench: build ## measure, and print tables of ratios (root; bounded, about 40 minutes)
	go run ./tests/bench
	go run ./tests/bench/ipam

demo: build ## two pods on a bridge, traffic, statistics, and nothing left (root)
	go run ./tests/demo

clean: ## remove what build made
	rm -rf bin
