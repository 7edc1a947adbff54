"""The examples in the docstrings: there for each public function, and true."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re

import pytest
import torch

from polydistill import losses

MODULES = [f"polydistill.losses.{module.name}" for module in pkgutil.iter_modules(losses.__path__)]
FUNCTIONS = [name for name in losses.__all__ if inspect.isfunction(getattr(losses, name))]


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_show(name) -> None:
    module = importlib.import_module(name)
    finder = doctest.DocTestFinder()
    runner = doctest.DocTestRunner()
    for example in finder.find(module, extraglobs={"torch": torch}):
        runner.run(example)
    failed, tried = runner.summarize(verbose=False)
    assert (failed, tried) == (0, len(re.findall(r"^ *>>> ", inspect.getsource(module), re.M)))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_public_function_has_formula_arguments_and_example(name) -> None:
    function = getattr(losses, name)
    text = inspect.getdoc(function)
    assert text is not None
    assert ">>> " in text
    described = text.split("Args:")[-1] if "Args:" in text else ""
    for parameter in inspect.signature(function).parameters:
        if parameter != "name":
            assert f"{parameter}: " in described, f"{name} does not describe {parameter}"


def test_readmes_example_of_the_losses_runs(root, run_python) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (root / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    (example,) = [block for block in blocks if "from polydistill.losses import" in block]
    done = run_python("-c", example)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("doctor: hinton_kd, 128 samples of 18 classes on cpu, plain formulas")
