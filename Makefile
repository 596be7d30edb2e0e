# make demo: a fresh clone to a scored table. make test: the whole suite, in the same environment.
PYTHON ?= python3
VENV ?= .venv
# an existing torch build can be chosen here, e.g. TORCH="torch --index-url <the CUDA wheels you want>"
TORCH ?= torch==2.13.0

.PHONY: demo test install clean-demo

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q $(TORCH)
	$(VENV)/bin/pip install -q -c constraints.txt -e '.[dvc,test]'
	touch $@

# one thread: networks as narrow as the demo's run slower in two
demo: install
	OMP_NUM_THREADS=1 PATH="$(CURDIR)/$(VENV)/bin:$$PATH" dvc repro
	@cat reports/demo.md

test: install
	$(VENV)/bin/python -m pytest -n auto --cov --cov-report=term:skip-covered

clean-demo:
	rm -rf data/demo cache/roads runs/demo reports teachers/demo.safetensors dvc.lock
