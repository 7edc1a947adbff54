"""A plan is run: in the order of who teaches whom, once each, whatever ends it in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from polydistill.disk import wait_for_files
from polydistill.errors import UserError
from polydistill.runs.interruption import StopSignals
from polydistill.runs.lock import FolderLock
from polydistill.study.executors.interface import Job, Outcome
from polydistill.study.executors.local import LocalExecutor
from polydistill.study.failures import explain
from polydistill.study.plan import Plan
from polydistill.study.planned import PlannedRun, keys_of, name_of, planned_runs
from polydistill.study.records import TEACHER, RunRecord
from polydistill.study.runner import Runner
from polydistill.study.sharing import SharedScores
from tests.study.engines import plan_of, starts
from tests.study.fake_world import ARMS, FAKE

CHAIN = ARMS | {"ban_2": {"teacher": "ban", "student.bonus": 0.0625}}


def run(plan: Plan, out: Path, workers: int = 2) -> dict[tuple[str, int], RunRecord]:
    out.mkdir(exist_ok=True)
    with StopSignals() as stop, LocalExecutor(workers) as executor:
        runner = Runner(plan, FAKE, out, executor)
        runner.run(stop)
    return {record.key: record for record in runner.sorted_records}


def statuses(records: dict[tuple[str, int], RunRecord]) -> dict[str, str]:
    return {f"{arm}/{seed}": record.status for (arm, seed), record in records.items()}


class Recorder:
    """An executor that ends each job the moment it is waited for, in the order given, and notes what ran together."""

    found: tuple[str, ...] = ()
    elsewhere = False

    def __init__(self, workers: int, slow: str = "", fitting: int = 100) -> None:
        self.workers, self.slow, self.fitting = workers, slow, fitting
        self.jobs: list[Job] = []
        self.together: list[set[str]] = []

    @property
    def running(self) -> int:
        return len(self.jobs)

    @property
    def short_of_memory(self) -> bool:
        return len(self.jobs) >= self.fitting

    def start(self, job: Job) -> None:
        self.jobs.append(job)

    def wait(self, seconds: float) -> list[Outcome]:
        names = {job.name for job in self.jobs}
        self.together.append(names)
        if not self.jobs:
            return []
        job = min(self.jobs, key=lambda job: job.name == self.slow)
        self.jobs.remove(job)
        code = subprocess.run(job.command, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode
        return [Outcome(job.name, code, 1.0)]

    def stop(self) -> None:
        pass


def test_each_arm_of_a_seed_learns_from_its_teacher_and_a_chained_one_from_the_arm_that_it_names(
    tmp_path: Path,
) -> None:
    records = run(plan_of(arms=CHAIN), tmp_path / "s")
    assert set(statuses(records).values()) == {"done"}
    # by hand: teachers reach 0.5 + seed / 100, each student adds its bonus and seed / 100 to its teacher's
    accuracies = {key: round(record.metrics["test_accuracy"], 6) for key, record in records.items()}
    assert accuracies == {
        ("teacher", 0): 0.5, ("labels", 0): 0.5, ("ban", 0): 0.625, ("ban_2", 0): 0.6875,
        ("teacher", 1): 0.51, ("labels", 1): 0.52, ("ban", 1): 0.645, ("ban_2", 1): 0.7175,
    }  # fmt: skip
    assert records["ban_2", 1].teacher_metrics["test_accuracy"] == pytest.approx(0.645)
    assert (tmp_path / "s" / "results.csv").read_text().count(",done,") == 8


class FarAway(Recorder):
    """What its runs leave is seen here some time after their end."""

    elsewhere = True

    def __init__(self, out: Path, seconds: float) -> None:
        super().__init__(1)
        self.out, self.seconds = out, seconds

    def wait(self, seconds: float) -> list[Outcome]:
        ended = super().wait(seconds)
        for outcome in ended:
            folder = self.out / "runs" / outcome.name
            folder.rename(hidden := folder.with_name(f"of {folder.name}, hidden"))
            threading.Timer(self.seconds, hidden.rename, [folder]).start()
        return ended


def test_what_another_computer_has_written_may_be_seen_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = Runner(plan_of(seeds=2), FAKE, tmp_path, FarAway(tmp_path, 0.5))
    runner.run(StopSignals())
    assert {record.status for record in runner.sorted_records} == {"done"}
    monkeypatch.setattr("polydistill.study.runner.SEEN_SECONDS", 0.1)
    (tmp_path / "late").mkdir()
    runner = Runner(plan_of(seeds=2), FAKE, tmp_path / "late", FarAway(tmp_path / "late", 2.0))
    runner.run(StopSignals())
    told = {record.why for record in runner.sorted_records if record.arm == TEACHER}
    assert told == {f"runs/teacher/seed{seed} has no summary.json, though it ended well" for seed in (0, 1)}


def test_folders_are_listed_from_the_shared_one_downwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network file system that still says that `runs` is not there cannot see what is in it."""
    listed: list[Path] = []
    path = tmp_path / "runs" / "ban" / "seed0" / "summary.json"

    def list_and_see(folder: Path) -> list[str]:
        listed.append(folder)
        if folder == path.parent:
            path.touch()
        return []

    path.parent.mkdir(parents=True)
    monkeypatch.setattr(os, "listdir", list_and_see)
    wait_for_files([path], tmp_path, 5.0)
    assert listed == [tmp_path, tmp_path / "runs", tmp_path / "runs" / "ban", path.parent]


