# What a user or a developer of Candlewick does with it: `make` alone lists it.

SHELL := bash
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
COMPOSE = docker compose $(if $(wildcard .env),--env-file .env) -f docker/compose.yaml
comma := ,
space := $(subst ,, )

# A program that runs until it is stopped. Ctrl-C reaches it once, from the terminal, and is a good end; a TERM that
# make passes on reaches it too, which a shell waiting in the foreground would keep to itself.
program = trap : INT; (trap - INT; exec $(1)) <&0 & child=$$!; trap "kill $$child" TERM; \
	while wait $$child; code=$$?; kill -0 $$child 2>/dev/null; do :; done; [ $$code -eq 130 ] || exit $$code

.PHONY: help
help: ## list the targets
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/\1|\2/p' Makefile | while IFS='|' read -r name what; do \
		printf '  make %-10s %s\n' "$$name" "$$what"; done

.PHONY: install
install: $(INSTALLED) ## make .venv with exactly the locked packages (PYTHON=python3.12 chooses another Python)

$(INSTALLED): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not there: install Python 3.11 or newer," \
		"or name it: make install PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$$($(PYTHON) --version) is too old:" \
		"Candlewick needs 3.11 or newer: make install PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments:" \
		"install its venv module (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

.PHONY: demo
demo: $(INSTALLED) ## try it on a month of invented prices: needs no key and no database of yours
	@$(call program,$(BIN)/candlewick demo)

.PHONY: run
run: $(INSTALLED) ## migrate, serve, and keep everything up to date (settings: .env, see .env.example)
	@$(BIN)/candlewick migrate
	@$(call program,$(BIN)/candlewick serve)

.PHONY: migrate
migrate: $(INSTALLED) ## bring the database to this version's schema
	@$(BIN)/candlewick migrate

.PHONY: backfill
backfill: $(INSTALLED) ## fetch history: SYMBOL=EURUSD,BTCUSD (absent: all) DAYS=30 or FROM=2024-01-01 TO=2024-06-30
	@$(call program,$(BIN)/candlewick backfill \
		$(or $(subst $(comma),$(space),$(SYMBOL)),--all) $(if $(DAYS),--days $(DAYS)) \
		$(if $(FROM),--from "$(FROM)") $(if $(TO),--to "$(TO)"))

.PHONY: export
export: $(INSTALLED) ## write Parquet files: OUT=folder, SYMBOL, DAYS or FROM and TO as for backfill, TIMEFRAME=1h (absent: 1m)
	@$(call program,$(BIN)/candlewick export \
		$(or $(subst $(comma),$(space),$(SYMBOL)),--all) $(if $(DAYS),--days $(DAYS)) \
		$(if $(FROM),--from "$(FROM)") $(if $(TO),--to "$(TO)") \
		$(if $(TIMEFRAME),--timeframe "$(TIMEFRAME)") $(if $(OUT),--out "$(OUT)"))

.PHONY: sync
sync: $(INSTALLED) ## bring symbols up to now, once: SYMBOL=EURUSD,BTCUSD (absent: all active ones)
	@$(call program,$(BIN)/candlewick sync $(subst $(comma),$(space),$(SYMBOL)))

.PHONY: status
status: $(INSTALLED) ## show how far every symbol is, and what is wrong
	@$(BIN)/candlewick status

.PHONY: up
up: ## start it with TimescaleDB in Docker
	@$(COMPOSE) up --build --detach
	@echo "http://127.0.0.1:8001 (first start: see its progress with docker compose -f docker/compose.yaml logs -f)"

.PHONY: down
down: ## stop what `up` started; the data stay
	@$(COMPOSE) down

.PHONY: test
test: $(INSTALLED) ## run the tests (TEST_DATABASE_URL: on TimescaleDB too)
	@$(BIN)/python -m pytest -n 2 --cov --cov-report=term --cov-fail-under=95 $(ARGS)

.PHONY: month
month: $(INSTALLED) ## live a simulated month at 5, 100 and unlimited calls a minute (half an hour)
	@EVERY_PLAN=1 $(BIN)/python -m pytest -n 2 -s --no-header tests/integration/test_month.py $(ARGS)

.PHONY: check
check: $(INSTALLED) ## check format, style, types and the order of imports
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy service tests
	@$(BIN)/lint-imports

.PHONY: format
format: $(INSTALLED) ## put the code into its one format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

.PHONY: bench
bench: $(INSTALLED) ## measure writing, refreshing and reading
	@$(BIN)/python -m tests.bench

.PHONY: bench-peers
bench-peers: .venv-peers/.installed ## measure reading beside DuckDB and ArcticDB, in an environment of its own
	@.venv-peers/bin/python -m tests.bench_peers

.venv-peers/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements.lock
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check duckdb arcticdb pandas
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

.PHONY: lock
lock: ## choose the newest versions of all packages anew
	@rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock && .venv-lock/bin/python -m pip install --quiet uv
	@rm -f requirements.lock docker/requirements.lock
	@$(call lock,--extra dev,requirements.lock)
	@$(call lock,--constraint requirements.lock,docker/requirements.lock)
	@rm -rf .venv-lock

lock = .venv-lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--custom-compile-command 'make lock' $(1) --output-file $(2) pyproject.toml

.PHONY: clean
clean: ## remove what was installed and generated; data and settings stay
	@rm -rf .venv .venv-lock .venv-peers .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache build dist .coverage*
	@find service tests alembic -name __pycache__ -type d -prune -exec rm -rf {} +
