# make demo    make an environment in .venv/, install, run a recipe on a real BERT encoder
# make test    the same environment with the tools: ruff, import-linter, mypy, every test
# make lint    the three checks without the tests
# make constraints   resolve every dependency anew and write constraints.txt
# make clean   remove the environment, builds and caches; .ioptim/ (the store and the runs) stays

PYTHON ?= python3
RECIPE ?= recipes/bert-int8.yaml
VENV   := .venv
BIN    := $(VENV)/bin

export DO_NOT_TRACK = true
export PIP_DISABLE_PIP_VERSION_CHECK = 1

INSTALL := $(BIN)/python -m pip install --quiet --progress-bar off

.PHONY: demo test lint constraints clean
.DELETE_ON_ERROR:

demo: $(VENV)/.demo
	@$(BIN)/ioptim run $(RECIPE); code=$$?; echo; echo "  MLflow's page of all runs: $(BIN)/ioptim ui"; exit $$code

test: export HF_HUB_OFFLINE = 1
test: lint
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/lint-imports --cache-dir .import_linter_cache
	$(BIN)/mypy

$(VENV)/.demo: $(VENV)/.created pyproject.toml constraints.txt
	$(INSTALL) -c constraints.txt -e '.[cpu,demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/.created pyproject.toml constraints.txt
	$(INSTALL) -c constraints.txt -e '.[cpu,demo,dev]'
	@touch $@ $(VENV)/.demo

$(VENV)/.created:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "make: there is no '$(PYTHON)'. Install Python 3.11 or newer (Debian: apt-get install python3 python3-venv)," \
	       "or name another: make PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: ioptim needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) -V 2>&1)." \
	       "Name another: make PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "make: '$(PYTHON)' cannot make virtual environments. Debian: apt-get install python3-venv"; exit 1; }
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	@touch $@

# Resolves from pyproject.toml alone, in an environment of its own: what comes out is what an install without constraints gets today.
constraints:
	rm -rf .venv-constraints
	$(PYTHON) -m venv .venv-constraints
	.venv-constraints/bin/python -m pip install --quiet --progress-bar off '.[cpu,demo,dev]'
	.venv-constraints/bin/python -m pip check
	{ sed '/^[^#]/,$$d' constraints.txt; \
	  .venv-constraints/bin/python -m pip freeze --all --exclude pip --exclude ioptim | sed 's/+cpu$$//'; } > constraints.new
	mv constraints.new constraints.txt
	rm -rf .venv-constraints

clean:
	rm -rf .venv .venv-* build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
