# make report   sets up .venv and writes report.html about SmolLM2-135M (about glassllm without a network)
# make test     sets up .venv with the test extras and runs every test
# make lint     formatting, ruff, mypy, import layers
# make pictures writes docs/report.png and docs/explorer.png from the stored runs of SmolLM2-135M
# make setup    sets up .venv
# All are safe to repeat; the second time they start at once.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install -qq --constraint constraints.txt

.PHONY: setup test report explore lint pictures clean

setup: $(VENV)/.setup

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "sparsescope needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.setup: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing sparsescope into $(VENV) (a few minutes the first time)"
	$(PIP) --editable '.[demo]'
	@touch $@

$(VENV)/.setup-test: $(VENV)/.setup
	@echo "installing the test extras"
	$(PIP) --editable '.[demo,dev]'
	@touch $@

test: $(VENV)/.setup-test
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

report: $(VENV)/.setup
	$(BIN)/sparsescope report smollm2-135m --fallback glassllm --output report.html

explore: $(VENV)/.setup
	$(BIN)/sparsescope explore

lint: $(VENV)/.setup-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

pictures: $(VENV)/.setup-test
	$(BIN)/python docs/pictures.py

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis
