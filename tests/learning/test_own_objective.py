"""polydistill.learning.own_objective: a loss of one's own by name, and what is refused in one line."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from polydistill.learning.own_objective import is_own, load_own, try_own

HEAD = "import torch\nfrom torch.nn import functional as F\n"
Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a module ``own_losses`` into the folder of the command; its loss is ``mine``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_losses", raising=False)
    before = list(sys.path)

    def put(body: str) -> str:
        sys.modules.pop("own_losses", None)
        (tmp_path / "own_losses.py").write_text(HEAD + body)
        return "own_losses:mine"

    yield put  # type: ignore[misc]
    sys.modules.pop("own_losses", None)
    assert sys.path == before


def test_a_loss_of_the_folder_is_found_called_and_known_by_its_source(write: Write, tmp_path: Path) -> None:
    name = write(
        "def mine(student, teacher, labels, power=2):\n    return (student - teacher).abs().pow(power).sum(1)\n"
    )
    objective, sha256 = load_own(name)
    assert objective.name == name
    assert is_own(name)
    assert not is_own("ban")
    assert sha256 == hashlib.sha256((tmp_path / "own_losses.py").read_bytes()).hexdigest()
    student, teacher = torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 1.0]])
    assert objective(student, teacher, torch.tensor([0])).tolist() == [5.0]
    try_own(objective, 10, {})
    other, _ = load_own(name, {"power": 1})
    try_own(other, 10, {"power": 1})
    (tmp_path / "own_losses.py").write_text(HEAD + "# another\n")
    assert load_own(name)[1] != sha256


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_losses:", "is no package.module:function"),
        (":mine", "is no package.module:function"),
        ("own-losses:mine", "is no package.module:function"),
        ("../own_losses:mine", "is no package.module:function"),
        ("https://example.org:mine", "is no package.module:function"),
        ("no_such_module_of_mine:mine", "cannot be imported: ModuleNotFoundError: No module named"),
        ("own_losses:mein", "own_losses has no mein; did you mean mine?"),
        ("own_losses:F", "is no function but a module"),
        ("own_losses:few", "must take (student, teacher, labels): "),
    ],
)
def test_a_name_of_no_loss_is_one_line(write: Write, name: str, message: str) -> None:
    write("def mine(student, teacher, labels): ...\ndef few(student, teacher): ...\n")
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        load_own(name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("body", ["raise OSError('two\\nlines')\n", "import sys\nsys.exit(3)\n", "def mine(:\n"])
def test_a_module_that_fails_when_it_is_imported_is_one_line(write: Write, body: str) -> None:
    name = write(body)
    with pytest.raises(ValueError, match=r"^objective own_losses:mine cannot be imported: \w+: .*$") as caught:
        load_own(name)
    assert "\n" not in str(caught.value)


def test_an_option_that_it_does_not_take_is_refused(write: Write) -> None:
    name = write("def mine(student, teacher, labels, *, beta=0.5):\n    return (student * beta).sum(1)\n")
    load_own(name, {"beta": 0.1})
    with pytest.raises(ValueError, match=r"must take \(student, teacher, labels, alpha=\.\.\.\)"):
        load_own(name, {"alpha": 0.1})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("((student - teacher) ** 2).mean()", "must return one loss per sample, (6,), got (): do not reduce it"),
        ("(student - teacher) ** 2", "must return one loss per sample, (6,), got (6, 7)"),
        ("student.sum(1).tolist()", "must return a tensor of losses, got"),
        ("student.argmax(1)", "must return a tensor of losses, got"),
        ("student.detach().sum(1)", "has no gradient: it must be made of the student's scores"),
        ("student.sum(1) * 0", "has the gradient 0: nothing would be learned"),
        ("student.sum(1) / 0", "not finite on made-up scores"),
        ("(student - student.detach()).abs().sqrt().sum(1)", "not finite on made-up scores"),
        ("student.sum(1) * torch.rand(())", "must not draw random numbers"),
        ("(student * teacher.mul_(2)).sum(1)", "changes the teacher's scores in place"),
        ("student[:, 99]", "tried on 6 samples: IndexError: "),
        ("undefined", "tried on 6 samples: NameError: name 'undefined' is not defined"),
    ],
)
def test_what_is_no_loss_per_sample_is_refused_before_a_run(write: Write, value: str, message: str) -> None:
    objective, _ = load_own(write(f"def mine(student, teacher, labels):\n    return {value}\n"))
    before = torch.random.get_rng_state()
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        try_own(objective, 7, {})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert torch.equal(before, torch.random.get_rng_state())
