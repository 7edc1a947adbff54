"""A teacher's scores on disk: computed once, the same bits ever after, and of inputs that repeat alone."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, SubsetRandomSampler, TensorDataset

from polydistill.errors import Interrupted, UserError
from polydistill.learning.processes import ALONE, Processes
from polydistill.modules import ModuleDomain, TeacherCache, kept, score_files, teacher_scores
from polydistill.modules.batches import Batch, read_batch
from polydistill.modules.sample_hashes import all_samples, hash_samples
from polydistill.modules.score_files import ScoreFiles
from polydistill.modules.seeding import seeded
from polydistill.modules.teacher_scores import TeacherScores
from polydistill.modules.training import ModuleTraining
from tests.stop_signals import StopAt

CLASSES = 5
CPU = torch.device("cpu")


class Teacher(nn.Module):
    """Knows the classes, and counts the samples that it is asked about."""

    def __init__(self, shift: float = 0.0) -> None:
        super().__init__()
        self.linear, self.asked, self.shift = nn.Linear(CLASSES, CLASSES), 0, shift
        with torch.no_grad():
            self.linear.weight.copy_(3.0 * torch.eye(CLASSES))
            self.linear.bias.zero_()

    def forward(self, input: Tensor) -> Tensor:
        self.asked += len(input)
        return self.linear(input + self.shift * torch.arange(CLASSES))

    def __deepcopy__(self, memo: Any) -> Teacher:
        return self  # so that a test sees how often a domain asks it


def clouds(n: int = 60, *shape: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(n)
    labels = torch.randint(CLASSES, (n, *shape), generator=generator)
    return TensorDataset(
        torch.eye(CLASSES)[labels] + 0.3 * torch.randn(n, *shape, CLASSES, generator=generator), labels
    )


def make_domain(batches: Any = None, **given: Any) -> ModuleDomain:
    given.setdefault("epochs", 3)
    given.setdefault("teacher", Teacher())
    batches = DataLoader(clouds(), batch_size=8, shuffle=True) if batches is None else batches
    test = given.pop("test", DataLoader(clouds(50), batch_size=50))
    return ModuleDomain(lambda: nn.Linear(CLASSES, CLASSES), batches, test, **given)


def train(domain: ModuleDomain, **given: Any) -> dict[str, Tensor]:
    *_, last = domain.distill(1, **given)
    return {name: weight.clone() for name, weight in last.member.state_dict().items()}


def assert_same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert all(torch.equal(one[name], other[name]) for name in one)


# ---- a lineage -----------------------------------------------------------------------------------------------------


def test_the_teacher_is_asked_once_for_each_sample_and_the_student_learns_the_same(tmp_path: Path) -> None:
    plain = train(make_domain())
    teacher = Teacher()
    cached = train(make_domain(teacher=teacher, teacher_cache=tmp_path))
    for name, weight in plain.items():
        torch.testing.assert_close(cached[name], weight, rtol=1e-4, atol=1e-5)
    for_tests = 8 + 50 + 50  # one batch of each kind before the first step, and the metrics of generation 0
    assert teacher.asked == 60 + for_tests


def test_a_warm_cache_gives_the_same_bits_with_another_seed_and_order(tmp_path: Path) -> None:
    train(make_domain(seed=7, teacher_cache=tmp_path / "warm"))
    teacher = Teacher()
    warm = train(make_domain(teacher=teacher, teacher_cache=tmp_path / "warm"))
    cold = train(make_domain(teacher_cache=tmp_path / "cold"))
    assert_same_bits(warm, cold)
    assert teacher.asked == 8 + 8 + 50 + 50  # one batch is compared with what is there


@pytest.mark.parametrize(
    ("objective", "top_k", "dtype"),
    [
        ("ban", None, "float16"),
        ("dkd", None, "bfloat16"),
        ("ban", 2, "float32"),
        ("ban_l", 2, "float16"),
        ("hinton_kd", 2, "bfloat16"),
    ],
)
def test_every_form_is_learned_from_and_a_folder_serves_all(tmp_path: Path, dtype, top_k, objective) -> None:
    cache = TeacherCache(tmp_path, top_k=top_k, dtype=dtype)
    domain = make_domain(objective=objective, teacher_cache=cache)
    weights = train(domain)
    assert_same_bits(weights, train(make_domain(objective=objective, teacher_cache=cache)))
    assert domain.ensemble([0, 1])["test_accuracy"] > 0.9
    (path,) = tmp_path.rglob("*.safetensors")
    rows = load_file(path)
    stored = rows["scores" if top_k is None else "values"]
    assert stored.dtype == getattr(torch, dtype)
    assert stored.shape == (60, top_k or CLASSES)
    train(make_domain(objective="jsd", teacher_cache=tmp_path))
    assert len(list(tmp_path.iterdir())) == 2


def test_top_k_of_all_classes_is_the_objective_itself(tmp_path: Path) -> None:
    plain = train(make_domain(objective="hinton_kd", options={"temperature": 2.0}))
    cache = TeacherCache(tmp_path, top_k=CLASSES)
    cached = train(make_domain(objective="hinton_kd", options={"temperature": 2.0}, teacher_cache=cache))
    for name, weight in plain.items():
        torch.testing.assert_close(cached[name], weight, rtol=1e-4, atol=1e-5)


def test_generations_parts_and_an_optimiser_that_evaluates_take_them_too(tmp_path: Path) -> None:
    several = list(make_domain(teacher=None, teacher_cache=tmp_path, parts=2).distill(2))
    assert len(several) == 3
    assert len(list(tmp_path.iterdir())) == 2  # a folder for each teacher
    lbfgs = make_domain(teacher_cache=tmp_path, optimizer=lambda weights: torch.optim.LBFGS(weights, max_iter=2))
    assert next(iter(reversed(list(lbfgs.distill(1))))).metrics["test_accuracy"] > 0.9


class Moved(Tensor):
    """As if it were on a GPU, from which nothing may be fetched in a step."""

    def cpu(self, *given: Any, **how: Any) -> Tensor:
        raise AssertionError("it was copied back")


@pytest.mark.parametrize("way", [{}, {"parts": 2}, {"optimizer": torch.optim.LBFGS}], ids=["whole", "parts", "LBFGS"])
def test_a_batch_is_looked_up_as_the_loader_gives_it_and_nothing_is_copied_back(
    tmp_path: Path, monkeypatch, way: dict[str, Any]
) -> None:
    expected = train(make_domain(teacher_cache=tmp_path / "expected", **way))

    def move(batch: Batch, device: torch.device | None) -> Batch:
        return batch._replace(inputs=tuple(value.as_subclass(Moved) for value in batch.inputs))

    step = ModuleTraining._step

    def moved_step(*given: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Batch, "to", move)
            step(*given)

    monkeypatch.setattr(ModuleTraining, "_step", moved_step)
    assert_same_bits(train(make_domain(teacher_cache=tmp_path / "found", **way)), expected)


def test_where_a_data_set_fails_while_scores_are_computed_is_told(tmp_path: Path) -> None:
    class Broken(TensorDataset):
        def __getitem__(self, index: int) -> tuple[Tensor, ...]:
            if index == 19:
                raise OSError("picture_19.jpg is cut")
            return super().__getitem__(index)

    with pytest.raises(OSError, match="picture_19") as error:
        make_scores(tmp_path).fill(DataLoader(Broken(*clouds().tensors), batch_size=8), stop_at(1000))
    assert error.value.__notes__ == ["in batch 3 while the teacher's scores are computed"]
    assert len(make_scores(tmp_path).files) == 16


def test_sequences_are_kept_with_their_padding(tmp_path: Path) -> None:
    inputs, labels = clouds(24, 6).tensors
    ragged = labels.masked_fill(torch.arange(6) >= torch.arange(24).unsqueeze(1) % 5 + 2, -100)
    batches = DataLoader([{"input": x, "labels": y} for x, y in zip(inputs, ragged, strict=True)], batch_size=5)
    test = [{"input": inputs, "labels": labels}]
    for top_k in (None, 3):
        plain = train(make_domain(batches, test=test, objective="hinton_kd"))
        cache = TeacherCache(tmp_path, top_k=top_k)
        cached = train(make_domain(batches, test=test, objective="hinton_kd", teacher_cache=cache))
        if top_k is None:
            for name, weight in plain.items():
                torch.testing.assert_close(cached[name], weight, rtol=1e-4, atol=1e-5)
        (path,) = (
            path for path in tmp_path.rglob("*.safetensors") if ("rest" in load_file(path)) is (top_k is not None)
        )
        assert load_file(path)["positions"].tolist() == [6] * 24


def test_the_doctor_examines_the_objective_over_all_classes(tmp_path: Path, capsys) -> None:
    cache = TeacherCache(tmp_path, top_k=2)
    train(make_domain(objective="hinton_kd", options={"temperature": 2.0}, teacher_cache=cache), doctor=True)
    assert "doctor: hinton_kd" in capsys.readouterr().out


def test_samples_that_an_epoch_leaves_out_are_scored_too(tmp_path: Path) -> None:
    some = DataLoader(clouds(), batch_size=7, sampler=SubsetRandomSampler(range(0, 60, 2)), drop_last=True)
    train(make_domain(some, teacher_cache=tmp_path))
    assert len(load_file(next(tmp_path.rglob("*.safetensors")))["samples"]) == 60


# ---- inputs that do not repeat -------------------------------------------------------------------------------------


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self) -> None:
        self.data = clouds()

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        inputs, label = self.data[index]
        return inputs + 0.1 * torch.randn(CLASSES), label


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    """Samples in another order in each epoch, with or without noise."""

    def __init__(self, noise: float) -> None:
        self.noise = noise

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        data = clouds()
        for index in torch.randperm(len(data)).tolist():
            inputs, label = data[index]
            yield inputs + self.noise * torch.randn(CLASSES), label


def mix(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    inputs, labels = torch.utils.data.default_collate(samples)
    share, others = torch.rand(()), torch.randperm(len(inputs))
    targets = torch.eye(CLASSES)[labels]
    return share * inputs + (1 - share) * inputs[others], share * targets + (1 - share) * targets[others]


@pytest.mark.parametrize(
    "batches",
    [
        DataLoader(Augmented(), batch_size=8, shuffle=True),
        DataLoader(clouds(), batch_size=8, shuffle=True, collate_fn=mix),
    ],
    ids=["augmentation", "mixup"],
)
def test_inputs_that_change_are_refused_before_the_first_step(tmp_path: Path, batches) -> None:
    domain = make_domain(batches, teacher=None, teacher_cache=tmp_path)
    with pytest.raises(UserError, match=r"gives [78] of the first 8 samples with other inputs the second time"):
        next(domain.distill(1))
    assert not list(tmp_path.iterdir())


def pad(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """To the longest of the batch."""
    lengths = [1 + int(inputs[0, 0] > 0.5) + int(inputs[1, 0] > 0.5) for inputs, _ in samples]
    cut = [(inputs[:length], labels[:length]) for length, (inputs, labels) in zip(lengths, samples, strict=True)]
    inputs, labels = zip(*cut, strict=True)
    pack = nn.utils.rnn.pad_sequence
    return pack(list(inputs), batch_first=True), pack(list(labels), batch_first=True, padding_value=-100)


def test_what_is_padded_to_the_longest_of_a_batch_repeats_where_the_batches_do(tmp_path: Path) -> None:
    data = clouds(40, 3)
    with pytest.raises(UserError, match="samples with other inputs the second time"):
        next(make_domain(DataLoader(data, 6, shuffle=True, collate_fn=pad), teacher_cache=tmp_path).distill(1))
    train(make_domain(DataLoader(data, 6, collate_fn=pad), teacher_cache=tmp_path))
    positions = load_file(next(tmp_path.rglob("*.safetensors")))["positions"]
    assert len(positions) == 40
    assert len(positions.unique()) > 1


def test_a_stream_is_refused_in_the_first_batch_with_another_sample(tmp_path: Path) -> None:
    train(make_domain(DataLoader(Stream(0.0), batch_size=8), teacher_cache=tmp_path))
    domain = make_domain(DataLoader(Stream(0.1), batch_size=8), teacher_cache=tmp_path)
    with pytest.raises(UserError, match="8 of 8 samples have other inputs than those that the teacher scored") as error:
        train(domain)
    assert error.value.__notes__ == ["in batch 1 of epoch 1 of generation 1"]


def test_inputs_that_have_no_hash_are_refused(tmp_path: Path) -> None:
    inputs, labels = clouds(8).tensors
    with pytest.raises(ValueError, match=r"an input of shape \(3,\) has no entry for each of 8 samples"):
        hash_samples(read_batch((inputs, torch.zeros(3), labels)))
    with pytest.raises(TypeError, match="an input must be a tensor, for teacher_cache"):
        hash_samples(read_batch((inputs, object(), labels)))


def test_a_hash_is_of_the_inputs_of_a_sample_and_of_nothing_else() -> None:
    inputs, labels = clouds(8).tensors
    hashes = hash_samples(read_batch((inputs, labels)))
    assert len(set(hashes)) == 8
    assert {len(one) for one in hashes} == {32}
    assert hash_samples(read_batch((inputs.flip(0)[:3], labels[:3] * 0))) == hashes[::-1][:3]
    changed = inputs.clone()
    changed[2, 1] = changed[2, 1].nextafter(torch.tensor(9.0))
    found = hash_samples(read_batch((changed, labels)))
    assert [one != other for one, other in zip(found, hashes, strict=True)] == [number == 2 for number in range(8)]
    others = [
        (inputs.double(), labels),
        (inputs.unsqueeze(1), labels),
        ((inputs, inputs), labels),
        {"x": inputs, "labels": labels},
        {"y": inputs, "labels": labels},
        (inputs, 1.0, labels),
    ]
    assert len({bytes(hash_samples(read_batch(batch))[0]) for batch in others} - set(hashes)) == len(others)


def test_the_text_of_a_sample_is_one_of_its_inputs() -> None:
    inputs, labels = clouds(8).tensors
    names = list("abcdefgh")

    def hashes(names: list[str], rows: slice = slice(None)) -> list[bytes]:
        return hash_samples(read_batch({"x": inputs[rows], "names": names, "labels": labels[rows]}))

    assert hashes(names[2:5], slice(2, 5)) == hashes(names)[2:5]
    assert [one == other for one, other in zip(hashes(["a"] * 8), hashes(names), strict=True)] == [True, *[False] * 7]


def test_samples_come_in_their_order_whatever_a_loader_shuffles_and_nothing_is_drawn() -> None:
    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(clouds(), batch_size=8, shuffle=True, generator=generator)
    before = generator.get_state(), torch.get_rng_state()
    found = torch.cat([inputs for inputs, _ in all_samples(loader, 0)])
    assert torch.equal(found, clouds().tensors[0])
    assert torch.equal(before[0], generator.get_state())
    assert torch.equal(before[1], torch.get_rng_state())


# ---- stopped, and on a bad disk ------------------------------------------------------------------------------------


def make_scores(
    folder: Path, teacher: nn.Module | None = None, processes: Processes = ALONE, **form: Any
) -> TeacherScores:
    teacher = Teacher().eval() if teacher is None else teacher

    def score(module: nn.Module, batch: Batch) -> Tensor:
        return module(*batch.inputs).flatten(0, -2)

    return TeacherScores(teacher, TeacherCache(folder, **form), score, processes=processes, ignore_index=-100)


def stop_at(number: int) -> Callable[[str], None]:
    left = iter(range(number))

    def heed(what: str) -> None:
        if next(left, None) is None:
            raise Interrupted(15, f"stopped while {what}")

    return heed


def test_what_was_computed_before_a_stop_is_there_afterwards_and_the_bits_are_the_same(tmp_path: Path) -> None:
    batches = DataLoader(clouds(), batch_size=8, shuffle=True)
    with pytest.raises(Interrupted, match="stopped while the teacher's scores are computed"):
        make_scores(tmp_path / "stopped").fill(batches, stop_at(3))
    stopped = make_scores(tmp_path / "stopped")
    assert len(stopped.files) == 24
    stopped.fill(batches, stop_at(1000))
    unbroken = make_scores(tmp_path / "unbroken")
    unbroken.fill(batches, stop_at(1000))
    for given in batches:
        batch = read_batch(given)
        assert torch.equal(stopped.look_up(batch, CPU), unbroken.look_up(batch, CPU))
    assert len(list((tmp_path / "stopped").rglob("*.safetensors"))) == 2


def test_a_run_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after any step, and while the teacher is asked."""

    def make(folder: str, **form: Any) -> ModuleDomain:
        cache = TeacherCache(tmp_path / folder, **({"top_k": 2, "dtype": "float16"} | form))
        return make_domain(teacher=None, epochs=2, teacher_cache=cache, log_every_steps=1)

    unbroken = train(make("cold"), run=tmp_path / "unbroken")
    stops = 0
    while not (tmp_path / "broken" / "summary.json").exists():
        later = StopAt(3 + 2 * stops)
        monkeypatch.setattr(kept, "StopSignals", lambda later=later: later)
        with contextlib.suppress(Interrupted):
            train(make("stopped"), run=tmp_path / "broken")
        stops += 1
    assert stops > 4
    monkeypatch.undo()
    assert_same_bits(train(make("stopped"), run=tmp_path / "broken"), unbroken)
    assert_same_bits(train(make("cold"), run=tmp_path / "warm"), unbroken)
    with pytest.raises(UserError, match="teacher_cache"):
        train(make("cold", dtype="float32"), run=tmp_path / "warm")


