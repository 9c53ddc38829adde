# The front door: `make` alone prints the targets. Every target ends in a command that stands
# elsewhere; nothing is decided here.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help setup setup-dev up status logs down clean backup restore demo card run simulate rollback release \
	promote shadow test lint \
	format check pictures ready compose-up compose-demo compose-down compose-test \
	setup-peers bench-serving bench-load bench-replay bench-training bench-growth bench-literature \
	eda replay fuzz faults

stack := .venv-services/bin/python -m mlops.stack
# Any python3 will do, and no environment of this project is needed.
compose := $(or $(PYTHON),python3) docker/compose.py
export PYTHON
# CARD=name or path of another data set's card, for any target: MLOPS_CARD of this one command.
ifneq ($(CARD),)
export MLOPS_CARD := $(CARD)
endif

help: ## Print this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Create both environments from the lock, and the secrets in .env
	@scripts/bootstrap
	@$(stack) secrets

setup-dev:
	@scripts/bootstrap dev
	@$(stack) secrets

# In a fresh clone the targets that only look or stop have nothing to run.
ready:
	@test -x $(firstword $(stack)) || \
	{ echo "nothing is set up yet: run \`make setup\`" >&2; exit 2; }

up: setup ## Start every server and wait until all are well
	@$(stack) up

status: ready ## Show each server's state, health and memory
	@$(stack) status

logs: ready ## Show the ends of the logs; SERVICE=mage for one, FOLLOW=1 to go on
	@$(stack) logs $(SERVICE) $(if $(FOLLOW),--follow)

down: ## Stop everything, leftovers of a crash too
	@if test -x $(firstword $(stack)); then $(stack) down; \
	else echo "nothing is set up, so nothing runs"; fi

clean: ready ## Stop everything and delete all state, models included; YES=1 does not ask
	@$(stack) clean $(if $(YES),--yes)

backup: ready ## Copy databases, models and reports of the running stack to FOLDER=backups/<now>
	@$(stack) backup $(if $(FOLDER),"$(FOLDER)")

restore: ready ## Fill an empty state from a backup: FOLDER=backups/2026-01-31T12-00-00
	@test -n "$(FOLDER)" || { echo "which backup? make restore FOLDER=backups/..." >&2; exit 2; }
	@$(stack) restore "$(FOLDER)"

demo: ## Set up, start, and run the whole loop once; CARD=credit_card_churn for another data set
	@started=$$(date +%s) && scripts/bootstrap && \
	$(stack) demo --started $$started --installed $$(date +%s)

card: setup ## Draft the card of a file of your own: CSV=path, NAME=of_the_card
	@test -n "$(CSV)" || { echo "which file? make card CSV=customers.csv" >&2; exit 2; }
	@.venv/bin/python -W ignore -m mlops.dataset.draft "$(CSV)" $(if $(NAME),--name "$(NAME)")

compose-up: ## Start every server as a container, and wait until all are healthy
	@$(compose) up $(SERVICES)

compose-demo: ## Start the containers, and run the whole loop once in them
	@$(compose) demo $(SERVICES)

compose-down: ## Stop the containers; the volumes keep everything
	@$(compose) down

simulate: ready ## Play a month of the file as live traffic: MONTH=2009-03
	@test -n "$(MONTH)" || { echo "which month? make simulate MONTH=2009-03" >&2; exit 2; }
	@$(stack) simulate $(MONTH)

run: ready ## Run a pipeline in Mage: PIPELINE=monitor
	@test -n "$(PIPELINE)" || { echo "which pipeline? make run PIPELINE=monitor" >&2; exit 2; }
	@$(stack) run $(PIPELINE)

rollback: ready ## Put the former production version back in seconds, and hold the loop
	@$(stack) rollback

release: ready ## Let the loop promote again after a rollback
	@$(stack) release

promote: ready ## Put a version in production, whatever the gate says: VERSION=7
	@test -n "$(VERSION)" || { echo "which version? make promote VERSION=7" >&2; exit 2; }
	@$(stack) promote "$(VERSION)"

shadow: ready ## Let a version score what is answered, and answer nobody: VERSION=7, or STOP=1
	@$(stack) shadow $(if $(STOP),--stop) $(if $(SINCE),--since "$(SINCE)") $(VERSION)

check: setup ## Say what would keep the stack from starting
	@$(stack) check

pictures: setup-dev ## Take the pictures of the docs from the running stack
	.venv/bin/python scripts/pictures.py

setup-peers:
	@scripts/bootstrap dev peers

bench-serving: setup-peers ## Measure the predict API beside its peers; ten minutes on a quiet machine
	@.venv/bin/python -m benchmarks.serving $(if $(ROUNDS),--rounds $(ROUNDS))

fuzz: setup-dev ## Send the predict API whatever a client could: N=100000, SEED=0
	@.venv/bin/python -W ignore -m tests.fuzz $(if $(N),--requests $(N)) $(if $(SEED),--seed $(SEED))

bench-load: setup-dev ## Load the predict API while versions change and Postgres dies: MINUTES=10
	@.venv/bin/python -m benchmarks.sustained $(if $(MINUTES),--minutes $(MINUTES))

bench-replay: setup-dev ## Say what retraining is worth on 2009-01 … 2010-11, and what it costs: two minutes
	@.venv/bin/python -W ignore -m benchmarks.replay

bench-training: setup-dev ## Measure the five candidates beside the plain way, and what the pipeline adds
	@.venv/bin/python -W ignore -m benchmarks.training $(if $(ROUNDS),--rounds $(ROUNDS))

bench-growth: setup-dev ## Say what each candidate takes with 45 thousand, 450 thousand and 4.5 million rows
	@.venv/bin/python -W ignore -m benchmarks.growth

bench-literature: setup-dev ## Compare our ROC AUC with the literature's, and say what of it is leakage
	@.venv/bin/python -W ignore -m benchmarks.literature

eda: setup-dev ## Run EDA.ipynb into reports/EDA.html; PICTURES=images saves its figures too
	@.venv/bin/python scripts/eda.py $(if $(PICTURES),--pictures "$(PICTURES)")

replay: setup-dev ## Play the months to come as life would, on a stack of its own; FAST=1 in memory
	@.venv/bin/python -W ignore -m mlops.replay $(if $(FAST),--fast)

lint: setup-dev ## Lint, format, types, and the import contract
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m mypy
	MYPYPATH=mlops/serving/templates .venv/bin/python -m mypy -p predictor
	.venv/bin/python -c "from importlinter.cli import lint_imports_command; lint_imports_command()"

format: setup-dev ## Format the code, and fix what lint can fix itself
	.venv/bin/python -m ruff check --fix .
	.venv/bin/python -m ruff format .

test: lint ## Install the test tools, lint, and run all tests, two files at a time; WORKERS=1
	.venv/bin/python -m pytest -n $(or $(WORKERS),2) --dist loadfile --no-loadscope-reorder

faults: setup-dev ## Kill every server at every stage of a retrain, and break the rest; CI plays four kills
	.venv/bin/python -m pytest tests/e2e/test_faults.py tests/e2e/test_replay_live.py --all-stages -s -rfE

compose-test: setup-dev ## Try the containers, and break them; REQUIRED=1 fails where it would skip
	.venv/bin/python -m pytest tests/compose -s -rfE $(if $(REQUIRED),--required)
