"""A study of a folder of pictures: does a student help on one's own data?"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from polydistill.config.parsing import read_config
from polydistill.config.plain_yaml import flatten
from polydistill.errors import UserError
from polydistill.image_folders.config import DataConfig, ImagesConfig, TeacherConfig
from polydistill.image_folders.plan import check_configs
from polydistill.image_folders.training import TrainingConfig
from polydistill.study.arms import make_plan
from polydistill.study.commands import study
from polydistill.study.config import StudyConfig
from polydistill.study.executors import choice
from polydistill.study.teachers import shares_one
from polydistill.study.worlds import open_world
from tests.image_folders.samples import NETWORK, Done, refused, write_pictures
from tests.study.in_this_process import InThisProcess

pytest.importorskip("matplotlib", reason="the extra study is not installed")

Script = Callable[..., Done]
SETTINGS = f"""
  teacher.network: {NETWORK}
  lineage.generations: 1
  data: {{image_size: 32, workers: 0}}
  training: {{epochs: 1, batch_size: 8}}
  precision: float32
"""
ARMS = """
  labels: {student.objective: cross_entropy}
  "null": {student.objective: cross_entropy, student.repeat: 1}
  ban: {student.objective: ban}
"""


@pytest.fixture
def ask(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Script:
    """Run the command in this process; its runs too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(choice, "LocalExecutor", InThisProcess)
    Path("study.yaml").write_text(
        f"world: images\nsettings: {SETTINGS}\narms: {ARMS}\ncontrasts: [[ban, labels], [null, labels]]\nseeds: 3\n"
    )

    def run(*words: object) -> Done:
        capsys.readouterr()
        threads = torch.get_num_threads()
        try:
            study.main(["--config", "study.yaml", "--workers", "1", *map(str, words)])
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        finally:
            torch.set_num_threads(threads)
        return Done(code, *capsys.readouterr())

    return run


def summary(arm: str, seed: int) -> dict:
    return json.loads(Path("runs/study/runs", arm, f"seed{seed}", "summary.json").read_text())


def test_a_study_says_with_intervals_whether_it_helps_and_pairs_its_arms(ask: Script, pictures: Path) -> None:
    done = ask("--settings.data.root", pictures)
    assert done.code == 0, done.err
    assert "12/12 runs (100%)" in done.err
    assert re.search(r"^ban (against|beats|is worse than) labels.*% interval ", done.out, re.MULTILINE), done.out
    report = Path("runs/study/report.md").read_text()
    assert "new seeds and new images" in report, "the runs say which pictures they got right"
    for seed in range(3):
        heads = {arm: summary(arm, seed)["generations"][0]["sha256"] for arm in ("labels", "null", "ban")}
        assert set(heads.values()) == {summary("teacher", seed)["generations"][0]["sha256"]}, "one teacher for a seed"
        (labels, null) = (summary(arm, seed)["generations"][1] for arm in ("labels", "null"))
        assert labels["sha256"] != null["sha256"], "the null arm is another student of the same teacher"


def test_what_no_run_could_begin_with_is_found_before_the_plan_is_written(ask: Script, pictures: Path) -> None:
    assert "--data.root is needed" in refused(ask())
    assert "data.root none does not exist" in refused(ask("--settings.data.root", "none", "--dry_run"))
    words = ["--settings.data.root", pictures]
    large = ask(*words, "--arms.ban.training.batch_size", 99)
    assert "arm ban: training.batch_size is 99, but train holds 36 pictures" in refused(large)
    (pictures / "train" / "müll" / "3.jpg").write_bytes(b"no")
    assert "3.jpg is no picture of JPEG" in refused(ask(*words))
    assert not Path("runs").exists()


def test_a_folder_that_changes_between_two_runs_stops_the_study(ask: Script, pictures: Path) -> None:
    words = ["--settings.data.root", pictures, "--arms", "{labels: {student.objective: cross_entropy}, ban: {}}"]
    words += ["--contrasts", "[]"]
    assert ask(*words, "--seeds", 2).code == 0
    write_pictures(pictures / "val", 7, seed=1)
    done = ask(*words, "--seeds", 3)
    told = "error: runs/study/runs/teacher/seed0 had other data (test) than there are now: put them back as they were"
    assert told in refused(done)
    assert not Path("runs/study/runs/teacher/seed2").exists(), "nothing is trained in vain"
    assert ask(*words, "--seeds", 2).code == 0, "where nothing is to be run the report is made"