def test_a_full_disk_is_one_line_and_what_was_written_is_read_again(tmp_path: Path, monkeypatch) -> None:
    batches = DataLoader(clouds(), batch_size=8)
    monkeypatch.setattr("polydistill.modules.teacher_scores.FILE_BYTES", 8 * CLASSES * 4)  # two batches

    def fill_up(descriptor: int) -> None:
        if len(list(tmp_path.rglob("*.safetensors"))) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(os, "fsync", fill_up)
        with pytest.raises(UserError, match=r"cannot write .*: No space left on device"):
            make_scores(tmp_path).fill(batches, stop_at(1000))
    teacher = Teacher().eval()
    scores = make_scores(tmp_path, teacher)
    assert len(scores.files) == 32
    scores.fill(batches, stop_at(1000))
    assert len(scores.files) == 60
    assert teacher.asked == 8 + 28


def test_a_disk_without_room_is_refused_before_it_is_full(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(UserError, match=r"the run needs about .* MB more in .*; make room"):
        make_scores(tmp_path).fill(DataLoader(clouds(), batch_size=8), stop_at(1000))


@pytest.mark.parametrize("new_ones_first", [False, True])
def test_room_is_demanded_only_for_what_cannot_be_there(tmp_path: Path, monkeypatch, capsys, new_ones_first) -> None:
    """A sample takes 60 bytes, and 20 of these 80 are new. Of which a folder's are is not known before."""
    batches = [list(DataLoader(clouds(n), batch_size=10)) for n in (60, 20)]
    make_scores(tmp_path).fill(batches[0], stop_at(1000))
    source = batches[1] + batches[0] if new_ones_first else batches[0] + batches[1]
    capsys.readouterr()
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=20 * 60 - 1))
    with pytest.raises(UserError, match="make room"):
        make_scores(tmp_path).fill(source, stop_at(1000))
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=20 * 60))
    make_scores(tmp_path).fill(source, stop_at(1000))
    assert f"takes up to {5 if new_ones_first else 2} KB more" in capsys.readouterr().err
    assert len(make_scores(tmp_path).files) == 80


