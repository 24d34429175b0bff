# Everything here sets up what it needs: Debian packages (as root), .venv with the versions of requirements.lock.
#   make demo    an image converted, pulled lazily and run, beside overlayfs, in numbers (LINK= for no shaped link)
#   make bench   every measurement of docs/benchmarks.md, and that file; `make bench-mount` and its like one of them
#   make deb     the Debian package, in dist/
#   make test    lint and every tier of tests that this machine can run (CI=true: a missing tool is a failure)
#   make fuzz    hostile input, SECONDS for each of its readers
.PHONY: demo bench fuzz test day lint format unit system faults venv demo-packages packages containerds podmans image kernels upstream roots lock clean
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
LINK ?= 200mbit
STARTS ?= 500
SEED ?= 1
venv := .venv
stamp := $(venv)/.complete
python := $(venv)/bin/python
pytest := $(python) -m pytest

# every module of bench/ that is a measurement: bench/NAME.py is run by `make bench-NAME`
benches := $(filter-out __init__ observation report timing,$(basename $(notdir $(wildcard bench/*.py))))

demo: demo-packages
	@$(MAKE) -j2 venv image
	@PYTHONPATH=. $(python) demo/demo.py $(if $(LINK),--link $(LINK))

bench: $(addprefix bench-,$(benches))

bench-%: packages venv image
	@PYTHONPATH=. $(python) -m bench.$*

deb: demo-packages venv
	@$(python) -m package.deb

test: packages venv
	$(MAKE) lint
	$(MAKE) unit
	$(MAKE) system

lint: venv
	$(venv)/bin/ruff check .
	$(venv)/bin/ruff format --check .
	$(venv)/bin/mypy
	$(venv)/bin/mypy --explicit-package-bases bench demo tests/conftest.py package tests/support tests/system tests/vm tests/fuzz tests/package
	$(venv)/bin/lint-imports

format: venv
	$(venv)/bin/ruff check --fix .
	$(venv)/bin/ruff format .

# the tests that need nothing of the machine, in parallel
unit: venv
	$(pytest) -q -n 2 -m 'not root' tests

# the tests with real mounts, containerd and a registry: two files of them at a time, each with daemons and directories of its own
system: packages venv image containerds podmans kernels upstream
	$(pytest) -n 2 --dist loadfile -m root --durations=10 tests

# a registry that does everything wrong that one can, for so many starts of containers and full reads; part of `system` with few.
# Nearly all of the time is waited (10 s a start): LANES of them at once, each with a node, a registry and a seed of its own
LANES ?= 6
faults: packages venv
	@for lane in $$(seq $(LANES)); do \
	    FAULT_STARTS=$$((($(STARTS) + $(LANES) - 1) / $(LANES))) FAULT_SEED=$$(($(SEED) + lane - 1)) \
	    $(pytest) -q tests/system/test_fault_proxy.py & lanes="$$lanes $$!"; \
	done; status=0; for lane in $$lanes; do wait $$lane || status=1; done; exit $$status

# kill -9 of workers, daemon and both, ROUNDS times at random, under a load that checks every byte; no read may take 5 s
ROUNDS ?= 100
chaos: packages venv image
	CHAOS_ROUNDS=$(ROUNDS) CHAOS_HANG=5 $(pytest) -s tests/system/test_chaos.py

# three whole Debian root file systems, equal after build, mount and extract: some minutes, 3 GB, and the network
roots: packages venv upstream
	PUZZLEFS_ROOTS=1 $(pytest) --durations=10 tests/upstream/test_roots.py

# every reader of foreign bytes, guided by coverage, SECONDS each; what fails one is left in the current directory
SECONDS ?= 60
fuzz: packages venv
	@mkdir -p .tools/fuzz
	@for target in $$(ls tests/fuzz/corpus); do echo "$$target, $(SECONDS) s"; \
	    PYTHONPATH=. $(python) -m tests.fuzz.run $$target $(SECONDS) >.tools/fuzz/$$target.log 2>&1 \
	    || { tail -n 40 .tools/fuzz/$$target.log; exit 1; }; grep stat:: .tools/fuzz/$$target.log; done

# what building and the demonstration need; nothing that only tests and measurements need
demo-packages:
	@PYTHON=$(PYTHON) scripts/packages demo

# after those, since two of apt cannot run at once
packages: demo-packages
	@PYTHON=$(PYTHON) scripts/packages

# a day's use in a few minutes, with every release of containerd; STEPS of it each, the same for the same SEED
day: packages venv containerds
	@DAY_STEPS=$(or $(STEPS),300) DAY_SEED=$(or $(SEED),1) $(pytest) -q -s tests/system/test_day.py

# containerd of later Debian releases, for the tests of what clients do
containerds: packages
	@scripts/containerds

podmans: packages
	@scripts/podmans

image: demo-packages
	@$(PYTHON) -m tests.support.debian

# other kernels than this machine's, for the tests in a virtual machine
kernels: packages
	@scripts/kernels

# upstream's own program, to compare with, where Rust is there to build it
upstream: packages
	@$(PYTHON) -m tests.support.upstream

venv: $(stamp)

$(stamp): requirements.lock requirements-build.lock pyproject.toml setup.py $(wildcard proto/*.proto proto/*/*.proto proto/*/*/*.proto) | demo-packages
	@echo "making $(venv)"
	@rm -f $(stamp)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or later is needed, {sys.executable} is {sys.version}")'
	@test -x $(python) || $(PYTHON) -m venv $(venv)
	@$(python) -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary=:all: -r requirements-build.lock
	@$(python) -m pip install --quiet --disable-pip-version-check --require-hashes --no-build-isolation -r requirements.lock
	@$(python) -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@touch $(stamp)

# exact versions with hashes of everything that is installed, tests and builds included
lock:
	$(PYTHON) -m venv .tools/lock
	.tools/lock/bin/pip install --quiet --disable-pip-version-check uv
	.tools/lock/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	    --custom-compile-command "make lock" --extra test -o requirements.lock pyproject.toml
	.tools/lock/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	    --custom-compile-command "make lock" -c requirements.lock -o requirements-build.lock requirements-build.in

clean:
	rm -rf $(venv) .tools build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	rm -f snapshotter/api/*_pb2*.py snapshotter/api/*_pb2*.pyi
	find . -name __pycache__ -not -path './.git/*' -type d -prune -exec rm -rf {} +
