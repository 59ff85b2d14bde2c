# The ways to build, try and check the project; `make` alone lists them.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
BUILD_INPUTS := pyproject.toml setup.py $(shell find csrc -type f)
C_FILES := $(wildcard csrc/*/*.[ch] tests/core/*.[ch])
# What clang-tidy can read here: another platform's files need its headers.
TIDY_FILES := $(filter-out %_macos.c %_windows.c,$(filter csrc/%.c,$(C_FILES)))
TIDY_FLAGS = -std=c11 -D_GNU_SOURCE -DPy_LIMITED_API=0x030A0000 -Icsrc \
	-isystem $(shell $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("include"))')

.DELETE_ON_ERROR:
.PHONY: help demo test core-test model lint lint-style lint-types lint-c format bench check-all clean

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/installed ## Build, install into .venv, run examples/demo.py
	$(BIN)/python examples/demo.py

test: $(VENV)/installed-for-tests ## Build and run all tests; ARGS='-k name' goes to pytest
	@$(MAKE) --no-print-directory -C tests/core; core=$$?; \
	$(BIN)/python -m pytest -n auto --maxprocesses 8 $(ARGS) && exit $$core

core-test: ## Run the C core's tests under the address, undefined-behaviour and thread sanitizers
	@$(MAKE) --no-print-directory -C tests/core SANITIZE=1
	@$(MAKE) --no-print-directory -C tests/core SANITIZE=thread

model: ## Check the ledger's protocol, and that broken variants of it are found out (spin)
	@$(MAKE) --no-print-directory -C tests/model

lint: lint-style lint-types lint-c ## Check style, types and stubs; static analysis of the C sources

lint-style: $(VENV)/installed-for-lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run -Werror $(C_FILES)

lint-types: $(VENV)/installed-for-lint
	$(BIN)/mypy
	$(BIN)/mypy --allow-subclassing-any --no-warn-return-any tests
	$(BIN)/python -m mypy.stubtest --concise portmanager._native

lint-c: $(VENV)/installed-for-lint
	@! grep -n 'Python\.h' csrc/core/* || { echo 'csrc/core knows no Python'; exit 1; }
	printf '%s\n' $(TIDY_FILES) | \
		xargs -P "$$(nproc)" -I FILE $(BIN)/clang-tidy --quiet FILE -- $(TIDY_FLAGS)

format: $(VENV)/installed-for-lint ## Lay the sources out the way that lint wants them
	$(BIN)/ruff check --fix --exit-zero --quiet
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(C_FILES)

bench: $(VENV)/installed ## Run the benchmarks: a table for the README
	$(BIN)/python benchmarks/run.py

check-all: ## Everything, on every CPython there is; takes long, needs root and network
	$(PYTHON) tools/check_all.py

clean: ## Remove all that was built, and .venv
	rm -rf build dist *.egg-info portmanager/_native*.so $(VENV)
	rm -rf .pytest_cache .hypothesis .mypy_cache .ruff_cache .coverage*
	find portmanager backend tests examples benchmarks tools -name __pycache__ -prune \
		-exec rm -rf {} +

# The environment. A file in it stands for each thing installed there, so that only changes are built.

# What the machine lacks, in one line, before anything fails in its own words.
lacking = $(shell CC='$(if $(filter default,$(origin CC)),,$(CC))' $(PYTHON) tools/preflight.py 2>/dev/null \
	|| echo '$(PYTHON) is missing or too old: install CPython 3.10 or newer (Debian package python3)')

# The extension is built in place, portmanager/_native*.so, so that the checkout's files run as they are.
# setuptools warns at length that this mode will go one day.
install = @echo 'building portmanager$(1) into $(VENV)' && \
	PYTHONWARNINGS=ignore:::setuptools.command.editable_wheel \
	$(BIN)/python -m pip install --quiet --editable '.$(1)' --config-settings editable_mode=compat

# The extension was removed: it is built again.
ifeq ($(wildcard portmanager/_native*.so),)
.PHONY: $(VENV)/installed $(VENV)/installed-for-tests
endif

# Made with another Python than is wanted now: made anew.
ifneq ($(PYTHON),$(file <$(VENV)/made-with))
.PHONY: $(VENV)/made-with
endif

$(VENV)/made-with:
	@: $(if $(lacking),$(error $(lacking)))
	@echo 'setting up $(VENV)'
	@$(PYTHON) -m venv $(if $(wildcard $@),--clear) $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@printf '%s' '$(PYTHON)' >$@

$(VENV)/installed: $(VENV)/made-with $(BUILD_INPUTS)
	@: $(if $(lacking),$(error $(lacking)))
	$(call install)
	@touch $@

$(VENV)/installed-for-tests: $(VENV)/made-with $(BUILD_INPUTS)
	@: $(if $(lacking),$(error $(lacking)))
	$(call install,[test])
	@touch $(VENV)/installed $@

$(VENV)/installed-for-lint: $(VENV)/installed-for-tests requirements-lint.txt
	@$(BIN)/python -m pip install --quiet --requirement requirements-lint.txt
	@touch $@
