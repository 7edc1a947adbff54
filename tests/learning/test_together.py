"""polydistill.learning.together: runs in threads that wait for each other's steps, and in nothing else."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from polydistill.learning.together import Command, Table, once, split_outputs, table_here


class Student:
    """Counts its steps, and notes with whom they were made."""

    def __init__(self, name: str, steps: int, kind: Hashable = "a", ahead: int = 0) -> None:
        self.name, self.left, self.kind, self.ahead = name, steps, kind, ahead
        self.made: list[str] = []

    @property
    def progress(self) -> tuple[int, int]:
        return 0, len(self.made) + self.ahead

    def kind_of_step(self, diagnose: bool, *inputs: Tensor) -> Hashable | None:
        return self.kind

    def make_alone(self, diagnose: bool, *inputs: Tensor) -> None:
        self.made.append(self.name)

    def learn(self) -> int:
        table = table_here()
        assert table is not None
        while self.left:
            table.meet(self, False)
            self.left -= 1
        table.leave()
        return 0


class Joint:
    """Makes their steps together; note of what was released when."""

    released: list[str]

    def __init__(self, students: Sequence[Student]) -> None:
        self.students = students

    def make(self, diagnose: bool, inputs: Sequence[Sequence[Tensor]]) -> None:
        assert threading.current_thread() is threading.main_thread()
        names = "".join(student.name for student in self.students)
        for student in self.students:
            student.made.append(names)

    def release(self) -> None:
        Joint.released.append("".join(student.name for student in self.students))


class CannotBeReleased(Joint):
    def release(self) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


@pytest.fixture(autouse=True)
def nothing_released() -> None:
    Joint.released = []


def run(*students: Student) -> Table:
    table = Table(Joint)
    assert table.run([student.learn for student in students]) == [0] * len(students)
    return table


def test_steps_are_made_together_and_the_last_ones_alone() -> None:
    a, b, c = Student("a", 5), Student("b", 3), Student("c", 3)
    table = run(a, b, c)
    assert a.made == ["abc"] * 3 + ["a"] * 2
    assert b.made == c.made == ["abc"] * 3
    assert (table.together, table.alone) == (9, 2)
    assert Joint.released == ["abc"]


def test_steps_of_another_kind_and_those_of_none_are_made_apart() -> None:
    students = [Student("a", 2), Student("b", 2, "b"), Student("c", 2), Student("d", 2, None), Student("e", 2, None)]
    run(*students)
    assert [student.made[0] for student in students] == ["ac", "b", "ac", "d", "e"]


def test_one_that_is_behind_catches_up(capsys: pytest.CaptureFixture[str]) -> None:
    students = [Student("a", 5), Student("b", 3, ahead=2), Student("c", 3, ahead=2)]
    Table(Joint).run([student.learn for student in students], each_time=lambda: print("now"))
    assert [student.made for student in students] == [["a", "a", *["abc"] * 3], ["abc"] * 3, ["abc"] * 3]
    assert capsys.readouterr().out == "now\n" * 9, (
        "before each of the steps, when one has made its last, and at the end"
    )


def test_what_each_time_tells_all_see_at_the_same_step() -> None:
    at_their_ends: list[str] = []  # of generation 0
    told: list[bool] = []
    seen: list[tuple[int, int]] = []

    def learn_twice(name: str) -> int:
        table = table_here()
        assert table is not None
        for generation in range(2):
            student = Student(name, 2)
            while student.left and not told:
                table.meet(student, False)
                student.left -= 1
            if not student.left:
                at_their_ends.append(name)
                table.leave()
            if told:
                seen.append((generation, len(student.made)))
                return 143
        return 0

    def tell() -> None:
        if len(at_their_ends) == 2:  # one of them waits for its first step of generation 1
            told.append(True)

    assert Table(Joint).run([lambda: learn_twice("a"), lambda: learn_twice("b")], each_time=tell) == [143, 143]
    assert seen == [(1, 1), (1, 1)]


def test_the_next_generation_of_the_same_runs_is_joined_anew() -> None:
    def learn_twice(name: str, made: list[Student]) -> int:
        for _ in range(2):
            made.append(Student(name, 2))
            made[-1].learn()
        return 0

    of_a: list[Student] = []
    of_b: list[Student] = []
    assert Table(Joint).run([lambda: learn_twice("a", of_a), lambda: learn_twice("b", of_b)]) == [0, 0]
    assert [student.made for student in of_a + of_b] == [["ab", "ab"]] * 4


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("joint", [Joint, CannotBeReleased])
def test_a_run_that_fails_leaves_and_the_others_go_on(joint: type[Joint]) -> None:
    a, b = Student("a", 3), Student("b", 3)

    def fail() -> int:
        raise OSError("no folder")

    def fail_later() -> int:
        table = table_here()
        assert table is not None
        table.meet(Student("c", 1), False)
        return 7

    table = Table(joint)
    assert table.run([a.learn, b.learn, fail, fail_later])[2:] == [1, 7]
    assert table.size == 4
    if joint is Joint:
        assert a.made == b.made == ["abc", "ab", "ab"]


def test_each_student_learns_with_as_many_threads_as_its_run_has() -> None:
    seen: list[tuple[str, int]] = []

    class Threaded(Student):
        def make_alone(self, diagnose: bool, *inputs: Tensor) -> None:
            seen.append((self.name, torch.get_num_threads()))

        def learn(self) -> int:
            torch.set_num_threads(2 if self.name == "b" else 1)
            return super().learn()

    before = torch.get_num_threads()
    try:
        run(Threaded("a", 1), Threaded("b", 1))
    finally:
        torch.set_num_threads(before)
    assert seen == [("a", 1), ("b", 2)], "and their steps are no longer of one kind"


def test_what_a_step_raises_each_of_its_runs_is_told() -> None:
    class Bad(Joint):
        def make(self, diagnose: bool, inputs: Sequence[Sequence[Tensor]]) -> None:
            raise ValueError("no memory")

    told = []

    def learn(student: Student) -> Callable[[], int]:
        def learns() -> int:
            try:
                student.learn()
            except ValueError as error:
                told.append(f"{student.name}: {error}")
                return 1
            return 0

        return learns

    others = Student("c", 2, "other")
    assert Table(Bad).run([learn(Student("a", 2)), learn(Student("b", 2)), learn(others)]) == [1, 1, 0]
    assert sorted(told) == ["a: no memory", "b: no memory"]
    assert others.made == ["c", "c"]


def test_a_fault_of_one_run_alone_is_told_to_it_and_the_others_go_on() -> None:
    class Unkind(Student):
        def kind_of_step(self, diagnose: bool, *inputs: Tensor) -> Hashable | None:
            if len(self.made) == 1:
                raise ValueError("cannot be looked at")
            return super().kind_of_step(diagnose, *inputs)

    students = [Student("a", 3), Unkind("b", 3), Student("c", 3)]
    told = []

    def fails() -> int:
        try:
            return students[1].learn()
        except ValueError as error:
            told.append(str(error))
            return 1

    assert Table(Joint).run([students[0].learn, fails, students[2].learn]) == [0, 1, 0]
    assert told == ["cannot be looked at"]
    assert [student.made for student in students] == [["abc", "ac", "ac"], ["abc"], ["abc", "ac", "ac"]]


def test_what_is_made_once_is_the_same_for_all() -> None:
    found: list[object] = []

    def ask() -> int:
        found.append(once("images", object))
        return 0

    Table(Joint).run([ask, ask])
    assert found[0] is found[1]
    assert table_here() is None
    assert once("images", object) is not once("images", object)


def test_each_command_prints_into_its_own_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def talk(words: list[str]) -> None:
        print(f"out {words[0]}")
        print(f"err {words[0]}", file=sys.stderr)
        Student("a", 1).learn()
        print("later", end="")
        if words[0] == "bad":
            raise SystemExit("a reason")
        if words[0] == "worse":
            raise KeyError("a bug")

    commands = [Command(talk, [word], tmp_path / "logs" / f"{word}.txt") for word in ("good", "bad", "worse")]
    (tmp_path / "file").touch()
    nowhere = [Command(talk, ["good"], Path("/dev/full")), Command(talk, ["good"], tmp_path / "file" / "log.txt")]
    before = sys.stdout, sys.stderr
    with split_outputs():
        codes = Table(Joint).run([*commands, *nowhere])
        print("mine")
    assert (sys.stdout, sys.stderr) == before
    assert codes == [0, 1, 1, 2, 2]
    logs = [command.log.read_text() for command in commands]
    assert logs[0] == "out good\nerr good\nlater"
    assert logs[1].startswith("out bad\nerr bad\nlater")
    assert "a reason" in logs[1], "as Python prints what sys.exit was given"
    assert logs[2].endswith("KeyError: 'a bug'\n")
    printed = capsys.readouterr()
    assert printed.out == "mine\n"
    assert sorted(printed.err.splitlines()) == [
        "error: cannot write /dev/full: No space left on device",
        f"error: cannot write {tmp_path / 'file' / 'log.txt'}: File exists",
    ]
