"""What a sweep says: the smallest student that keeps enough, with the interval that belongs to it."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from polydistill.statistics import Interval
from polydistill_agents.lineage.compression.answer import Kept, choose, notes, say
from polydistill_agents.lineage.compression.page import Sweep, format_sweep, write_sweep
from polydistill_agents.lineage.compression.weighing import Weighed, Weight


def kept(name: str, share: float | None, half: float = 0.03, runs: int = 1) -> Kept:
    interval = None if share is None else Interval(share - half, share + half)
    return Kept(name, 20.0, share, interval, runs, 30, Path("nowhere"))


def weight(parameters: int, seconds: float, ending: str = ".zip") -> Weight:
    times = {"DQN.load": (1e-4, 1e-5)} if ending == ".zip" else {}
    return Weight(
        parameters, 2 * parameters, {ending: 100, ".safetensors": 50}, {**times, "as_teacher": (seconds, 1e-6)}
    )


WEIGHED = Weighed(
    weight(100_000, 2.4e-4),
    {"twin": weight(100_000, 2.4e-4), "net2": weight(8_000, 5e-5), "net3": weight(4_100, 3.1e-5)},
    "a processor",
)
ALL = [kept("twin", 1.0), kept("net2", 0.96), kept("net3", 0.97)]


def test_the_answer_is_the_smallest_student_that_keeps_enough() -> None:
    assert say(ALL, WEIGHED, 0.95) == [
        "net3, a student of 4.1% of the parameters, keeps 0.97 (0.94 to 1.00 over 30 games of one seed) of the score "
        "and answers in 31 us instead of 240 us.",
        "It is the smallest of 3 sizes, so a smaller one may keep 0.95, too (--sizes).",
    ]
    assert say([*ALL[:2], kept("net3", 0.9)], WEIGHED, 0.95)[1] == (
        "It is the smallest of 3 sizes that keeps at least 0.95."
    )
    assert choose(ALL, WEIGHED, 0.99) == ALL[0]


def test_where_none_keeps_enough_it_is_the_best_and_says_so() -> None:
    few = [kept("net2", 0.7, runs=5), kept("net3", 0.2, runs=5)]
    sentences = say(few, WEIGHED, 0.95)
    assert sentences[0].startswith("net2, a student of 8.0% of the parameters, keeps 0.70 (0.67 to 0.73 over 5 seeds)")
    assert sentences[1] == "It keeps the most of 2 sizes: none keeps 0.95."


def test_a_teacher_at_chance_and_too_few_games_have_an_answer_too() -> None:
    assert say([kept("net3", None)], WEIGHED, 0.95) == [
        "The teacher scores no more than random play, so no student can keep a share of it."
    ]
    alone = kept("net3", 0.97)._replace(interval=None, games=2)
    assert say([alone], WEIGHED, 0.95)[0].startswith(
        "net3, a student of 4.1% of the parameters, keeps 0.97 of the score"
    )


def test_the_notes_name_what_is_larger_and_what_stock_cannot_open() -> None:
    weighed = WEIGHED._replace(students={"huge": weight(200_000, 1e-3, ".safetensors")})
    found = "\n".join(notes([kept("huge", 1.0)], weighed))
    assert "Larger than the teacher: huge." in found
    assert "in a compact file alone: huge." in found
    assert "chosen by the same games" not in found, "there was nothing to choose from"


def test_the_files_of_a_sweep_are_whole_and_always_the_same(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra study is not installed")
    sweep = Sweep("pong", ALL, 20.5, WEIGHED, 0.95, ["net1, seed 0, is not in: ended"], "the $ command")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_sweep(tmp_path / name, sweep)
    for file in ("report.html", "sizes.csv", "sizes.png", "sizes.svg"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    page = (tmp_path / "a" / "report.html").read_text()
    assert page.count("<svg") == 2
    assert "net3, a student of 4.1% of the parameters" in page
    assert "net1, seed 0, is not in: ended." in page
    assert "http" not in page.replace("http://www.w3.org/", ""), "it asks for nothing else"
    assert (tmp_path / "a" / "sizes.png").read_bytes().startswith(b"\x89PNG")
    picture = (tmp_path / "a" / "sizes.svg").read_text()
    assert "#0a000" not in picture + page, "the colours that stand for the page's"
    assert all(f">{name}<" in picture for name in ("twin", "net2", "net3", "teacher"))
    rows = list(csv.DictReader((tmp_path / "a" / "sizes.csv").read_text().splitlines()))
    assert [row["size"] for row in rows] == ["teacher", "twin", "net2", "net3"]
    assert float(rows[3]["kept_low"]) == pytest.approx(0.94)
    assert float(rows[3]["as_teacher_ms_of_1"]) == pytest.approx(0.031)
    assert (
        "| net3    |      4,100 |         4.1% | 20.00 |      0.970 | 0.940 to 1.000 |        1 x 30 |"
        in format_sweep(sweep)
    )