def test_what_a_study_compares_before_it_begins_no_seed_decides(pictures: Path) -> None:
    data = DataConfig(str(pictures), validation_images=6, image_size=32, workers=0)
    training = TrainingConfig(batch_size=8)
    found = [
        check_configs({"arm ban": ImagesConfig(data, seed=seed, teacher=TeacherConfig(NETWORK), training=training)})
        for seed in (0, 1)
    ]
    assert found[0] == found[1]
    assert {name: part["images"] for name, part in found[0].items()} == {"test": 18, "whole": 36}
    for folder, changed in (("val", "test"), ("train", "whole")):
        with open(pictures / folder / "müll" / "3.jpg", "ab") as file:
            file.write(b"x")
        again = check_configs({"": ImagesConfig(data, teacher=TeacherConfig(NETWORK), training=training)})
        assert again[changed] != found[0][changed], "the names are the same, a size is not"


def test_a_student_of_another_network_and_size_may_teach(ask: Script, pictures: Path) -> None:
    words = ["--settings.data.root", pictures, "--settings.student.network", "resnet-8", "--seeds", 2]
    words += ["--settings.student.image_size", 24, "--settings.data.image_size", 0, "--settings.teacher.image_size", 32]
    done = ask(*words, "--arms", "{ban: {}, ban_2: {teacher: ban}}", "--contrasts", "[]")
    assert done.code == 0, done.err
    assert summary("ban_2", 0)["generations"][0]["sha256"] == summary("ban", 0)["generations"][1]["sha256"]
    config = summary("ban_2", 0)["config"]
    assert (config["teacher"]["network"], config["teacher"]["image_size"]) == ("resnet-8", 24)
    assert config["data"]["image_size"] == 32, "the pictures are those of the other arms"


def test_arms_of_a_seed_see_the_same_pictures_whatever_their_networks_are_made_for(pictures: Path) -> None:
    settings = {"data.root": str(pictures), "teacher.network": "timm:resnet18"}
    arms = {
        "ban": {},
        "small": {"student.network": "resnet-8"},
        "large": {"student.network": "timm:vit_tiny_patch16_384"},
        "fine": {"student.image_size": 320},
        "of_small": {"teacher": "small", "student.network": "timm:resnet18"},
        "of_large": {"teacher": "large"},
    }
    world = open_world("images")
    plan = make_plan(StudyConfig(world="images", settings=settings, arms=arms), world, None)
    configs = {arm.name: read_config(ImagesConfig, None, dict(flatten({**arm.config, "seed": 0}))) for arm in plan.arms}
    assert {config.side for config in configs.values()} == {224}
    assert len({config.test_cut for config in configs.values()}) == 1
    taught = {name: config.network_of(0) for name, config in configs.items()}
    own, large = ("timm:resnet18", 224), ("timm:vit_tiny_patch16_384", 224)
    assert taught == dict.fromkeys(("ban", "small", "large", "fine"), own) | {
        "of_small": ("resnet-8", 224), "of_large": large,
    }  # fmt: skip
    assert configs["fine"].network_of(1) == ("timm:resnet18", 320)
    assert plan.arm("ban").config == plan.base, "what is alike already is not said again"


def test_an_arm_of_another_objective_leaves_the_options_of_the_base_behind(pictures: Path) -> None:
    config = StudyConfig(
        world="images",
        base="configs/images/own_folder.yaml",
        settings={"data.root": str(pictures)},
        arms={"labels": {"student.objective": "cross_entropy"}, "ban": {"student.objective": "ban"}, "kd": {}},
    )
    plan = make_plan(config, open_world("images"), None)
    assert [arm.config["student"]["temperature"] for arm in plan.arms] == [None, None, 4.0]
    wrong = {"labels": {"student.objective": "cross_entropy", "student.temperature": 2.0}, "kd": {}}
    with pytest.raises(UserError, match="arm labels: student: objective cross_entropy has no option temperature"):
        make_plan(dataclasses.replace(config, arms=wrong), open_world("images"), None)


def test_arms_may_not_name_another_given_teacher(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repository, file: "there.safetensors")
    settings = {"data.root": str(pictures), "teacher.network": "timm:resnet18", "teacher.pretrained": True}
    for key, value in {"network": "timm:resnet34", "pretrained": False, "classes": "names.txt"}.items():
        arms = {"ban": {}, "other": {f"teacher.{key}": value}}
        with pytest.raises(UserError, match=f"arm other sets teacher.{key}: arms of a seed share their teacher"):
            make_plan(StudyConfig(world="images", settings=settings, arms=arms), open_world("images"), None)


def test_weights_of_timm_are_one_teacher_for_all_seeds(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repository, file: "there.safetensors")
    settings = {"data.root": str(pictures), "teacher.network": "timm:resnet18", "teacher.pretrained": True}
    arms = {"ban": {}, "again": {"student.repeat": 1}, "ban_2": {"teacher": "ban"}}
    plan = make_plan(StudyConfig(world="images", settings=settings, arms=arms), open_world("images"), None)
    assert plan.teacher is None
    assert shares_one(plan)
    assert [plan.arm(name).config["teacher"]["pretrained"] for name in arms] == [True, True, False]
