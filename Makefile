# `make` lists what there is. Targets that need Python make .venv first; ARGS="..." is passed on.
VENV ?= .venv
# The oldest supported one first: constraints.txt is tested with it. To choose another: make PYTHON=/path/to/python
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
BIN := $(VENV)/bin
# What a user needs; what a developer needs on top of it: tests, linters, Triton.
INSTALLED := $(VENV)/.installed
DEVELOPER := $(VENV)/.developer
# Tests run side by side, one thread each; ARGS="-n 0": one after another. The threads of a test that has more wait
# without spinning: on two busy cores such a test takes a third of the processor time.
ONE_EACH := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python

.DEFAULT_GOAL := help
.PHONY: help distill test quick check test-gpu test-oldest audit fuzz crashes mutants bench bench-losses bench-losses-gpu simulate-statistics tensorboard clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or later on PATH; choose one: make PYTHON=/path/to/python" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e '.[atari,vision,study]'
	@touch $@

$(DEVELOPER): $(INSTALLED)
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	@touch $@

distill: $(INSTALLED)  ## distil the Pong teacher into its twin, and score both
	$(BIN)/python scripts/distill_atari.py $(ARGS)

test: $(DEVELOPER)  ## all tests except slow ones and those for a GPU
	$(ONE_EACH) -m pytest -n auto --dist worksteal -m "not slow" --ignore tests/kernels $(ARGS)
	TRITON_INTERPRET=1 $(ONE_EACH) -m pytest -n auto --dist worksteal -m "not slow" tests/kernels $(ARGS)

quick: $(DEVELOPER)  ## losses, config, runs, lineages, layers: 2 minutes
	$(ONE_EACH) -m pytest -n auto --dist worksteal -m "not slow" tests/losses tests/config tests/runs tests/lineage \
		tests/test_layers.py $(ARGS)

check: $(DEVELOPER)  ## check format, lint, types, layers: under a minute
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@mkdir -p build/types && ln -sfn ../../agents build/types/polydistill_agents  # mypy does not see an editable install
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layers.py

test-gpu: $(DEVELOPER)  ## run the tests that need a CUDA device
	$(ONE_EACH) -m pytest -n auto --dist worksteal -m gpu $(ARGS)

test-oldest:  ## run the tests with the oldest allowed versions
	@test -x $(VENV)/oldest/bin/python || $(PYTHON) -m venv $(VENV)/oldest
	$(VENV)/oldest/bin/python -m pip install -q -c constraints-oldest.txt -e '.[dev]'
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(VENV)/oldest/bin/python -m pytest -n auto --dist worksteal -m "not slow" --ignore tests/kernels $(ARGS)

crashes: $(DEVELOPER)  ## kill runs and continue them: same bits at the end
	$(BIN)/python tests/crashes/crashes.py $(ARGS)

bench-losses: $(DEVELOPER)  ## measure the losses beside the usual formulas
	$(BIN)/python scripts/bench_losses.py $(ARGS)

bench-losses-gpu: $(DEVELOPER)  ## the same on a GPU, into scripts/measurements
	for name in policy_kl hinton_kd jsd; do $(BIN)/python scripts/bench_losses.py --device cuda \
		--objectives "[$$name]" --rounds 9 --append true --csv scripts/measurements/losses_cuda.csv $(ARGS) || exit 1; done

bench: $(DEVELOPER)  ## measure the Atari loop and its parts
	$(BIN)/python scripts/bench_atari.py $(ARGS)

simulate-statistics: $(DEVELOPER)  ## coverage of intervals, errors of tests: 10 minutes
	OMP_NUM_THREADS=1 $(BIN)/python scripts/simulate_statistics.py $(ARGS)

mutants: $(DEVELOPER)  ## plant bugs one at a time: each must turn a test red
	$(BIN)/python -m tests.mutants.mutants $(ARGS)

fuzz: $(DEVELOPER)  ## read 20,000 damaged and hostile teacher files
	$(BIN)/python -m tests.fuzz.fuzz $(ARGS)

AUDIT := $(VENV)/audit
# pip-audit exits with 1 both for a finding and for a database that does not answer; only findings go to the file.
audit: constraints.txt  ## known vulnerabilities of the pinned versions
	@test -x $(AUDIT)/bin/pip-audit || { $(PYTHON) -m venv $(AUDIT) && $(AUDIT)/bin/python -m pip install -q pip-audit; } || \
		{ echo "not audited: pip-audit cannot be installed"; exit 0; }; \
	rm -f $(AUDIT)/found; $(AUDIT)/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip \
		--progress-spinner off --output $(AUDIT)/found $(ARGS); code=$$?; \
	if test -f $(AUDIT)/found; then cat $(AUDIT)/found; elif test $$code = 1; then \
		echo "not audited: no database of vulnerabilities answers"; exit 0; fi; exit $$code

# TensorBoard's cards eval/mean_reward and val/accuracy, as its address takes them
PINNED = %5B%7B%22plugin%22%3A%22scalars%22%2C%22tag%22%3A%22eval/mean_reward%22%7D%2C%7B%22plugin%22%3A%22scalars%22%2C%22tag%22%3A%22val/accuracy%22%7D%5D
tensorboard: $(INSTALLED)  ## show the curves of all runs under runs/
	@echo "open http://localhost:6006/?smoothing=0&pinnedCards=$(PINNED)#timeseries"
	@echo "(scores are on top and not smoothed; the tab CUSTOM SCALARS has the main charts, TEXT the config)"
	$(BIN)/tensorboard --logdir runs $(ARGS)

clean:  ## remove caches and build products; runs/ and .venv stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find polydistill agents scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +
