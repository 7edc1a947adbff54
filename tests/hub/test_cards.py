"""Model cards: read by the Hub's own parser, safe against strangers' names, without folders, never over a person's."""

from __future__ import annotations

import importlib.util
import itertools
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from markdown_it import MarkdownIt

import polydistill
from polydistill.errors import UserError
from polydistill.hub.card import check_license, format_card
from polydistill.hub.citation import FURLANELLO, RUSU, software
from polydistill.hub.markup import block, code, table
from polydistill.hub.places import public, public_command
from polydistill.hub.readme import is_ours, read_readme, sealed
from polydistill.hub.worlds import card_of, finish_card, read_finished
from tests.hub.made_runs import (
    agent_config,
    agent_run,
    classifier_run,
    modules_run,
    tasks_run,
    teacher_run,
    write_summary,
)

NEEDS_HUB = pytest.mark.skipif(
    importlib.util.find_spec("huggingface_hub") is None, reason="needs the extra hub (huggingface_hub)"
)


def card(summary: dict[str, Any], out: Path, license_id: str = "", where: str = "") -> str:
    return format_card(card_of(summary, out, where), summary, license_id)


def parsed(text: str) -> Any:
    """The text as a browser would be given it: tokens, the metadata cut off as the Hub does."""
    return MarkdownIt("commonmark").enable("table").parse(re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL))


def headings(text: str) -> list[str]:
    tokens = parsed(text)
    return [after.content for token, after in itertools.pairwise(tokens) if token.type == "heading_open"]


def links_and_html(text: str) -> list[str]:
    found = []
    for token in parsed(text):
        for each in [token, *(token.children or [])]:
            if each.type in ("html_block", "html_inline", "image"):
                found.append(each.content)
            if each.type == "link_open":
                found.append(each.attrs["href"])
    return found


