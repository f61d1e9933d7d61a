# `make demo` encodes and decodes real photos; `make test` runs the tests; `make check` also lints.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo

.PHONY: demo test check lint format clean

demo: $(VENV)/installed
	$(BIN)/stae encode examples/photos $(DEMO)/latents --weights builtin
	$(BIN)/stae decode $(DEMO)/latents $(DEMO)/pictures
	@echo "Look at the pictures, and at the photos in examples/photos they were made from:"
	@ls -1 $(DEMO)/pictures/*.png

# Threads that wait for each other in a busy loop would take the time that other tests need.
test: $(VENV)/installed-test
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test

format: $(VENV)/installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(DEMO)

$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[fast]'
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[fast,test]'
	touch $@
