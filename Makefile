# The commands of README, CONTRIBUTING and CI. Nothing but Python 3.11 is needed; the Kafka tests need Java and Maven.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo setup test check lint types contracts quick bench faults soak lock clean

BIN := .venv/bin
ARGS ?=
PARALLEL := $(MAKE) --no-print-directory -k -j 2

help: ## Print this list
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 10

demo: ## Watch the whole system work, in one process (options: make demo ARGS="--events 20000 --seed 7 --json")
	@requirements/install runtime
	@$(BIN)/python -m app demo $(ARGS)

setup: ## Make .venv with everything for development
	@.ci/stage setup requirements/install dev

test: setup ## Everything, with a real Kafka and a real Redis; what CI runs
	@code=0; \
	$(PARALLEL) lint types contracts || code=$$?; \
	$(BIN)/pytest $(ARGS) || code=$$?; \
	exit $$code

check: setup ## The quick half for the inner loop
	@$(PARALLEL) quick types lint contracts

lint:
	@.ci/stage lint $(BIN)/ruff check --quiet .
	@.ci/stage format $(BIN)/ruff format --quiet --check .

types:
	@.ci/stage types $(BIN)/mypy --no-error-summary

contracts:
	@.ci/stage contracts $(BIN)/lint-imports --no-logo

quick:
	@.ci/stage tests $(BIN)/pytest -q -m "not kafka and not redis" --hypothesis-profile=quick \
	    tests/unit tests/property tests/architecture $(ARGS)

bench: setup ## Measure publishing, and event to decision (minutes; results in benchmarks/results)
	@$(BIN)/python -m benchmarks.produce $(ARGS)
	@$(BIN)/python -m benchmarks.e2e $(ARGS)

faults: setup ## Break a running system on purpose, and write RELIABILITY.md (90 minutes; again after a break: make faults ARGS=--resume)
	@code=0; \
	$(BIN)/python -m tests.faults $(ARGS) || code=$$?; \
	$(BIN)/python -m tests.faults --small --protocol classic --no-ablations $(ARGS) || code=$$?; \
	$(BIN)/python -m tests.faults --report || code=$$?; \
	exit $$code

soak: setup ## Half an hour of steady load: memory must be flat, and everything given back; then planted leaks
	@$(BIN)/python -m tests.faults.soak $(ARGS)
	@$(BIN)/python -m tests.faults.soak --ablations

lock: setup ## Pin the requirements again after pyproject.toml changed (newer versions: make lock ARGS=--upgrade)
	@for group in runtime dev; do \
	    $(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate --no-header $(ARGS) \
	        pyproject.toml $$([ $$group = dev ] && echo --group dev || true) -o requirements/$$group.txt; \
	done

clean: ## End local servers and remove everything that can be made again
	@if [ -x $(BIN)/python ]; then $(BIN)/python -m app local down --all; fi
	@rm -rf .venv .local .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