def test_nobody_waits_after_a_signal_or_when_the_time_is_over(tmp_path: Path) -> None:
    started = time.monotonic()
    wait_for_files([tmp_path / "a" / "b"], tmp_path, 60.0, lambda: True)
    wait_for_files([tmp_path / "a" / "b"], tmp_path, 0.1)
    assert time.monotonic() - started < 30


def test_no_core_waits_for_a_slow_arm(tmp_path: Path) -> None:
    executor = Recorder(2, slow="labels/seed0")
    runner = Runner(plan_of(seeds=3), FAKE, tmp_path, executor)
    runner.run(StopSignals())
    assert all(record.status == "done" for record in runner.sorted_records)
    assert all(len(names) == 2 for names in executor.together[:-1])
    assert executor.together[-1] == {"labels/seed0"}


def test_runs_share_their_teachers_scores_where_they_are_more_than_the_workers(tmp_path: Path) -> None:
    plan, environments = plan_of(arms=CHAIN | {"more": {"student.bonus": 0.5}}), {}

    class Watcher(Recorder):
        def start(self, job: Job) -> None:
            environments[job.name] = dict(job.environment)
            for folder in dict(job.environment).values():
                Path(folder).mkdir(parents=True, exist_ok=True)
            assert all(path.name.startswith("seed") for path in tmp_path.glob("scores/*"))
            super().start(job)

    runner = Runner(plan, FAKE, tmp_path, Watcher(2), shared=SharedScores(tmp_path, planned_runs(plan), 2))
    runner.run(StopSignals())
    ban = {name: environment for name, environment in environments.items() if name.startswith("ban/")}
    assert [len(environment) for environment in ban.values()] == [1] * len(ban)
    assert len({str(environment) for environment in ban.values()}) == len(ban), "each seed has a folder of its own"
    assert environments["ban/seed0"] == environments["labels/seed0"] != {}
    assert environments["ban_2/seed0"] == environments["teacher/seed0"] == {}, "nobody else has the teacher of ban_2"
    assert not (tmp_path / "scores").exists(), "nothing is left"
    assert not SharedScores(tmp_path, planned_runs(plan), 4).environment(runner.runs["ban", 0])


def test_arms_share_the_scores_of_a_given_teacher_seed_by_seed(tmp_path: Path) -> None:
    given = {"teacher": {"path": "teacher-{seed}.zip"}}
    runs = {name: PlannedRun(name, 0, given, None) for name in ("kl", "nll", "mse")}
    runs["other"] = PlannedRun("other", 0, {"teacher": {"path": "another.zip"}}, None)
    runs["later"] = PlannedRun("kl", 1, given, None)
    runs["both"] = PlannedRun("both", 0, given, None, members=(("kl", 0), ("mse", 0)))
    runs["teacher"] = PlannedRun(TEACHER, 0, {}, None)
    shared = SharedScores(tmp_path, runs.values(), workers=2)
    assert {name for name, run in runs.items() if shared.environment(run)} == {"kl", "nll", "mse"}
    own = [PlannedRun(name, 0, {}, None) for name in ("kl", "nll", "mse")]  # that of the project
    assert all(SharedScores(tmp_path, own, workers=2).environment(run) for run in own)


