# Each target sets up the virtual environment it needs, once.

VENV := .venv
READY := $(VENV)/.ready
PYTHON = $(shell for p in python3 python3.11 python3.12 python3.13; do \
  $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
OUT ?= out/demo
MINUTES ?= 60

.DEFAULT_GOAL := help
.PHONY: help demo test bench screenshots train lint clean

help: ## show this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 8

demo: $(READY) ## predict the built-in sample patient's dose; results in out/demo (OUT=...)
	$(VENV)/bin/rt-digital-twin run sample --out "$(OUT)" --overwrite

# A file of tests runs in one process, and each process computes on one core.
test: $(READY) ## run the tests (ARGS="-k dvh")
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest --numprocesses 2 --dist loadfile $(ARGS)

bench: $(READY) ## run the benchmarks; table in out/bench (ARGS="--quick")
	$(VENV)/bin/python -m Testing.Benchmarks $(ARGS)

# The pictures of a run that lie there already, by their names among its results; two are of other commands.
RUN_PICTURES = $(filter-out module_% course.png utility.png,$(notdir $(wildcard Resources/Screenshots/*.png)))

screenshots: $(READY) ## draw the README's pictures of the sample patient anew
	$(VENV)/bin/rt-digital-twin run sample --out out/screenshots --overwrite
	$(VENV)/bin/rt-digital-twin recommend sample --out out/next --overwrite
	$(VENV)/bin/rt-digital-twin course sample --fractions 35 --shift-at 10 --out out/course --overwrite
	rm -rf out/module && $(VENV)/bin/python -m Testing.host.screenshots out/module
	cp $(addprefix out/screenshots/,$(RUN_PICTURES)) Resources/Screenshots/
	cp out/next/utility.png Resources/Screenshots/
	cp out/course/adaptation.png Resources/Screenshots/course.png
	cp out/module/module_*.png Resources/Screenshots/

train: $(READY) ## train the dose network: DATA=openkbp-folder [MINUTES=60]
	@test -n "$(DATA)" || { echo "Say where the training data lie: make train DATA=path/to/open-kbp [MINUTES=60]" >&2; exit 2; }
	@test -d "$(DATA)" || { echo "There is no folder $(DATA)." >&2; exit 2; }
	$(VENV)/bin/rt-digital-twin train "$(DATA)" --out out/training --minutes $(MINUTES)

lint: $(READY) ## check style and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

clean: ## remove results, caches and the virtual environment
	rm -rf $(VENV) out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last, so a setup that failed half-way is done again. pip may write to the virtual environment only.
$(READY): pyproject.toml setup.py constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed and none was found." >&2; exit 2; }
	@$(VENV)/bin/python -c 'import pip, sys; sys.exit(sys.prefix == sys.base_prefix)' 2>/dev/null \
	  || $(PYTHON) -m venv --clear $(VENV)
	PIP_REQUIRE_VIRTUALENV=1 $(VENV)/bin/python -m pip install --quiet -e ".[scene,test]" -c constraints.txt
	@touch $@
