"""polydistill.study.report: what a reader finds, in the same bytes each time, whatever is missing or oddly named."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polydistill import _environment
from polydistill.study.analysis import analyse
from polydistill.study.plan import Amendment, Arm, Plan
from polydistill.study.records import TEACHER, RunRecord

pytest.importorskip("scipy", reason="the extra study is not installed")
pytest.importorskip("matplotlib", reason="the extra study is not installed")

from matplotlib.figure import Figure

from polydistill.report.document import Table
from polydistill.study.report import write_report
from polydistill.study.report.latex import render_latex
from polydistill.study.report.markdown import escape
from polydistill.study.report.pictures import Row, draw_curves, draw_pair, draw_points
from polydistill.study.report.published import published_values
from polydistill.study.report.tables import main_table

FILES = ("report.html", "report.md", "table.tex", "methods.txt")
NASTY = r'<script>alert("1")</script> & \input{x} $x_1^2$ | 100% `~# '


def make_plan(names: Sequence[str] = ("labels", "ban", "ban_2"), seeds: int = 4) -> Plan:
    def config(objective: str) -> dict[str, object]:
        network = {"network": "densenet-112-33", "path": ""}
        student = {"network": "teacher", "objective": objective, "repeat": 0}
        return {"data": {"name": "cifar100", "train_images": 0}, "teacher": network, "student": student}

    arms = [Arm(names[0], {"student.objective": "cross_entropy"}, TEACHER, config("cross_entropy"))]
    arms += [Arm(name, {"student.objective": "ban"}, TEACHER, config("ban")) for name in names[1:2]]
    arms += [Arm(name, {"student.objective": "ban"}, names[1], config("ban")) for name in names[2:]]
    return Plan(
        world="cifar",
        base={},
        arms=tuple(arms),
        teacher=config("ban"),
        contrasts=((names[1], names[0]),),
        seeds=tuple(range(seeds)),
        metric="test_error",
        direction="lower",
        margin=0.5,
        alpha=0.05,
        commit="c0ffee",
    )


def make_records(plan: Plan) -> list[RunRecord]:
    generator = np.random.default_rng(0)
    records = []
    for seed in plan.seeds:
        for arm in (TEACHER, *plan.names):
            error = 20.0 + generator.normal()
            metrics = {"test_error": error, "test_accuracy": 1 - error / 100, "test_nll": 0.9, "agreement": 0.8}
            records.append(RunRecord(arm, seed, f"runs/{arm}/seed{seed}", "done", metrics, {}, seconds=60.0))
    return records


def write(out: Path, plan: Plan, records: Sequence[RunRecord]) -> dict[str, str]:
    out.mkdir(exist_ok=True)
    write_report(out, plan, records, analyse(plan, records))
    return {name: (out / name).read_text(encoding="utf-8") for name in FILES}


def keep_runs(out: Path, records: Sequence[RunRecord]) -> None:
    """The folders of the runs with their summaries and curves."""
    for record in records:
        folder = out / record.folder
        folder.mkdir(parents=True)
        summary = {
            "schema": 1,
            "kind": "cifar",
            "generations": [],
            "command": f"python scripts/distill_cifar.py --seed {record.seed} --out {record.folder}",
            "hardware": {"cpu": "Some CPU", "cores": 2, "gpu": None},
            "git": {"commit": "f00d", "dirty": False},
            "versions": {"torch": "2.13.0"},
            "data": {"test": {"images": 10000, "sha256": "ac849b"}},
        }
        (folder / "summary.json").write_text(json.dumps(summary))
        lines = [{"role": "generation_1", "step": step, "values": {"distill/label_share": 0.5}} for step in (0, 100)]
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))


class Text(HTMLParser):
    """What a reader sees, without the pictures, and all tags that there are."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def read_page(html: str) -> Text:
    page = Text()
    page.feed(html)
    return page


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    plan = make_plan()
    records = make_records(plan)
    for name in ("once", "again"):
        keep_runs(tmp_path / name, records)
    once, again = write(tmp_path / "once", plan, records), write(tmp_path / "again", plan, records[::-1])
    assert once == again


def test_the_page_opens_with_the_answer_and_has_every_part(tmp_path: Path) -> None:
    plan = make_plan()
    records = make_records(plan)
    keep_runs(tmp_path, records)
    page = read_page(write(tmp_path, plan, records)["report.html"])
    answer = analyse(plan, records).answer[0]
    assert page.text.split("Study of 3 arms over 4 seeds (cifar)")[2].strip().startswith(answer)
    for part in (
        "The planned contrasts",
        "What pairing by seed gained",
        "The arms",
        "Agreement against gain",
        "Generation after generation",
        "Where the gradient comes from",
        "Exploratory",
        "What this study cannot say",
        "Methods, ready to paste",
        "16 runs are done",
        plan.sha256,
        "Some CPU, 2 cores, no GPU; commit f00d; torch 2.13.0 (16 runs)",
        "test: 10000 inputs, sha256 ac849b",
        "python scripts/distill_cifar.py --seed 0 --out runs/ban/seed0",
    ):
        assert part in page.text
    assert page.tags.count("svg") == 6  # gains, one pair, arms, agreement, generations, gradient


def test_the_page_asks_for_nothing_else(tmp_path: Path) -> None:
    plan = make_plan()
    html = write(tmp_path, plan, make_records(plan))["report.html"]
    assert not {"script", "link", "img", "iframe", "object"} & set(read_page(html).tags)
    assert re.findall(r'(?:href|src)="(?!#)|url\((?!#)|@import', html) == []


def test_every_picture_is_well_formed_and_keeps_its_identifiers_to_itself(tmp_path: Path) -> None:
    plan = make_plan()
    html = write(tmp_path, plan, make_records(plan))["report.html"]
    pictures = re.findall(r"<svg .*?</svg>", html, re.DOTALL)
    identifiers = [set(re.findall(r'id="([^"]+)"', picture)) for picture in pictures]
    assert len(set.union(*identifiers)) == sum(map(len, identifiers))
    for picture in pictures:
        ElementTree.fromstring(picture)
        assert "#0a00" not in picture
        assert "#0b00" not in picture
        assert "var(--ink)" in picture
        assert "DejaVu" not in picture


def test_a_long_label_stays_within_its_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    label, gains = "play needed to reach 0.95 of the teacher, steps", Row("", [1.0, 2.0], 1.5, None)
    outside: list[str] = []

    class Watched(Figure):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options, dpi=72)  # as SVG is drawn

        def savefig(self, *words: Any, **options: Any) -> None:
            super().savefig(*words, **options)
            for axes in self.axes:
                box = axes.yaxis.label.get_window_extent()
                if not (box.x0 >= 0 and box.y0 >= 0 and box.y1 <= self.bbox.height):
                    outside.append(axes.yaxis.label.get_text())

    monkeypatch.setattr("matplotlib.figure.Figure", Watched)
    draw_pair(("a", "b"), [(100.0, 800.0), (200.0, 700.0)], gains, label, "gain in steps")
    draw_points({"a": [(0.5, 100.0), (0.7, 800.0)]}, "agreement", label)
    draw_curves([[100.0, 800.0]], [gains, gains], label, "generation")
    assert not outside


def test_names_of_users_are_text_and_nothing_else(tmp_path: Path) -> None:
    plan = make_plan(("labels", NASTY, "ban_2"))
    records = [
        replace(record, why=NASTY, status="failed") if record.seed == 3 else record for record in make_records(plan)
    ]
    written = write(tmp_path, plan, records)
    page = read_page(written["report.html"])
    assert "script" not in page.tags
    assert NASTY.strip() in page.text
    assert "<script" not in written["report.md"].replace(r"\<", "")
    row = next(line for line in written["table.tex"].splitlines() if "against" in line)
    assert re.sub(r"\\(?:[{}&%$#_\\]|text\w+\{\}|char34\{\})", "", row.replace(r" \\", "")).count("&") == 5
    assert r"\input" not in row


def test_missing_and_failed_runs_are_in_the_first_lines(tmp_path: Path) -> None:
    plan = make_plan()
    records = make_records(plan)
    records = [record for record in records if record.key != ("labels", 1)]
    records = [
        replace(record, status="failed", why="out of memory", metrics={})
        if record.key in {("ban", 0), ("ban", 2)}
        else record
        for record in records
    ]
    written = write(tmp_path, plan, records)
    lines = [line for line in written["report.md"].splitlines() if line]
    assert lines[1].startswith("**3 of 16 runs are not in: 2 failed, 1 missing.")
    assert lines[2:4] == ["- labels: seed 1 missing", "- ban: seeds 0, 2 failed (out of memory)"]
    assert lines[4].startswith("ban against labels: nothing can be said, one seed gives no interval.")
    assert "3 of 16 runs are not in" in read_page(written["report.html"]).text


def test_runs_that_never_got_there_are_counted_in_the_first_lines_and_in_the_table(tmp_path: Path) -> None:
    plan = replace(make_plan(), metric="steps_to_95", margin=None)
    records = [
        RunRecord(arm, seed, f"runs/{arm}/seed{seed}", "done", {"steps_to_95": steps, "reached_95": steps < 600.0})
        for seed in plan.seeds
        for arm, steps in (("labels", 600.0 if seed else 400.0), ("ban", 200.0 + 50 * seed), ("ban_2", 300.0))
    ]
    text = write(tmp_path, plan, records)["report.md"]
    opening = text.partition("## ")[0]
    assert "Some runs never got there (labels: 3 of 4)" in opening
    assert "restricted means" in opening
    assert "of the play needed to reach 0.95 of the teacher up to the end of the run" in opening
    rows = {line.split("|")[1].strip(): line.split("|")[5].strip() for line in text.splitlines() if line.count("|") > 5}
    assert (rows["arm"], rows["labels"], rows["ban"]) == ("never reached", "3", "0")

    reached = [replace(record, metrics=record.metrics | {"reached_95": 1.0}) for record in records]
    assert "Some runs never got there" not in write(tmp_path, plan, reached)["report.md"]


def test_a_study_of_which_nothing_is_done_still_has_a_report(tmp_path: Path) -> None:
    plan = make_plan()
    written = write(tmp_path, plan, [])
    assert "16 of 16 runs are not in: 16 missing" in written["report.md"]
    assert "ban against labels: nothing can be said, no seed has finished both." in written["report.md"]
    assert "svg" not in read_page(written["report.html"]).tags


def test_seeds_that_were_added_and_plans_made_afterwards_are_said_first(tmp_path: Path) -> None:
    plan = make_plan()
    added = replace(plan, seeds=(0, 1), amendments=(Amendment((2, 3), 8, "2026-01-02T03:04:05+00:00"),))
    lines = write(tmp_path, added, make_records(plan))["report.md"].splitlines()
    assert lines[2].startswith("**2 seeds were added on 2026-01-02T03:04:05+00:00, when 8 runs were finished.")
    found = write(tmp_path, replace(plan, found=True, contrasts=()), make_records(plan))
    assert "nothing was named beforehand" in found["report.md"].splitlines()[2]
    assert "chosen after the runs" in found["methods.txt"]


def test_the_table_for_latex_has_the_numbers_of_the_analysis(tmp_path: Path) -> None:
    plan = make_plan()
    records = [
        replace(record, metrics={"test_error": error - (1.0 + 0.25 * record.seed) * (record.arm == "ban")})
        for record in make_records(plan)
        for error in [30.0 + record.seed]
    ]
    rows = [line for line in write(tmp_path, plan, records)["table.tex"].splitlines() if "against" in line]
    # gains 1, 1.25, 1.5, 1.75: mean 1.375, deviation 0.3227, t(3) = 3.182: -+ 0.513; the least p of 4 pairs is 1/8
    assert rows == [r"ban against labels & $+$1.38 & 0.86 to 1.89 & 0.125 & 4 & undecided \\"]
    # of 16 pairs of runs the errors 29, 29.75, 30.5, 31.25 and 30 to 33 have 13 in which ban is lower
    assert main_table(plan, analyse(plan, records)).rows[0][5:7] == ("4.26", "0.81")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex here")
def test_the_table_for_latex_is_set_within_the_lines_of_an_article(tmp_path: Path) -> None:
    long = make_plan(("labels", "uniform_confidence", "ban_2"))
    table = write(tmp_path, long, make_records(long))["table.tex"]
    text = rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{table}\end{{document}}"
    (tmp_path / "page.tex").write_text(text)
    words = ["pdflatex", "-interaction=nonstopmode", "page.tex"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
    assert "uniform" in table
    assert "Overfull" not in done.stdout, done.stdout


def test_latex_gets_a_minus_and_no_signs_of_its_own() -> None:
    table = Table(("a_b", "x"), (("[100%]", "-0.10 to -0.05"), ("~^{}\\", "+1")))
    lines = render_latex(table, "50% & more").splitlines()
    assert lines[4] == r"\caption{50\% \& more}"
    assert lines[7] == r"a\_b & x \\"
    assert lines[9] == r"{}[100\%] & $-$0.10 to $-$0.05 \\"
    assert lines[10] == r"\textasciitilde{}\textasciicircum{}\{\}\textbackslash{} & $+$1 \\"


def test_markdown_takes_no_sign_of_a_name_for_its_own() -> None:
    assert escape("a_b|c\n<i>*d*") == r"a\_b\|c \<i\>\*d\*"


def test_the_papers_row_stands_beside_ours() -> None:
    """Table 2 of the paper, DenseNet-112-33: teacher 18.25, BAN 16.95, BAN-2 17.22."""
    assert published_values(make_plan()) == {"labels": 18.25, "ban": 16.95, "ban_2": 17.22, TEACHER: 18.25}
    assert published_values(replace(make_plan(), metric="test_nll")) == {}


def test_the_papers_second_student_is_its_ban_1_and_parts_of_the_images_have_no_row() -> None:
    plan = make_plan(("labels", "ban"))
    arm = plan.arms[1]
    again = replace(arm, config={**arm.config, "student": {**arm.config["student"], "repeat": 1}})
    assert published_values(replace(plan, arms=(again,)))["ban"] == 17.61
    for changed in ({"shared": ["first"]}, {"activation_weight": 0.5}):  # of which the paper has no number
        for repeat in (0, 1):
            student = {**arm.config["student"], "repeat": repeat, **changed}
            other = replace(arm, config={**arm.config, "student": student})
            assert "ban" not in published_values(replace(plan, arms=(other,)))
    few = replace(arm, config={**arm.config, "data": {"name": "cifar100", "train_images": 2500}})
    assert "ban" not in published_values(replace(plan, arms=(few,)))


def test_agents_have_no_paper(tmp_path: Path) -> None:
    pytest.importorskip("stable_baselines3", reason="the extra atari is not installed")
    assert published_values(replace(make_plan(), world="atari")) == {}


def test_without_matplotlib_one_line_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_environment.EXTRAS, "study", ("no_such_module",))
    plan = make_plan()
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'polydistill\[study\]'"):
        write(tmp_path, plan, make_records(plan))
    assert list(tmp_path.iterdir()) == []


def test_a_report_of_200_runs_takes_less_than_20_seconds(tmp_path: Path) -> None:
    names = ("labels", *(f"arm_{number}" for number in range(8)))
    plan = make_plan(names, seeds=20)
    plan = replace(plan, contrasts=tuple((name, "labels") for name in names[1:]))
    records = make_records(plan)
    assert len(records) == 200
    began = time.process_time()
    write(tmp_path, plan, records)
    assert time.process_time() - began < 20
