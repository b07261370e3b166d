# The commands of README, CONTRIBUTING and CI. Nothing but Python 3.11 is needed; the tests on Kafka and Flink need Java and Maven.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo setup setup-flink test tests-half tests-other-half check lint types contracts quick bench parity faults soak lock clean

BIN := .venv/bin
FLINK ?=
export FLINK
ARGS ?=
PARALLEL := $(MAKE) --no-print-directory -k -j 2

help: ## Print this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 13

demo: ## Watch the whole system work, in one process (options: make demo ARGS="--events 20000 --seed 7 --json")
	@requirements/install runtime
	@$(BIN)/python -m app demo $(ARGS)

setup: ## Make .venv with everything for development
	@.ci/stage setup requirements/install dev

setup-flink: ## Make .venv-flink, for the local Flink: 850 MB, Python 3.11 or 3.12 (the older release: make setup-flink FLINK=2.2)
	@.ci/stage setup-flink requirements/install flink$(FLINK:%=-%)

test: setup ## Everything, with a real Kafka, Redis and Flink; what CI runs
	@$(MAKE) --no-print-directory setup-flink || true  # without it their tests are skipped, in CI they fail
	@code=0; \
	$(PARALLEL) lint types contracts || code=$$?; \
	$(PARALLEL) tests-half tests-other-half || code=$$?; \
	exit $$code

tests-half:
	@code=0; \
	.ci/stage flink $(BIN)/pytest -q -m flink --durations=10 $(ARGS) tests/contract || code=$$?; \
	.ci/stage rules $(BIN)/pytest -q $(ARGS) --ignore=tests/contract --ignore=tests/faults || code=$$?; \
	exit $$code

tests-other-half:  # as long
	@$(BIN)/pytest -m "not flink" --durations=10 $(ARGS) tests/contract tests/faults

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
	@.ci/stage tests $(BIN)/pytest -q -m "not kafka and not redis and not flink" --hypothesis-profile=quick \
	    tests/unit tests/property tests/architecture $(ARGS)

bench: setup ## Measure publishing, and event to decision (minutes; results in benchmarks/results)
	@$(BIN)/python -m benchmarks.produce $(ARGS)
	@$(BIN)/python -m benchmarks.e2e $(ARGS)

parity: setup setup-flink ## 2,000 generated logs through both engines and the reference (minutes; make parity ARGS="--logs 500 --seed 7")
	@$(BIN)/python -m tests.parity $(ARGS)

faults: setup ## Break a running system on purpose, and write RELIABILITY.md (90 minutes; again after a break: make faults ARGS=--resume)
	@code=0; \
	$(BIN)/python -m tests.faults $(ARGS) || code=$$?; \
	$(BIN)/python -m tests.faults --small --protocol classic --no-ablations $(ARGS) || code=$$?; \
	$(BIN)/python -m tests.faults --report || code=$$?; \
	exit $$code

soak: setup ## Half an hour of steady load: memory must be flat, and everything given back; then planted leaks
	@$(BIN)/python -m tests.faults.soak $(ARGS)
	@$(BIN)/python -m tests.faults.soak --ablations

COMPILE = $(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate --no-header $(ARGS)
SHARED = grep -oE '^(anyio|msgspec)==[^ ]+' requirements/runtime.txt

lock: setup ## Pin the requirements again after pyproject.toml changed (newer versions: make lock ARGS=--upgrade)
	@$(COMPILE) pyproject.toml -o requirements/runtime.txt
	@$(COMPILE) pyproject.toml --group dev -o requirements/dev.txt
	@$(COMPILE) --group flink -c <($(SHARED)) -o requirements/flink.txt
	@$(COMPILE) --group flink -c <($(SHARED); echo 'apache-flink==2.2.*') -o requirements/flink-2.2.txt

clean: ## End local servers and remove everything that can be made again
	@if [ -x $(BIN)/python ]; then $(BIN)/python -m app local down --all; fi
	@rm -rf .venv .venv-flink* .local .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
