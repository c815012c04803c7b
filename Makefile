# Everything a person or CI does with this repository. `make help` lists it.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
.DELETE_ON_ERROR:

VENV := $(shell scripts/venv-path.sh)
BIN := $(VENV)/bin
PYTEST_JOBS ?= 2
PYTEST_ARGS ?=
PACKAGES := tasks workflows kubectl_probe lab master agent tunnel
CODE := $(PACKAGES) tests scripts bench
# See scripts/make-venv.sh; harmless where the tree cannot be written.
COMPILE := $(BIN)/python -m compileall -q $(PACKAGES) >/dev/null 2>&1 || true

.PHONY: help
help: ## list these targets
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: system
system: ## install the system packages that demo, lab and tests use (as root; else say which)
	@scripts/install-system.sh

$(BIN)/.run-stamp: requirements/run.lock pyproject.toml scripts/make-venv.sh
	@scripts/make-venv.sh $(VENV) run
	@touch $@

$(BIN)/.dev-stamp: requirements/dev.lock pyproject.toml scripts/make-venv.sh
	@scripts/make-venv.sh $(VENV) dev
	@touch $(BIN)/.run-stamp $@

.PHONY: venv venv-dev
venv: $(BIN)/.run-stamp ## make the Python environment with what the program needs
venv-dev: $(BIN)/.dev-stamp ## the same with what tests and checks need too

.PHONY: demo
demo: system $(BIN)/.run-stamp ## build a broken cluster (or take a recorded one) and diagnose it
	@$(COMPILE)
	@$(BIN)/kubectl-probe demo

.PHONY: lab
lab: system $(BIN)/.run-stamp ## bring a lab cluster up and say how to use it
	@$(BIN)/kubectl-probe lab up flannel-vxlan
	@$(BIN)/kubectl-probe lab status

.PHONY: test
test: system $(BIN)/.dev-stamp ## run all tests
	@$(COMPILE)
	@$(BIN)/python -m pytest -n $(PYTEST_JOBS) --dist loadscope $(PYTEST_ARGS)

.PHONY: check
check: $(BIN)/.dev-stamp ## format, lint, types, import contracts, generated files
	@$(BIN)/ruff format --check --quiet $(CODE) || { echo "not formatted; run 'make format'"; exit 1; }
	@$(BIN)/ruff check --quiet $(CODE)
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python scripts/generate.py --check

.PHONY: format
format: $(BIN)/.dev-stamp ## format the code and mend what ruff can mend
	@$(BIN)/ruff check --quiet --fix-only $(CODE)
	@$(BIN)/ruff format --quiet $(CODE)

.PHONY: gen
gen: $(BIN)/.dev-stamp ## write the generated files again (docs/codes, JSON Schema, the demo's snapshot)
	@$(BIN)/python scripts/generate.py

.PHONY: lock
lock: $(BIN)/.dev-stamp ## pin the dependencies again (LOCK_ARGS=--upgrade for newer versions)
	@PATH="$(BIN):$$PATH" scripts/lock.sh $(LOCK_ARGS)

N ?= 1000
SEED ?=
ONLY ?=
.PHONY: fuzz-planted
fuzz-planted: system $(BIN)/.dev-stamp ## plant errors in the simulator; the campaign must find each (long, as root)
	@FUZZ_PLANTED=1 $(BIN)/python -m pytest tests/kernel/fuzz -k planted

.PHONY: fuzz-kernel
fuzz-kernel: system $(BIN)/.dev-stamp ## N random scenarios against the kernel (SEED=… ONLY=…); status 1 on a mismatch
	@$(BIN)/python -m tests.kernel.fuzz -n $(N) $(if $(SEED),--seed $(SEED)) $(if $(ONLY),--only $(ONLY))

.PHONY: fuzz-parsers
fuzz-parsers: $(BIN)/.dev-stamp ## N damaged texts for each reader of tools' output: a value or our error, nothing else
	@FUZZ_PARSERS=$(N) $(BIN)/python -m pytest tests/unit/parse/test_parse_fuzz.py -n $(PYTEST_JOBS) -q --hypothesis-seed=$(or $(SEED),random)

.PHONY: fuzz-uml-ipvs
fuzz-uml-ipvs: $(BIN)/.dev-stamp ## probe IPVS in user-mode Linux and compare (N=10 random cases, SEED=1; NAMED=1: the named ones, too)
	@$(BIN)/python -m tests.uml.ipvs.record --seed $(or $(SEED),1) --count $(or $(N),10) $(if $(NAMED),--named)

.PHONY: bench
bench: system $(BIN)/.dev-stamp ## measure; the last line holds the figures
	@$(BIN)/python -m bench

.PHONY: fuzz-uml
fuzz-uml: $(BIN)/.dev-stamp ## try tunnels, VLANs, macvlan, VRFs … in user-mode Linux against the simulator (WORLDS="ipip vrf")
	@$(BIN)/python -m tests.kernel.devices.uml $(WORLDS)

.PHONY: fuzz-wireguard
fuzz-wireguard: $(BIN)/.dev-stamp ## try wireguard under Debian's kernel in qemu against the simulator
	@$(BIN)/python -m tests.kernel.devices.qemu $(WORLDS)

.PHONY: clean
clean: ## remove .venv, caches and build results
	@rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .state
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
