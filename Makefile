# Every target can be repeated; what is there and current is left alone.
# `make help` lists them.

PREFIX ?= /opt/cloche
BIN ?= /usr/local/bin
VENV := .venv
PY := $(VENV)/bin/python
# Debian's python3, not one that happens to be first in PATH: users have this one.
SYSTEM_PYTHON ?= /usr/bin/python3
AGENT := agent/target/release/cloche-agent
CRATES := agent preload thaw fileserver
# $(call in_crates,COMMAND): cargo COMMAND in each of them, until one fails.
in_crates = for crate in $(CRATES); do (cd $$crate && "$$(../tools/cargo)" $(1)) || exit 1; done

# What `su` leaves out of root's PATH.
export PATH := $(PATH):/usr/local/sbin:/usr/local/bin:/usr/sbin:/sbin

# NAME/PROGRAM: not needed where the program is, from whichever package; NAME?: where there is one
# (see tools/packages).
RUN_PACKAGES := qemu-system-x86 iproute2 kmod zstd xz-utils python3 python3-venv
IMAGE_PACKAGES := busybox-static skopeo umoci erofs-utils golang-github-containers-common
BUILD_PACKAGES := ca-certificates gcc libc6-dev libseccomp-dev python3-dev
KERNEL_PACKAGES := make gcc binutils flex bison bc libelf-dev perl xz-utils kmod
# The docker command is in docker.io until Debian 12, and in docker-cli from 13 on. Netavark calls
# nft there, and iptables before.
DOCKER_PACKAGES := docker.io/dockerd docker-cli?/docker containerd/containerd runc/runc iptables
PODMAN_PACKAGES := podman conmon netavark aardvark-dns catatonit iptables nftables/nft
TEST_PACKAGES := $(DOCKER_PACKAGES) $(PODMAN_PACKAGES) procps systemd/systemctl cpio strace bzip2 lz4 qemu-utils/qemu-img e2fsprogs/mkfs.ext4 nftables/nft wireguard-tools/wg

# The order of prerequisites is the order of work: packages before the compiler they bring.
.NOTPARALLEL:

.PHONY: help
help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 16

.PHONY: demo
demo: install docker-deps ## set everything up, run a container in its own VM, then through Docker
	@tools/demo $(BIN)/cloche

.PHONY: install
install: root deps agent ## install cloche below PREFIX and its command into BIN, prepare the guest
	@echo "== installing cloche into $(PREFIX)"
	@tools/install $(SYSTEM_PYTHON) $(PREFIX) $(BIN)
	@echo "== preparing what VMs start from: cloche setup"
	@$(BIN)/cloche setup

.PHONY: uninstall
uninstall: ## take the installation out again (data in /var/lib/cloche stays)
	@if grep -qs '"$(BIN)/cloche"' /etc/docker/daemon.json; then $(BIN)/cloche uninstall docker; fi
	@if grep -qs '"$(BIN)/cloche"' /etc/containers/containers.conf.d/cloche.conf; then $(BIN)/cloche uninstall podman; fi
	rm -rf $(PREFIX) $(BIN)/cloche

.PHONY: root
root:
	@[ "$$(id -u)" = 0 ] || { echo "make: this needs root: packages are installed, VMs started" >&2; exit 1; }

.PHONY: deps
deps: ## install what cloche needs to run and to be built
	@echo "== packages that cloche needs to run and to be built"
	@tools/packages $(RUN_PACKAGES) $(IMAGE_PACKAGES) $(BUILD_PACKAGES)
	@tools/cargo --install

.PHONY: docker-deps
docker-deps:
	@echo "== Docker"
	@tools/packages $(DOCKER_PACKAGES)

.PHONY: agent
agent: ## build the guest agent, what QEMU needs beside (preload, thaw), and the file server
	@echo "== building the guest agent"
	@$(call in_crates,build --release --locked)
	@printf 'agent: %s bytes (limit 1048576)\n' "$$(stat -c %s $(AGENT))"
	@test "$$(stat -c %s $(AGENT))" -le 1048576

.PHONY: venv
venv: deps
	@echo "== the checkout's own environment: $(VENV)"
	@tools/venv $(SYSTEM_PYTHON) $(VENV)

.PHONY: test-deps
test-deps: root venv agent ## install what the tests need, prepare the guest
	@echo "== packages that the tests need"
	@tools/packages $(TEST_PACKAGES)
	@echo "== preparing what VMs start from: cloche setup"
	@$(VENV)/bin/cloche setup

.PHONY: lint
lint: venv ## ruff, mypy, import-linter, rustfmt, clippy
	@tools/cargo --install-lint
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(call in_crates,fmt --check)
	$(call in_crates,clippy --release --locked -- -D warnings)

.PHONY: check
check: lint cargo-test ## what a change must pass before anything else: lint, unit tests; no VM, a minute
	$(PY) -m pytest -q tests/unit

.PHONY: cargo-test
cargo-test:
	cd agent && "$$(../tools/cargo)" test --locked
	cd fileserver && "$$(../tools/cargo)" test --locked

.PHONY: test
test: test-deps lint cargo-test ## all tests: unit, host, VM, and engines against a real dockerd
	$(PY) -m pytest tests/unit tests/host tests/vm tests/engine

.PHONY: test-kvm
test-kvm: test-deps ## a core set of VM tests under real KVM, in an outer VM with emulated SVM
	$(PY) -m pytest tests/kvm

# The folder of its root, and what pytest is to do there. A root elsewhere survives a new checkout.
TRIXIE ?= $(CURDIR)/build/trixie
TRIXIE_TESTS ?= tests/unit tests/vm $(addprefix tests/engine/,test_run.py test_lifecycle.py \
	test_exec.py test_stdio.py test_network.py test_volumes.py podman/test_run.py \
	podman/test_lifecycle.py podman/test_network.py podman/test_pods.py)

.PHONY: test-trixie
test-trixie: root ## on Debian 13, in a root of its own: make install, unit and VM tests, a core of the engines'
	@tools/trixie $(TRIXIE) $(TRIXIE_TESTS)

.PHONY: test-kernel
test-kernel: test-deps ## compile cloche's own kernel (10 minutes of CPU), then run the VM tests in it
	@tools/packages $(KERNEL_PACKAGES)
	CLOCHE_DATA_ROOT=$(CURDIR)/build/own-kernel $(VENV)/bin/cloche kernel build
	CLOCHE_DATA_ROOT=$(CURDIR)/build/own-kernel $(PY) -m pytest tests/vm

.PHONY: bench
bench: test-deps ## start times and memory beside runc and runsc (3 minutes); writes docs/benchmarks.md
	tools/packages runsc
	$(PY) bench/start.py

# With words of its own: make bench-programs PROGRAMS='--only git --rounds 5' (then it writes nothing).
PROGRAMS ?=

.PHONY: bench-programs
bench-programs: test-deps ## what users run: Python, git, gcc, databases, fio … (15 minutes); its section there
	tools/packages runsc debootstrap debian-archive-keyring
	$(PY) bench/start.py programs $(PROGRAMS)

.PHONY: bench-kvm
bench-kvm: test-deps ## how often such programs leave a VM, counted under emulated KVM (long); its section there
	tools/packages debootstrap debian-archive-keyring
	$(PY) bench/start.py kvm