def test_where_memory_is_short_fewer_run_at_once_and_the_progress_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    executor = Recorder(4, fitting=2)
    runner = Runner(plan_of(seeds=3), FAKE, tmp_path, executor)
    runner.run(StopSignals())
    assert all(record.status == "done" for record in runner.sorted_records)
    assert max(map(len, executor.together)) == 2
    assert "memory enough" in capsys.readouterr().err  # the last of the line that said "short, a core waits"


def test_finished_runs_are_not_run_again_and_more_seeds_add_theirs(tmp_path: Path) -> None:
    run(plan_of(), tmp_path)
    run(plan_of(seeds=3), tmp_path)
    assert len(starts(tmp_path)) == 9
    assert set(starts(tmp_path).values()) == {1}


def test_a_failed_run_is_one_line_and_stops_only_those_that_it_would_have_taught(tmp_path: Path) -> None:
    arms = {
        "labels": {"student.bonus": 0.5},
        "ban": {"student.does": "fail", "student.seed": 0},
        "ban_2": {"teacher": "ban"},
        "ban_3": {"teacher": "ban_2", "student.bonus": 0.5},
    }
    records = run(plan_of(arms=arms), tmp_path)
    assert {name: status for name, status in statuses(records).items() if status != "done"} == {
        "ban/0": "failed", "ban_2/0": "failed", "ban_3/0": "failed",
    }  # fmt: skip
    assert records["ban", 0].why == "the loss is not finite"
    assert records["ban_2", 0].why == "its teacher, ban/seed0, failed"
    assert records["ban_3", 0].why == "its teacher, ban_2/seed0, failed"
    assert "ban,0,failed,,,,,,runs/ban/seed0,the loss is not finite" in (tmp_path / "results.csv").read_text()
    run(plan_of(arms=arms), tmp_path)  # the same command tries it again, and nothing else
    assert starts(tmp_path)["ban/seed0"] == 2
    assert starts(tmp_path)["ban/seed1"] == 1


@pytest.mark.parametrize(
    ("does", "why"),
    [("fall", r"RuntimeError: a bug \(code 1\)"), ("die", "ended by SIGKILL; perhaps memory ran out")],
)
def test_a_run_that_falls_or_is_killed_says_how(tmp_path: Path, does: str, why: str) -> None:
    records = run(plan_of(arms=ARMS | {"x": {"student.does": does, "student.seed": 0}}), tmp_path)
    assert records["x", 0].status == "failed"
    assert records["x", 0].why == why.replace("\\", "")
    assert records["x", 1].status == "done"


def test_a_full_disk_ends_the_study_in_one_line_and_leaves_what_is_finished(tmp_path: Path) -> None:
    arms = ARMS | {"x": {"student.does": "fill the disk"}}
    with pytest.raises(UserError, match="No space left on device; make room, and the same command goes on"):
        run(plan_of(arms=arms, seeds=8), tmp_path, workers=1)
    assert len(starts(tmp_path)) < 8
    assert "No space left" in (tmp_path / "results.csv").read_text()


def test_what_each_of_the_first_runs_fails_of_ends_the_study(tmp_path: Path) -> None:
    plan = plan_of(settings={"student.does": "fail of the teacher"}, seeds=8)
    with pytest.raises(
        UserError, match=r"the first 3 runs failed alike.*, (ban|labels)/seed\d: no file .*seed\d/product_0.json"
    ):
        run(plan, tmp_path)
    tried = {name: n for name, n in starts(tmp_path).items() if not name.startswith("teacher")}
    assert 3 <= len(tried) <= 4  # one more may have begun beside the third
    assert (tmp_path / "results.csv").read_text().count(",failed,") == 3


