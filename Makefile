# Needs git, make and python3 (3.11 or later, with venv); everything else goes into .venv.
# Arguments go through ARGS: make serve ARGS="--data d", make test ARGS="-k batch".

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Named for the version, so that another python3 makes another environment instead of a broken one.
INSTALLED := $(VENV)/installed-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help serve test check bench fuzz mutate clean torture

help: ## list these targets
	@sed -n 's/^\([a-z]*\):.* ## /\1	/p' $(MAKEFILE_LIST) | expand -t 10

serve: $(INSTALLED) ## run a broker (data in ./vibemq-data)
	$(BIN)/vibemq serve $(ARGS)

test: $(INSTALLED) ## run all tests
	$(BIN)/python -m pytest $(ARGS)

torture: $(INSTALLED) ## run the long counts (ARGS="--minutes 60") and write docs/reliability.md
	$(BIN)/python -m tests.torture $(ARGS)

check: $(INSTALLED) ## lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict

bench: $(INSTALLED) ## measure against the targets
	$(BIN)/python -m bench.targets $(ARGS)

FUZZ_SECONDS ?= 600
fuzz: $(INSTALLED) ## search for inputs that break something (FUZZ_SECONDS=600)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[fuzz]'
	$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS) $(ARGS)

mutate: $(INSTALLED) ## change log and projections in small ways, and list what no test notices (ARGS="'vibemq.log.frame*'")
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[mutate]'
	nice $(BIN)/mutmut run $(ARGS)
	$(BIN)/mutmut results | sed '/not checked/d'

clean: ## remove the environment, caches and builds; never data
	rm -rf $(VENV) mutants .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "VibeMQ needs Python 3.11 or later as python3, this is: $$($(PYTHON) --version 2>&1)." \
	         "With another one installed: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
	    echo "$(PYTHON) lacks the venv module. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@
