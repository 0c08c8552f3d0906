# make run: the headline study on MovieLens-100K, with its positive control on simulated data · make test: everything that must hold · make docs: execute the notebooks in place
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: install dev run test export docs lab clean

install: $(VENV)/.installed
dev: $(VENV)/.installed-dev

$(VENV)/bin/python:
	python3 -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python settings.ini setup.py
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/bin/python settings.ini setup.py
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@ $(VENV)/.installed

run: install
	$(BIN)/recx run recxplore

test: dev
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/nbdev_test --n_workers 2 --timing
	PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile tests

export: dev
	PATH="$(CURDIR)/$(BIN):$$PATH" sh -c 'nbdev_export && nbdev_clean && python .ci/readme.py'

docs: dev
	PATH="$(CURDIR)/$(BIN):$$PATH" sh -c 'python .ci/execute.py && nbdev_clean && python .ci/readme.py'

lab: dev
	$(BIN)/jupyter lab nbs

clean:
	rm -rf $(VENV) data/store