def test_how_much_disk_it_takes_is_said_before(tmp_path: Path, capsys) -> None:
    make_scores(tmp_path).fill(DataLoader(clouds(), batch_size=8), stop_at(1000))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path}/")
    assert "takes up to 4 KB more; " in line
    make_scores(tmp_path).fill(DataLoader(clouds(), batch_size=8), stop_at(1000))
    assert capsys.readouterr().err == ""


def test_scores_that_are_not_finite_are_told_and_not_kept(tmp_path: Path) -> None:
    """Those of padding may be anything, and -inf is a class that a teacher leaves out."""
    inputs, labels = clouds(4).tensors
    teacher = nn.Linear(CLASSES, CLASSES).eval()
    bad = inputs.index_fill(0, torch.tensor([1, 2]), torch.nan)
    with pytest.raises(
        FloatingPointError, match="the teacher's scores of 2 of 4 samples of a batch are NaN or infin"
    ) as error:
        make_scores(tmp_path, teacher).fill([(inputs, labels), (bad, labels)], stop_at(1000))
    assert error.value.__notes__ == ["in batch 2 while the teacher's scores are computed"]
    with pytest.raises(FloatingPointError, match="scores of 2 of 4 positions of a batch"):
        make_scores(tmp_path, teacher).fill([(bad.view(2, 2, -1), labels.view(2, 2))], stop_at(1000))
    scores = make_scores(tmp_path, teacher)
    assert len(scores.files) == 4
    scores.fill([(bad, labels.index_fill(0, torch.tensor([1, 2]), -100))], stop_at(1000))
    assert len(scores.files) == 5, "the two are one sample, and the others are there"
    with torch.no_grad():
        teacher.bias[0] = -torch.inf
    make_scores(tmp_path, teacher).fill([(inputs, labels)], stop_at(1000))