def front(text: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return found


# ---- what stands in them ---------------------------------------------------------------------------------------------


@NEEDS_HUB
@pytest.mark.parametrize("make", [agent_run, classifier_run, modules_run, tasks_run], ids=lambda make: make.__name__)
def test_the_hubs_own_parser_reads_the_metadata_without_a_warning(make: Any, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    summary = make(tmp_path)
    (tmp_path / "README.md").write_text(card(summary, tmp_path, "mit"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = ModelCard.load(tmp_path / "README.md").data
    assert data.license == "mit"
    last = summary["generations"][1]["metrics"]
    if make is modules_run:  # nobody else has its test batches
        assert (data.library_name, data.pipeline_tag, data.eval_results) == ("pytorch", "other", None)
        return
    results = {(one.dataset_name, one.metric_type): one.metric_value for one in data.eval_results}
    if make is classifier_run:
        assert (data.library_name, data.pipeline_tag) == ("polydistill", "image-classification")
        assert results == {("CIFAR-10", "accuracy"): last["test_accuracy"]}
        return
    assert (data.library_name, data.pipeline_tag) == ("stable-baselines3", "reinforcement-learning")
    assert {"CartPole-v1", "deep-reinforcement-learning", "stable-baselines3", "policy-distillation"} <= {*data.tags}
    if make is agent_run:
        assert results == {("CartPole-v1", "mean_reward"): "92.00 +/- 1.00"}
    else:
        assert results == {
            ("CartPole-v1", "mean_reward"): "90.00 +/- 1.00",
            ("CartPole-v1 (gravity=20)", "mean_reward"): "80.00 +/- 1.00",
        }
    assert {one.dataset_type for one in data.eval_results} == {"CartPole-v1"}


def test_a_game_of_atari_goes_by_the_name_that_has_the_protocols_frames(tmp_path: Path) -> None:
    config = {key: agent_config()[key] for key in ("teacher", "student", "play", "lineage", "dataset")}
    for protocol, name in (("rusu", "MsPacmanNoFrameskip-v4"), ("machado", "ALE/MsPacman-v5")):
        evaluation = {"protocol": protocol, "play": "protocol"}
        summary = agent_run(tmp_path, config | {"game": "ms_pacman", "evaluation": evaluation}, kind="atari")
        for generation in summary["generations"]:
            generation["metrics"]["protocol"] = protocol
        text = card(summary, tmp_path)
        assert front(text)["model-index"][0]["results"][0]["dataset"] == {"type": name, "name": name}
        assert f"`{protocol}`" in text
        assert ("Sticky actions" in text) == (protocol == "machado")
        assert ("With probability 0.05 an action is random." in text) == (protocol == "rusu")


def test_scores_hashes_command_and_teacher_stand_in_the_card(tmp_path: Path) -> None:
    summary = agent_run(tmp_path)
    text = card(summary, tmp_path)
    for words in (
        "scores 92.00 (95% over games: 91.00 to 93.00); its teacher scores 100.0.",
        "From random play (0) to the teacher (1) that is 0.900 (95% over games: 0.800 to 1.000).",
        "--teacher.path ppo.zip --env CartPole-v1 --out x",
        summary["generations"][0]["sha256"],
        summary["generations"][1]["sha256"],
        "The licence of these weights is not stated.",
        "The licence of the teacher is not known here",
        "logits of a policy, not Q-values",
        "@software{polydistill",
        "@inproceedings{rusu2016policy",
    ):
        assert words in text
    assert "license" not in front(text)
    assert headings(text)[1:] == [
        *("Scores", "How to play it", "The teacher", "Limits", "Files", "How it was made", "Licence", "Citation")
    ]


def test_a_student_that_has_learned_on_is_a_file_of_its_own(tmp_path: Path) -> None:
    summary = agent_run(tmp_path)
    shutil.copy(tmp_path / "student.zip", tmp_path / "learned_on.zip")
    names = [product.path.name for product in card_of(summary, tmp_path).products]
    assert names == ["student.zip", "student.safetensors"], "of another run"
    summary["generations"][1]["metrics"] |= {"score_after": 97.0, "score_after_ci95": [96.0, 98.0]}
    text = card(summary, tmp_path)
    assert "`learned_on.zip`" in text
    assert "score after is that of the student once it has learned on" in text


def test_a_trained_teacher_has_a_card_with_its_students(tmp_path: Path) -> None:
    summary = teacher_run(tmp_path)
    finish_card(summary, tmp_path, "mit")
    text = read_readme(tmp_path) or ""
    assert is_ours(text)
    (found,) = front(text)["model-index"][0]["results"]
    assert found["dataset"]["type"] == "PongNoFrameskip-v4"
    assert found["metrics"][0]["value"] == "5.00 +/- 1.00"
    assert "It learned from rewards in 1,000 steps" in text
    assert "| student `net1` |" in text
    assert re.search(r"\| `student net1` +\| `b{64}` \|", text)
    assert "0.900" in text
    assert [product.path.name for product in card_of(summary, tmp_path).products] == ["teacher.zip", "net1.zip"]
    assert "jane" not in text
    (tmp_path / "teacher.json").write_text("{}")
    with pytest.raises(UserError, match=r"teacher\.json is no card of a trained teacher"):
        read_finished(tmp_path)


@pytest.mark.parametrize("kind", ["q_values", "logits"])
def test_a_student_that_stock_classes_have_no_room_for_is_opened_by_polydistill(kind: str, tmp_path: Path) -> None:
    summary = agent_run(tmp_path, scores=kind)
    (tmp_path / "student.zip").unlink()
    text = card(summary, tmp_path)
    assert front(text)["library_name"] == "polydistill"
    assert "stable-baselines3" not in front(text)["tags"]
    assert "agent = PolicyDistillation.load('student.safetensors')" in text
    assert "DQN.load(" not in text
    assert ("logits of a policy, not Q-values" in text) == (kind == "logits")


@pytest.mark.parametrize("changed", [{"made_up": 300, "root": ""}, {"official": False}, {"classes": 5}])
def test_images_that_are_not_the_published_ones_give_no_result_to_compare(changed: Any, tmp_path: Path) -> None:
    text = card(classifier_run(tmp_path, **changed), tmp_path)
    assert "model-index" not in front(text)
    assert "12.50" in text, "its error is told"


def test_what_the_card_of_an_agent_shows_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    text = card(agent_run(tmp_path), tmp_path)
    monkeypatch.chdir(tmp_path)
    (program,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    exec(program, {})
    assert 8 <= float(capsys.readouterr().out) <= 500


def test_what_the_card_of_a_classifier_shows_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    text = card(classifier_run(tmp_path), tmp_path)
    monkeypatch.chdir(tmp_path)
    (program,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    exec(program, {})
    assert re.fullmatch(r"tensor\(\[\d(, \d){3}\]\)\n", capsys.readouterr().out)


def test_what_the_card_of_ones_own_module_shows_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = card(modules_run(tmp_path), tmp_path)
    monkeypatch.chdir(tmp_path)
    (program,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {"module": torch.nn.Linear(4, 3)}
    exec(program, names)
    names["module"].load_state_dict(names["weights"])
    assert "with decay 0.99" in text
    assert 'hf_hub_download("org/name", "generation_1.safetensors")' in card(
        modules_run(tmp_path), tmp_path, where="hf://org/name"
    )


def test_a_module_that_was_given_is_no_product(tmp_path: Path) -> None:
    summary = modules_run(tmp_path)
    summary["config"]["teacher"] = "a" * 64
    assert [product.path.name for product in card_of(summary, tmp_path).products] == ["generation_1.safetensors"]
    summary["generations"].pop()
    with pytest.raises(UserError, match="no network that was trained in it"):
        card_of(summary, tmp_path)
    with pytest.raises(UserError, match="holds no generation_1"):
        card_of(modules_run(tmp_path / "a"), tmp_path / "b")


def test_it_is_cited_as_the_citation_file_says(root: Path) -> None:
    told = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    assert f"title = {{{told['title']}}}" in software()
    assert f"author = {{{{{told['authors'][0]['name']}}}}}" in software()
    assert f"version = {{{polydistill.__version__}}}" in software()
    for entry, paper in zip((FURLANELLO, RUSU), told["references"], strict=True):
        names = " and ".join(f"{each['family-names']}, {each['given-names']}" for each in paper["authors"])
        assert f"author = {{{names}}}" in " ".join(entry.split())
        assert f"title = {{{paper['title']}}}" in entry
        assert f"year = {{{paper['year']}}}" in entry
        assert f"url = {{{paper['url']}}}" in entry


# ---- names of strangers ----------------------------------------------------------------------------------------------

HOSTILE = [
    "x\n---\nlicense: mit\n---\n# Hello",
    "<script>alert(1)</script>",
    "a|b`c``d | ![p](http://evil.example/p.png) [l](javascript:1)",
    "```\n## Injected\n```",
    "@everyone \x1b[2J\u202e https://evil.example/",
    "key: [1, 2] #: {",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_of_a_stranger_stays_a_name(name: str, tmp_path: Path) -> None:
    harmless = agent_run(tmp_path)
    config = agent_config(env=name, env_kwargs=[f"x={name}"], wrappers=[name], teacher={"path": name, "more": [name]})
    hostile = harmless | {"config": config, "command": f"python scripts/distill_agent.py --env '{name}' --out {name!r}"}
    hostile["versions"] = harmless["versions"] | {"stranger": name}
    hostile["hardware"] = {"cpu": name, "cores": 1, "gpu": None}
    text = card(hostile, tmp_path)
    assert headings(text)[1:] == headings(card(harmless, tmp_path))[1:]
    ours = {"https://arxiv.org/abs/1511.06295"}
    assert set(links_and_html(text)) == ours
    assert front(text).keys() == front(card(harmless, tmp_path)).keys()
    (found,) = front(text)["model-index"][0]["results"]
    assert found["dataset"]["type"] == "".join(c if c.isprintable() else "?" for c in " ".join(name.split()))
    rows = [token for token in parsed(text) if token.type == "tr_open"]
    assert len(rows) == len([token for token in parsed(card(harmless, tmp_path)) if token.type == "tr_open"])


def test_a_cell_with_bars_and_ticks_stays_one_cell() -> None:
    tokens = MarkdownIt("commonmark").enable("table").parse(table(["a", "b"], [[code("x|y`|`"), None]]))
    cells = [after.content for token, after in itertools.pairwise(tokens) if token.type == "td_open"]
    assert len(cells) == 2
    assert cells[1] == "-"
    assert MarkdownIt().render(block("```\n</code>", "sh")).count("<pre>") == 1


# ---- folders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [agent_run, classifier_run, modules_run, tasks_run], ids=lambda make: make.__name__)
def test_no_folder_of_the_machine_is_told(make: Any, tmp_path: Path) -> None:
    out = tmp_path / "jane's runs" / "of a secret project"
    summary = make(out)
    text = card(summary, out)
    assert "jane" in str(summary)
    assert "jane" not in text
    assert "secret" not in text
    assert "jane" not in str(public(summary))
    assert public(summary)["generations"] == summary["generations"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("/home/jane/a.zip", "a.zip"),
        ("/home/jane doe/my agent.zip", "my agent.zip"),
        ("~/a.zip", "a.zip"),
        ("~jane/a.zip", "a.zip"),
        ("../jane/a", "a"),
        ("C:\\Users\\jane\\a.zip", "a.zip"),
        ("\\\\server\\jane\\a.zip", "a.zip"),
        ("acktr:/home/jane/a.pt", "acktr:a.pt"),
        ("runs/jane/a.zip", "a.zip"),
        ("rom=/home/jane/x.bin", "rom=x.bin"),
        ("see /home/jane/x and C:\\jane\\y", "see x and y"),
        ("file:///home/jane/a.zip", "a.zip"),
        ("https://jane:secret@example.org/a.zip?token=jane#sha256=ab", "https://example.org/a.zip#sha256=ab"),
        ("hf://org/name/a.zip", "hf://org/name/a.zip"),
        ("ALE/Pong-v5", "ALE/Pong-v5"),
        ("my_envs/Maze-v0", "my_envs/Maze-v0"),
        ("minigrid.wrappers:ImgObsWrapper", "minigrid.wrappers:ImgObsWrapper"),
        ("VecFrameStack:4", "VecFrameStack:4"),
        ("gravity=9.8", "gravity=9.8"),
        ("a - b / c", "a - b / c"),
        ("", ""),
    ],
)
def test_of_a_path_the_name_stays_and_nothing_else_is_changed(value: str, shown: str) -> None:
    assert public(value) == shown


def test_keys_and_flags_that_name_places_are_known() -> None:
    assert public({"data": {"root": "jane/cifar"}, "teacher": {"path": "jane/a", "more": ["jane/b"]}}) == {
        "data": {"root": "cifar"},
        "teacher": {"path": "a", "more": ["b"]},
    }
    assert public({"games": {"pong": "jane/a", "up": ""}}) == {"games": {"pong": "a", "up": ""}}
    words = "polydistill-agent --out jane/runs --teacher.path=jane/a --env ALE/Pong-v5 --teacher.more '[jane/b, c]'"
    assert public_command(words) == "polydistill-agent --out runs --teacher.path=a --env ALE/Pong-v5 " + (
        '--teacher.more \'["b", "c"]\''
    )
    games = "polydistill-atari --games '{pong: \"/home/jane doe/a.zip\", up: jane/b.zip}'"
    assert "jane" not in public_command(games)
    assert "jane" not in public_command("python x.py --out '/home/jane/x")


# ---- the file --------------------------------------------------------------------------------------------------------


def test_a_card_that_a_person_has_written_or_changed_is_never_overwritten(tmp_path: Path, capsys: Any) -> None:
    summary = agent_run(tmp_path)
    finish_card(summary, tmp_path)
    ours = read_readme(tmp_path)
    assert ours is not None
    assert is_ours(ours)
    assert capsys.readouterr().out == f"card: {tmp_path / 'README.md'}\n"
    for theirs in ("# My own\n", ours.replace("92.00", "99.00"), ours + "PS\n", ""):
        (tmp_path / "README.md").write_text(theirs)
        finish_card(summary, tmp_path, "mit")
        assert read_readme(tmp_path) == theirs
        assert "was written by hand, and stays" in capsys.readouterr().err
    (tmp_path / "README.md").write_text(ours.replace("\n", "\r\n"), newline="")
    finish_card(summary, tmp_path, "mit")
    assert front(read_readme(tmp_path) or "")["license"] == "mit", "other line ends are no change"


def test_a_card_of_a_run_that_went_on_is_rewritten_and_keeps_its_licence(tmp_path: Path) -> None:
    summary = agent_run(tmp_path)
    finish_card(summary, tmp_path, "cc-by-4.0")
    summary["generations"][1]["metrics"]["score_mean"] = 95.0
    finish_card(summary, tmp_path)
    text = read_readme(tmp_path) or ""
    assert is_ours(text)
    assert "In 4 full games it scores 95.00" in text
    assert front(text)["license"] == "cc-by-4.0"
    assert "published under `cc-by-4.0`" in text


def test_a_finished_run_that_is_shown_again_gets_the_card_that_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = agent_run(tmp_path)
    finish_card(summary, tmp_path, shown_again=True)
    before = (tmp_path / "README.md").stat().st_mtime_ns
    finish_card(summary, tmp_path, shown_again=True)
    assert (tmp_path / "README.md").stat().st_mtime_ns == before
    finish_card(summary, tmp_path, "mit", shown_again=True)
    assert "published under `mit`" in (read_readme(tmp_path) or "")
    (tmp_path / "README.md").unlink()

    def full(*arguments: Any) -> None:
        raise UserError("cannot write README.md: No space left on device")

    monkeypatch.setattr("polydistill.hub.readme.atomic_write", full)
    finish_card(summary, tmp_path, shown_again=True)  # a folder that can only be read is shown all the same
    with pytest.raises(UserError, match="No space left"):
        finish_card(summary, tmp_path)


def test_a_run_without_its_student_or_of_another_kind_is_one_line(tmp_path: Path) -> None:
    summary = agent_run(tmp_path)
    with pytest.raises(UserError, match="leaves a network"):
        card_of(summary | {"kind": "study"}, tmp_path)
    with pytest.raises(UserError, match="is no summary of a run"):
        card_of(summary | {"generations": []}, tmp_path)
    for path in tmp_path.glob("student.*"):
        path.unlink()
    with pytest.raises(UserError, match=r"holds no student\.zip"):
        card_of(summary, tmp_path)
    shutil.rmtree(tmp_path)
    with pytest.raises(UserError, match="holds no generation_1"):
        card_of(classifier_run(tmp_path / "a"), tmp_path / "b")


def test_a_teacher_from_a_file_is_no_product_of_a_classifiers_run(tmp_path: Path) -> None:
    summary = classifier_run(tmp_path)
    assert [product.path.name for product in card_of(summary, tmp_path).products] == [
        *("generation_1.safetensors", "generation_1.json", "generation_0.safetensors", "generation_0.json")
    ]
    summary["config"]["teacher"]["path"] = "/home/jane/teacher.safetensors"
    made = card_of(write_summary(tmp_path, summary), tmp_path)
    assert [product.path.stem for product in made.products] == ["generation_1"] * 2
    assert "`teacher.safetensors`" in format_card(made, summary)
    assert "licence of generation 0 is not known" in made.teachers_licence
    summary["generations"].pop()
    with pytest.raises(UserError, match="no network that was trained in it"):
        card_of(summary, tmp_path)
    finish_card(summary, tmp_path)  # a run that only scored a teacher ends well, without a card
    assert read_readme(tmp_path) is None


def test_a_control_that_learned_from_labels_is_called_one(tmp_path: Path) -> None:
    summary = classifier_run(tmp_path)
    assert "it learned from the scores of generation 0, which learned from labels" in card(summary, tmp_path)
    summary["generations"][1]["objective"] = "cross_entropy"
    assert "it learned from labels alone" in card(summary, tmp_path)


@pytest.mark.parametrize("wrong", ["MIT License", "mit\n", "../x", "-", "Apache 2.0"])
def test_a_licence_that_is_no_identifier_is_one_line(wrong: str) -> None:
    with pytest.raises(UserError, match="is no identifier of the Hub's list"):
        check_license(wrong)


def test_a_seal_holds_for_its_text_alone() -> None:
    assert is_ours(sealed("a\n"))
    assert not is_ours("a\n")
    assert not is_ours(sealed("a\n") + sealed("a\n").splitlines()[-1] + "\n")