def test_a_run_that_succeeds_gives_the_others_their_try(tmp_path: Path) -> None:
    arms = {"labels": {"student.objective": "cross_entropy"}, "x": {"student.does": "fail"}}
    records = run(plan_of(arms=arms, seeds=5), tmp_path)
    assert [records["x", seed].status for seed in range(5)] == ["failed"] * 5


def test_a_signal_lets_the_runs_save_and_the_same_command_goes_on_from_there(tmp_path: Path) -> None:
    plan = plan_of(arms=ARMS | {"x": {"student.does": "learn slowly"}})

    def interrupt() -> None:
        end = time.monotonic() + 60
        while not (tmp_path / "runs" / "x" / "seed0" / "steps.txt").exists() and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    records = run(plan, tmp_path)
    thread.join()
    assert records["x", 0].status == "missing"
    assert 0 < int((tmp_path / "runs" / "x" / "seed0" / "steps.txt").read_text()) < 40
    assert set(statuses(run(plan, tmp_path)).values()) == {"done"}
    assert starts(tmp_path)["x/seed0"] == 2
    assert starts(tmp_path)["teacher/seed0"] == 1


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Path]:
    """A run folder at which another process is at work until the teacher of the other seed has begun."""
    folder = tmp_path / "runs" / "teacher" / "seed0"
    folder.mkdir(parents=True)
    lock = FolderLock(folder)

    def release() -> None:
        end = time.monotonic() + 60
        while not (tmp_path / "runs" / "teacher" / "seed1" / "starts.txt").exists() and time.monotonic() < end:
            time.sleep(0.02)
        lock.release()

    thread = threading.Thread(target=release)
    thread.start()
    yield folder
    thread.join()


def test_a_run_of_another_process_is_waited_for_while_the_rest_goes_on(locked: Path, tmp_path: Path) -> None:
    records = run(plan_of(), tmp_path)
    assert set(statuses(records).values()) == {"done"}
    first, other = (
        float((tmp_path / "runs" / "teacher" / seed / "starts.txt").read_text().split()[0])
        for seed in ("seed0", "seed1")
    )
    assert other < first


def test_a_finished_run_of_another_config_is_refused_by_what_differs(tmp_path: Path) -> None:
    run(plan_of(), tmp_path)
    other = plan_of(settings={"data.made_up": 7})
    with pytest.raises(
        UserError, match=r"runs/teacher/seed0 holds a run of another config: data.made_up is 100 there and 7"
    ):
        run(other, tmp_path)


def test_a_run_that_had_another_teacher_is_refused(tmp_path: Path) -> None:
    run(plan_of(), tmp_path)
    path = tmp_path / "runs" / "teacher" / "seed1" / "summary.json"
    summary = json.loads(path.read_text())
    summary["generations"][-1]["sha256"] = "another"
    path.write_text(json.dumps(summary))
    with pytest.raises(UserError, match=r"runs/labels/seed1 had another teacher than .*runs/teacher/seed1"):
        run(plan_of(), tmp_path)


def test_a_damaged_summary_is_a_failed_run_and_the_study_ends(tmp_path: Path) -> None:
    run(plan_of(), tmp_path)
    (tmp_path / "runs" / "ban" / "seed1" / "summary.json").write_text("{")
    records = run(plan_of(), tmp_path)
    assert records["ban", 1].status == "failed"
    assert "summary.json is damaged" in records["ban", 1].why


def test_given_teachers_are_read_by_seed(tmp_path: Path) -> None:
    for seed, accuracy in ((0, 0.25), (1, 0.75)):
        (tmp_path / f"teacher{seed}.json").write_text(json.dumps({"sha256": "x", "accuracy": accuracy}))
    plan = plan_of(settings={"teacher.path": str(tmp_path / "teacher{seed}.json")})
    records = run(plan, tmp_path / "s")
    assert len(records) == 4
    assert records["ban", 1].teacher_metrics["test_accuracy"] == 0.75


# ---- several runs in one job -------------------------------------------------------------------------------------


def run_together(plan: Plan, out: Path, together: int, workers: int = 2) -> tuple[Recorder, list[RunRecord]]:
    class Noting(Recorder):
        def start(self, job: Job) -> None:
            names.append(job.name)
            super().start(job)

    names: list[str] = []
    out.mkdir(exist_ok=True)
    executor = Noting(workers)
    executor.names = names  # type: ignore[attr-defined]
    runner = Runner(plan, FAKE, out, executor, together=together)
    runner.run(StopSignals())
    return executor, runner.sorted_records


def test_a_job_makes_as_many_runs_of_an_arm_as_are_asked_for(tmp_path: Path) -> None:
    plan = plan_of(arms=CHAIN | {"both": {"ensemble": ["ban", "ban_2"]}}, seeds=5)
    executor, records = run_together(plan, tmp_path / "together", 2)
    names: list[str] = executor.names  # type: ignore[attr-defined]
    assert sorted(name for name in names if name.startswith("teacher")) == [
        "teacher/seed0+1", "teacher/seed2+3", "teacher/seed4",
    ]  # fmt: skip
    assert {len(keys_of(name)) for name in names if name.startswith("ban")} == {1, 2}
    assert all(len(keys_of(name)) == 1 for name in names if name.startswith("both")), "an ensemble trains nothing"
    assert {key for name in names for key in keys_of(name)} == {record.key for record in records}
    assert set(starts(tmp_path / "together").values()) == {1}
    _, alone = run_together(plan, tmp_path / "alone", 1)
    assert records == alone
    assert (tmp_path / "together" / "results.csv").read_bytes() == (tmp_path / "alone" / "results.csv").read_bytes()
    again, _ = run_together(plan, tmp_path / "together", 2)
    assert again.names == [], "nothing finished is run again"  # type: ignore[attr-defined]


def test_of_a_job_of_several_each_run_fails_by_itself_and_says_why(tmp_path: Path) -> None:
    plan = plan_of(arms=ARMS | {"x": {"student.does": "fail", "student.seed": 1}}, seeds=3)
    _, records = run_together(plan, tmp_path, 3)
    failed = {f"{record.arm}/{record.seed}": record.why for record in records if record.status != "done"}
    assert failed == {"x/1": "the loss is not finite"}


def test_a_job_of_several_that_dies_is_told_of_each_but_is_one_failure(tmp_path: Path) -> None:
    plan = plan_of(arms={"x": {"student.does": "die"}, **ARMS}, seeds=4)
    _, records = run_together(plan, tmp_path, 4, workers=1)
    failed = {f"{record.arm}/{record.seed}": record.why for record in records if record.status != "done"}
    assert failed == dict.fromkeys([f"x/{seed}" for seed in range(4)], "ended by SIGKILL; perhaps memory ran out")
    assert sum(record.status == "done" for record in records) == 12, "the others had their try"


def test_in_a_job_of_several_one_that_succeeds_gives_the_others_their_try(tmp_path: Path) -> None:
    arms = {"x": {"student.does": "fail"}, **ARMS}
    with pytest.raises(UserError, match="the first 3 runs failed alike"):
        run_together(plan_of(arms=arms, seeds=4), tmp_path / "all", 4, workers=1)
    rows = (tmp_path / "all" / "results.csv").read_text()
    assert rows.count(",failed,") == 4, "each is noted before the study ends"

    class LastSucceeds(Recorder):
        def start(self, job: Job) -> None:
            file = Path(job.command[-1])
            if job.name.startswith("x/"):  # seed 3 learns
                runs = yaml.safe_load(file.read_text())
                other = yaml.safe_load((tmp_path / "one" / "arms" / "x.yaml").read_text())
                other["student"]["does"] = "learn"
                (tmp_path / "other.yaml").write_text(yaml.safe_dump(other))
                runs[str(tmp_path / "one" / "logs" / "x" / "seed3.txt")][1] = str(tmp_path / "other.yaml")
                file.write_text(yaml.safe_dump(runs))
            super().start(job)

    plan = plan_of(arms={"x": {"student.does": "fail"}, **ARMS}, seeds=4)
    (tmp_path / "one").mkdir()
    runner = Runner(plan, FAKE, tmp_path / "one", LastSucceeds(1), together=4)
    runner._finished.check = lambda run: None  # type: ignore[method-assign]  # seed 3 has another config, on purpose
    runner.run(StopSignals())
    statuses = {record.key: record.status for record in runner.sorted_records}
    assert [statuses["x", seed] for seed in range(4)] == ["failed"] * 3 + ["done"]
    assert all(status == "done" for (arm, _), status in statuses.items() if arm != "x")


def test_what_ends_a_job_of_several_is_read_from_its_own_log(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib, yaml\n"
        "logs = [pathlib.Path(log) for log in yaml.safe_load(open(sys.argv[1]))]\n"
        "for log in logs:\n"
        "    log.parent.mkdir(parents=True, exist_ok=True)\n"
        "    log.write_text('generation 0 learns: 3 of 4')\n"
        "logs[0].write_text('error: mine alone')\n"
        "raise RuntimeError('a bug of all')\n"
    )
    world = replace(FAKE, together=(sys.executable, "-c", code))
    with LocalExecutor(2) as executor:
        runner = Runner(plan_of(seeds=2), world, tmp_path, executor, together=2)
        runner.run(StopSignals())
    whys = {record.seed: record.why for record in runner.sorted_records if record.arm == TEACHER}
    assert whys == {0: "mine alone", 1: "RuntimeError: a bug of all (code 1)"}


def test_hundreds_of_runs_in_a_job_have_files_of_short_names(tmp_path: Path) -> None:
    executor, records = run_together(plan_of(seeds=100), tmp_path, 100, workers=1)
    assert all(record.status == "done" for record in records)
    assert len(executor.names) == 3  # type: ignore[attr-defined]
    assert (tmp_path / "together" / "ban" / "seed0x100.yaml").exists()


def test_a_job_of_several_that_cannot_begin_says_what_it_printed_itself(tmp_path: Path) -> None:
    world = replace(FAKE, together=(sys.executable, "-c", "raise SystemExit('error: no such thing here')"))
    with LocalExecutor(2) as executor:
        runner = Runner(plan_of(seeds=2), world, tmp_path, executor, together=2)
        runner.run(StopSignals())
    assert {record.why for record in runner.sorted_records if record.arm == TEACHER} == {"no such thing here"}


def test_the_name_of_a_job_says_which_runs_it_makes() -> None:
    runs = [PlannedRun("ban+l", seed, {}, None) for seed in (3, 7, 12)]
    assert name_of(runs) == "ban+l/seed3+7+12"
    assert keys_of(name_of(runs)) == [("ban+l", 3), ("ban+l", 7), ("ban+l", 12)]
    assert name_of(runs[:1]) == runs[0].name


def test_what_a_log_says_last_is_the_reason(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    assert explain(3, log) == "it ended with code 3 and said nothing"
    log.write_text("error: the first\nerror: the last\nsome words\n")
    assert explain(2, log) == "the last"
    assert explain(-15, log) == "ended by SIGTERM"
    assert explain(143, log) == "ended by SIGTERM"


def test_a_traceback_is_told_by_its_exception_and_the_notes_on_it(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    script = tmp_path / "fails.py"
    script.write_text(
        "try:\n    raise KeyError('first')\nexcept KeyError as first:\n    error = ValueError('mine')\n"
        "    error.add_note('in batch 7 of epoch 1')\n    raise error from first\n"
    )
    log.write_bytes(subprocess.run([sys.executable, script], capture_output=True, check=False).stderr)
    assert explain(1, log) == "ValueError: mine; in batch 7 of epoch 1 (code 1)"
    log.write_text("words\nTraceback (most recent call last):\n  File 'a'\n")
    assert explain(1, log) == "File 'a' (code 1)", "a log that is cut off"
    log.write_text("Traceback (most recent call last):\n  File 'a'\nOSError: no\nerror: a line\n")
    assert explain(2, log) == "a line"


def test_a_commit_is_no_part_of_what_a_run_must_be(tmp_path: Path) -> None:
    run(plan_of(), tmp_path)
    run(replace(plan_of(), commit="another"), tmp_path)
    assert set(starts(tmp_path).values()) == {1}