# ---- several programs, and several processes of one -----------------------------------------------------------------


def test_of_two_programs_that_compute_the_same_sample_the_first_to_write_is_heard(tmp_path: Path) -> None:
    one, other = ScoreFiles(tmp_path, "a key"), ScoreFiles(tmp_path, "a key")
    names = [letter.encode() * 32 for letter in "abc"]
    one.write(names[:2], [1, 2], {"scores": torch.ones(3, 2)})
    other.write(names[1:], [2, 1], {"scores": torch.zeros(3, 2)})
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    one.refresh()
    for files in (one, other, ScoreFiles(tmp_path, "a key")):
        assert files.read(names)["scores"][:, 0].tolist() == [1, 1, 1, 0]
    other.write(names[:1], [1], {"scores": torch.zeros(1, 2)})
    assert sum(len(load_file(path)["samples"]) for path in tmp_path.glob("*.safetensors")) == 3


FILLING = """
import sys, time
from tests.modules import test_teacher_scores as tests
folder, size = tests.Path(sys.argv[1]), int(sys.argv[2])
tests.teacher_scores.FILE_BYTES = 1
scores, batches = tests.make_scores(folder / "scores"), tests.DataLoader(tests.clouds(600), size)
write = tests.ScoreFiles.write

def write_and_wait(*given):  # for the first file of the other, which on a busy machine may be late
    write(*given)
    (folder / f"wrote_{size}").touch()
    while len(list(folder.glob("wrote_*"))) < 2:
        time.sleep(0.0001)

tests.ScoreFiles.write = write_and_wait
(folder / f"ready_{size}").touch()
while not (folder / "start").exists():
    time.sleep(0.0001)
scores.fill(batches, lambda what: None)
"""


