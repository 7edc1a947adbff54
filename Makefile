# `make` lists what there is. Targets that need Python make .venv first; ARGS="..." is passed on.
VENV ?= .venv
# The oldest supported first: constraints.txt is tested with it. Another one: make PYTHON=/path/to/python
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
ONE_EACH := OMP_NUM_THREADS=1 $(BIN)/python  # tests run side by side, one thread each; ARGS="-n 0": one after another

.DEFAULT_GOAL := help
.PHONY: help distill test check test-gpu test-oldest audit torture torture-files torture-runs mutants bench bench-losses bench-losses-gpu tensorboard clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or later on PATH; say make PYTHON=/path/to/python" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	@touch $@

distill: $(INSTALLED)  ## distil the Pong teacher into its twin, with the result as a table
	$(BIN)/python scripts/distill_atari.py $(ARGS)

test: $(INSTALLED)  ## all tests but the slow ones; without a GPU its tests are skipped, and kernels are interpreted
	$(ONE_EACH) -m pytest -n auto --dist loadfile -m "not slow" --ignore tests/kernels $(ARGS)
	TRITON_INTERPRET=1 $(ONE_EACH) -m pytest -n auto --dist worksteal -m "not slow" tests/kernels $(ARGS)

check: $(INSTALLED)  ## format, lint, types, layers: under a minute
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layers.py

test-gpu: $(INSTALLED)  ## the tests that need a CUDA device
	$(ONE_EACH) -m pytest -n auto --dist worksteal -m gpu $(ARGS)

test-oldest:  ## the tests (the kernels' aside) with the oldest versions that pyproject.toml allows, in a .venv of their own
	@test -x $(VENV)/oldest/bin/python || $(PYTHON) -m venv $(VENV)/oldest
	$(VENV)/oldest/bin/python -m pip install -q -c constraints-oldest.txt -e '.[dev]'
	OMP_NUM_THREADS=1 $(VENV)/oldest/bin/python -m pytest -n auto --dist loadfile -m "not slow" --ignore tests/kernels $(ARGS)

torture: torture-files torture-runs  ## hostile files, and runs killed at random moments

torture-runs: $(INSTALLED)  ## runs killed at random moments end bit for bit the same; ARGS="cifar" for one script
	$(BIN)/python tests/torture/torture_runs.py $(ARGS)

bench-losses: $(INSTALLED)  ## measure the losses beside the formulas that one would write
	$(BIN)/python scripts/bench_losses.py $(ARGS)

bench-losses-gpu: $(INSTALLED)  ## the same on a GPU, into the file that RESULTS.md shows
	for name in policy_kl hinton_kd jsd; do $(BIN)/python scripts/bench_losses.py --device cuda \
		--objectives "[$$name]" --rounds 9 --append true --csv scripts/measurements/losses_cuda.csv $(ARGS) || exit 1; done

bench: $(INSTALLED)  ## measure the Atari loop and its parts
	$(BIN)/python scripts/bench_atari.py $(ARGS)

mutants: $(INSTALLED)  ## bugs planted in the losses and kernels, one at a time: each must turn a test red
	$(BIN)/python -m tests.torture.mutants $(ARGS)

torture-files: $(INSTALLED)  ## 20,000 damaged and hostile teachers' files: each a network or one line
	$(BIN)/python -m tests.fuzz.torture_files $(ARGS)

audit: $(INSTALLED)  ## known vulnerabilities of the versions in constraints.txt (needs a network)
	@test -x $(VENV)/audit/bin/pip-audit || { $(PYTHON) -m venv $(VENV)/audit && \
		$(VENV)/audit/bin/python -m pip install -q pip-audit; } || true
	$(BIN)/python scripts/audit.py --pip_audit $(VENV)/audit/bin/pip-audit $(ARGS)

tensorboard: $(INSTALLED)  ## the curves of everything under runs/
	@echo "open http://localhost:6006/?smoothing=0  (smoothed, the few points of the scores' curves would lag behind)"
	$(BIN)/tensorboard --logdir runs $(ARGS)

clean:  ## remove caches and build products; runs/ and .venv stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find polydistill agents scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +
