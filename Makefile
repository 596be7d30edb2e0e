# make demo         a fresh clone to a scored table
# make test         the whole suite, in the same environment
# make coverage     the same, and which lines no test runs
# make test-s3      the tests of object storage, and its bench, against an S3 server, in an environment of its own
# make types        all of pipeline/, stages/ and bench/, type-checked
# make lint         ruff: rules and format
# make docs         the documentation site, in site/
# make wheel-check  the wheel in an environment of its own, with nothing but what it says it needs
PYTHON ?= python3
VENV ?= .venv
# an existing torch build can be chosen here, e.g. TORCH="torch --index-url <the CUDA wheels you want>"; with "torch torchvision ..."
# from one index, the tests that compare with torchvision's networks run, too
TORCH ?= torch==2.13.0

.PHONY: demo teacher test coverage test-s3 install-s3 reference types lint docs tools wheel-check install clean-demo

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install $(TORCH)
	$(VENV)/bin/pip install -c constraints.txt -e '.[dvc,export,test,types,bench]'
	touch $@

# One thread: networks as narrow as the demo's run slower in two. DVC runs one stage at a time, so the two seeds are trained side by
# side before it asks for them, unless it knows that nothing is to do; it finds them done and records them.
demo: export OMP_NUM_THREADS = 1
demo: export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
demo: install
	dvc repro cache-teacher@demo evaluate-teacher@demo
	dvc status -q || for seed in 0 1; do (for method in plain intra; do \
	  pipeline train-student configs/demo.yaml --student erfnet --method $$method --seed $$seed || exit 1; done) & done; wait
	dvc repro
	@cat reports/demo.md

test: install
	$(VENV)/bin/python -m pytest -n auto -rs

coverage: install
	$(VENV)/bin/python -m pytest -n auto --cov --cov-report=term:skip-covered

# what the schema says, as a page and for editors
reference: install
	$(VENV)/bin/python -m pipeline.config.reference
# moto wants another antlr than DVC does, so the two can't share an environment
S3_VENV ?= .venv-s3

# layered over the first: only what differs is installed again
$(S3_VENV)/installed: $(VENV)/installed
	$(PYTHON) -m venv $(S3_VENV)
	ls -d $(abspath $(VENV))/lib/python3*/site-packages > $$(echo $(S3_VENV)/lib/python3*/site-packages)/base.pth
	$(S3_VENV)/bin/pip install -q -c constraints.txt -e '.[test-s3]'
	touch $@

install-s3: $(S3_VENV)/installed

test-s3: install-s3
	$(S3_VENV)/bin/python -m pytest -rs tests/pipeline/test_remote.py tests/test_bench.py -k 'test_remote or object_storage'

types: install
	$(VENV)/bin/mypy

# ruff and mkdocs, which nobody needs to run the pipeline
tools: $(VENV)/tools

$(VENV)/tools: $(VENV)/installed
	$(VENV)/bin/pip install -q -c constraints.txt -e '.[lint,docs]'
	touch $@

lint: tools
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

docs: tools
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

SMALL = --set dataset.train=6 --set dataset.val=1 --set dataset.test=2 \
        --set training.steps=2 --set training.warmup_steps=0
RUN = --student erfnet --method intra --seed 0

wheel-check: install
	rm -rf build dist wheel-check && $(VENV)/bin/python -m build -o dist
	$(PYTHON) -m venv wheel-check/venv
	wheel-check/venv/bin/pip install -q $(TORCH)
	wheel-check/venv/bin/pip install -q -c constraints.txt dist/*.whl
	cd wheel-check && PATH="$$PWD/venv/bin:$$PATH" && pipeline init && for command in synth prepare train-teacher cache-teacher \
	  "train-student $(RUN)" "evaluate $(RUN)" "evaluate --teacher" report; do \
	  set -- $$command; name=$$1; shift; pipeline $$name configs/demo.yaml "$$@" $(SMALL) || exit 1; done
	rm -rf wheel-check

clean-demo:
	rm -rf data/demo cache/roads runs/demo reports teachers/demo.safetensors dvc.lock

# the demo's ResNet-101 from nothing: scenes, training (an hour and more on one core; resumable), scores, packed weights
teacher: install
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m bench.teacher