def test_two_programs_that_fill_a_folder_at_once_leave_one_of_each_sample(root: Path, tmp_path: Path) -> None:
    """They begin together, and the batches of one are not those of the other: nor would their files be."""
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    programs = [
        subprocess.Popen([sys.executable, "-c", FILLING, str(tmp_path), size], cwd=root, env=environment)
        for size in ("4", "6")
    ]
    while len(list(tmp_path.glob("ready_*"))) < 2:
        time.sleep(0.005)
        assert not any(program.poll() for program in programs)
    (tmp_path / "start").touch()
    assert [program.wait(240) for program in programs] == [0, 0]
    files = [load_file(path)["samples"] for path in tmp_path.rglob("*.safetensors")]
    assert {path.name for path in tmp_path.glob("wrote_*")} == {"wrote_4", "wrote_6"}
    samples = torch.cat(files)
    assert len(samples) == len(samples.unique(dim=0)) == 600


def fill_together(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, source: Sequence[Any] = ()
) -> list[TeacherScores]:
    """What two processes do, in two threads that wait for each other."""
    there = threading.Barrier(2, timeout=60)

    class Both(Processes):
        def wait(self) -> None:
            there.wait()

        def sum_(self, values: Tensor) -> Tensor:
            return values

    for name in ("check_alike", "are_alike"):
        monkeypatch.setattr(teacher_scores, name, lambda *given: True)
    found = [make_scores(folder, Teacher().eval(), Both(rank, 2)) for rank, folder in enumerate(folders)]
    with seeded(0), ThreadPoolExecutor(2) as pool:  # each thread leaves the generators as it found them: the other's
        source = source or [(inputs, labels) for inputs, labels in DataLoader(clouds(), batch_size=8)]
        list(pool.map(lambda scores: scores.fill(source, lambda what: None), found))
    return found


def test_processes_divide_the_work_and_leave_the_bits_of_one(tmp_path: Path, monkeypatch) -> None:
    both = fill_together((tmp_path / "both", tmp_path / "both"), monkeypatch)
    assert [scores.teacher.asked for scores in both] == [32, 8 + 28]  # the first batch is for both
    alone = make_scores(tmp_path / "alone")
    alone.fill(DataLoader(clouds(), batch_size=8), stop_at(1000))
    batch = read_batch(clouds()[:])
    for scores in both:
        assert torch.equal(scores.look_up(batch, CPU), alone.look_up(batch, CPU))


def test_of_a_sample_in_batches_of_two_processes_the_first_batch_is_asked(tmp_path: Path, monkeypatch) -> None:
    """By one process, whichever writes first."""
    inputs, labels = clouds(24).tensors
    source = [(inputs[start : start + 8], labels[start : start + 8]) for start in (0, 8, 16)]
    source = [source[0], source[1], source[0], source[2], source[1], source[0]]
    both = fill_together((tmp_path, tmp_path), monkeypatch, source)
    assert [scores.teacher.asked for scores in both] == [8, 8 + 16]
    assert sum(len(load_file(path)["samples"]) for path in tmp_path.rglob("*.safetensors")) == 24


def test_a_folder_that_the_processes_do_not_share_is_refused(tmp_path: Path, monkeypatch) -> None:
    told = r"process 0 does not find the scores of 28 samples .*: teacher_cache must be a folder that all processes sh"
    with pytest.raises(UserError, match=told):
        fill_together((tmp_path / "one", tmp_path / "other"), monkeypatch)


# ---- files that are not what they should be ------------------------------------------------------------------------


def filled(folder: Path) -> Path:
    make_scores(folder).fill(DataLoader(clouds(), batch_size=8), stop_at(1000))
    return next(folder.rglob("*.safetensors"))


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    path = filled(tmp_path)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"\.safetensors is damaged: remove it, and its scores are computed again"):
        make_scores(tmp_path)


@pytest.mark.parametrize("left", [0, 4, 100, -1])
def test_a_cut_file_is_one_line(tmp_path: Path, left: int) -> None:
    path = filled(tmp_path)
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(UserError, match=r"\.safetensors is damaged or cut: remove it"):
        make_scores(tmp_path)
    path.unlink()
    filled(tmp_path)


def test_a_foreign_file_is_one_line(tmp_path: Path) -> None:
    path = filled(tmp_path)
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(UserError, match="holds something else than this teacher's scores"):
        make_scores(tmp_path)
    with pytest.raises(UserError, match="holds something else than this teacher's scores"):
        ScoreFiles(path.parent, "another key")


def test_what_another_run_is_writing_stays_and_what_a_kill_left_goes(tmp_path: Path) -> None:
    files = ScoreFiles(tmp_path, "a key")
    new, old = tmp_path / ".a.safetensors.1.tmp", tmp_path / ".b.safetensors.2.tmp"
    for path in (new, old):
        path.write_bytes(b"part")
    os.utime(old, (0, 0))
    files.write([b"x" * 32], [1], {"scores": torch.zeros(1, 2)})
    assert (new.exists(), old.exists()) == (True, False)


def test_a_temporary_file_that_goes_by_itself_is_no_mistake(tmp_path: Path, monkeypatch) -> None:
    """Of another program, which has just finished it."""
    path = tmp_path / ".a.safetensors.1.tmp"
    path.write_bytes(b"part")

    def is_temporary(name: str) -> bool:
        path.unlink(missing_ok=True)
        return name == path.name

    monkeypatch.setattr(score_files, "is_temporary", is_temporary)
    files = ScoreFiles(tmp_path, "a key")
    files.write([b"x" * 32], [1], {"scores": torch.zeros(1, 2)})
    assert len(files) == 1


def test_probabilities_at_another_temperature_have_other_files(tmp_path: Path) -> None:
    for temperature in (1.0, 2.0):
        options = {"temperature": temperature}
        train(make_domain(objective="hinton_kd", options=options, teacher_cache=TeacherCache(tmp_path, top_k=2)))
    assert len(list(tmp_path.iterdir())) == 2


def test_another_teacher_has_other_files_and_one_that_does_something_else_is_refused(tmp_path: Path) -> None:
    filled(tmp_path)
    other = Teacher()
    nn.init.ones_(other.linear.bias)
    assert not len(make_scores(tmp_path, other).files)
    same_weights = Teacher(shift=1.0)
    with pytest.raises(UserError, match="holds scores that this teacher does not give, though its weights"):
        make_scores(tmp_path, same_weights).fill(DataLoader(clouds(), batch_size=8), stop_at(1000))


@pytest.mark.parametrize(
    ("given", "kind", "told"),
    [
        ({"teacher_cache": True}, TypeError, "`teacher_cache` must be a folder or a TeacherCache, got True"),
        (
            {"teacher_cache": TeacherCache("a", top_k=3), "objective": "dkd"},
            ValueError,
            "top_k is for the objectives ban",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(given, kind, told) -> None:
    with pytest.raises(kind, match=told):
        make_domain(**given)


@pytest.mark.parametrize(
    ("form", "kind", "told"),
    [
        ({"top_k": 0}, ValueError, "top_k must be at least 1, got 0"),
        ({"top_k": 1.5}, TypeError, "top_k must be an integer"),
        ({"dtype": "float61"}, ValueError, "unknown dtype 'float61'; did you mean float16"),
        ({"folder": 3}, TypeError, "must be a folder or a TeacherCache"),
    ],
)
def test_a_form_that_there_is_not_is_refused(form, kind, told) -> None:
    with pytest.raises(kind, match=told):
        TeacherCache(**{"folder": "a", **form})
