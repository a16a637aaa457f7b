# Everything a fresh machine with Python 3.11 to 3.13 and make needs. Each target installs what it uses first.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && command -v $$p && break; done)
VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
WORKERS ?= 2# processes that run the tests, a file at a time each
export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: help install demo test test-slow lint format docs bench lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(INSTALLED): requirements.lock
	@test -n "$(PYTHON)" || { echo "error: Expected Python 3.11, 3.12 or 3.13 on the PATH (or PYTHON=...). Received: none"; exit 1; }
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --no-deps --require-hashes -r requirements.lock
	@touch $@

install: $(INSTALLED) ## create .venv from requirements.lock

demo: $(INSTALLED) ## train, export, serve and ask, in under three minutes
	$(RUN) -m serving.demo

test: $(INSTALLED) ## all tests but the slow ones
	$(RUN) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-slow: $(INSTALLED) ## the learning runs: promised accuracies over three seeds
	$(RUN) -m pytest -m slow

lint: $(INSTALLED) ## ruff and mypy
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: $(INSTALLED)
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

docs: $(INSTALLED) ## the documentation site, in site/
	$(RUN) -m mkdocs build --strict

bench: $(INSTALLED) ## benchmarks: ratios against peers in the same run, written to benchmarks/results/
	$(RUN) -m benchmarks.training
	$(RUN) -m benchmarks.input
	$(RUN) -m benchmarks.serving
	$(RUN) -m benchmarks.recurrent
	$(RUN) -m benchmarks.transformer
	$(RUN) -m benchmarks.attention
	$(RUN) -m benchmarks.language
	$(RUN) -m benchmarks.gpt2_gpu --size tiny --steps 2

lock: ## resolve requirements.lock anew (needs uv)
	uv pip compile pyproject.toml --extra test --extra docs --group rl --universal --generate-hashes --no-header --upgrade -q -o requirements.lock

clean: ## remove what the targets made, runs and exports excepted
	rm -rf $(VENV) site build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
