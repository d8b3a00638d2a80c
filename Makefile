# Each verb sets up what it needs. PYTHON chooses the interpreter that .venv is made from.
PYTHON ?= python3
BIN := .venv/bin

help:     ## this list
	@grep -E '^[a-z]+: ' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 10

install: .venv/installed  ## make .venv with the tested versions
# transformers stands apart, for tests/test_hugging_face.py alone: torchmetrics would import it in every process, which
# takes a second.
.venv/installed: pyproject.toml constraints.txt
	@echo 'It installs into .venv: some minutes, two gigabytes.'
	$(PYTHON) -m venv $(ANEW) .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[sweeps,tokens,dev]'
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps --upgrade --target .venv/transformers transformers
	echo '$(CURDIR)' > $@

# The programs in .venv name the folder in which they were installed: in a moved checkout they are made anew.
PLACE := $(shell cat .venv/installed 2>/dev/null)
ifneq ($(PLACE),)
ifneq ($(PLACE),$(CURDIR))
ANEW := --clear
.PHONY: .venv/installed
endif
endif

train: install  ## train the default mini-GPT and print a sample
	$(BIN)/python train.py
	@echo 'to go on      . .venv/bin/activate (once a terminal), then python train.py --help'

test: install  ## run the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

quick: install  ## run the tests that take seconds and touch every room
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m quick

lint: install  ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install  ## write the code in the format that lint checks
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

board: install  ## look at all runs in TensorBoard
	$(BIN)/python scripts/board.py

docs: .venv/docs  ## build these pages as a site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo 'to read it, with its search: python -m http.server --directory site, and open http://localhost:8000'

.venv/docs: .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

clean:  ## remove .venv and caches; outputs stay
	rm -rf .venv site *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

.PHONY: help install train test quick lint format board docs clean
