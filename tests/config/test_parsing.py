"""polydistill.config: what the user writes becomes a dataclass, or one line that says what is wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polydistill.config.parsing import Parsed, parse
from polydistill.config.plain_yaml import dump_yaml, flatten, load_yaml, to_mapping
from polydistill.errors import UserError, run_script, suggest


@dataclass(frozen=True)
class Teacher:
    """Who labels.

    Args:
        path: a file, or
            100% of a zoo name.
        temperature: of the softmax.
    """

    path: str = "zoo"
    temperature: float = 0.01

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")


@dataclass(frozen=True)
class Demo:
    teacher: Teacher = field(default_factory=lambda: Teacher(temperature=0.5))
    game: str = "pong"
    steps: int = 10
    rate: float = 0.1
    fast: bool = False
    limit: int | None = None
    label: str | None = None
    widths: tuple[int, ...] = (32, 64)
    betas: list[float] = field(default_factory=lambda: [0.9])
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")


def read(*argv: str, config_class: type = Demo, default_config: Any = None) -> Parsed[Any]:
    return parse(
        config_class,
        list(argv),
        program="demo.py",
        description="A demo.",
        default_name="demo",
        default_config=default_config,
    )


def write(folder: Path, text: str, name: str = "pong.yaml") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


# ---- what is accepted ------------------------------------------------------------------------------------------


def test_without_words_there_are_the_defaults() -> None:
    assert read() == Parsed(Demo(), Path("runs/demo"), dry_run=False, doctor=False, measure=False, wide=False)
    assert read().config.teacher.temperature == 0.5  # the group's own default, not its class's


def test_the_command_line_beats_the_file_and_the_file_the_defaults(tmp_path: Path) -> None:
    file = write(tmp_path, "steps: 5\ngame: qbert\nteacher:\n  path: a.zip\n")
    config, out, dry_run, *_ = read("--config", file, "--game=breakout", "--teacher.temperature", "1e-2", "--dry_run")
    assert config == Demo(teacher=Teacher("a.zip", 0.01), steps=5, game="breakout")
    assert (out, dry_run) == (Path("runs/pong"), True)
    assert read("--config", file, "--out", "here").out == Path("here")


@pytest.mark.parametrize(
    ("words", "fast"),
    [(["--fast"], True), (["--fast", "--steps", "5"], True), (["--fast", "false", "--steps", "5"], False)],
)
def test_the_flag_of_a_yes_or_no_needs_no_value(words: list[str], fast: bool) -> None:
    assert read(*words).config == Demo(fast=fast, steps=5 if "--steps" in words else 10)


def test_a_first_word_stands_for_the_field_that_the_script_names() -> None:
    def read_first(*words: str) -> Parsed[Any]:
        return parse(Demo, list(words), program="demo.py", description="", default_name=None, first_word="game")

    assert read_first("qbert", "--steps", "5").config == Demo(game="qbert", steps=5)
    assert read_first("--steps", "5").config == Demo(steps=5)
    with pytest.raises(SystemExit):
        read_first("--steps", "5", "qbert")


def test_only_a_script_that_distils_has_a_doctor_a_wide_table_and_a_speed_to_measure() -> None:
    def read_distilling(*words: str) -> Parsed[Any]:
        return parse(Demo, list(words), program="p", description="", default_name="d", distils=True)

    assert read_distilling("--doctor", "--game", "qbert").doctor
    assert read_distilling("--wide").wide
    measured = read_distilling("--dry_run_measure")
    assert (measured.dry_run, measured.measure) == (True, True)
    plain = read_distilling("--dry_run")
    assert (plain.dry_run, plain.measure, plain.wide, plain.doctor) == (True, False, False, False)
    for word in ("--doctor", "--wide", "--dry_run_measure"):
        with pytest.raises(SystemExit):
            read(word)


@pytest.mark.parametrize("word", ["--out", "--dry_run"])
def test_a_script_without_a_run_folder_has_neither_out_nor_dry_run(
    word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        parse(Demo, [word, "x"], program="demo.py", description="", default_name=None)
    assert end.value.code == 2
    assert f"unknown flag {word}" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse(Demo, ["--help"], program="demo.py", description="", default_name=None)
    assert word not in capsys.readouterr().out


def test_a_default_config_holds_where_there_is_no_file(tmp_path: Path) -> None:
    default, other = Demo(Teacher("a.zip", 0.1), steps=5), write(tmp_path, "rate: 2", "other.yaml")
    found, out, *_ = read("--rate", "3", default_config=default)
    assert (found, out) == (Demo(Teacher("a.zip", 0.1), steps=5, rate=3.0), Path("runs/demo"))
    assert read("--config", other, default_config=default)[:2] == (Demo(rate=2.0), Path("runs/other"))


@dataclass(frozen=True)
class Named:
    names: tuple[str, ...] = ()


@pytest.mark.parametrize(
    ("text", "names"),
    [("a:4", ("a:4",)), ("gravity=9.8", ("gravity=9.8",)), ("[a, b]", ("a", "b")), ("[]", ()), ("a b, c", ("a b, c",))],
)
def test_a_list_of_texts_may_be_one_word(text: str, names: tuple[str, ...], tmp_path: Path) -> None:
    assert read("--names", text, config_class=Named).config.names == names
    with pytest.raises(SystemExit):
        read("--config", write(tmp_path, "names: a"), config_class=Named)


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    assert read("--config", write(tmp_path, "# python scripts/demo.py\n")).config == Demo()


@pytest.mark.parametrize("text", ["1e5", "1E+5", "100000.0", "100_000", "100000"])
def test_a_whole_number_may_be_written_in_any_way(tmp_path: Path, text: str) -> None:
    for config in (read("--steps", text).config, read("--config", write(tmp_path, f"steps: {text}")).config):
        assert config.steps == 100_000
        assert type(config.steps) is int


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("limit", "1e3", 1000),
        ("limit", "null", None),
        ("widths", "[1e1, 2]", (10, 2)),
        ("betas", "[1, 1e-1]", [1.0, 0.1]),
        ("rate", "1e-3", 0.001),
        ("rate", "-1e-3", -0.001),
        ("rate", "2", 2.0),
        ("fast", "true", True),
        ("device", "cpu", "cpu"),
    ],
)
def test_a_value_reads_the_same_from_file_and_command_line(tmp_path: Path, key: str, text: str, value: object) -> None:
    for config in (read(f"--{key}", text).config, read("--config", write(tmp_path, f"{key}: {text}")).config):
        assert getattr(config, key) == value
        assert type(getattr(config, key)) is type(value)


@pytest.mark.parametrize("text", ["1e5", "null", "true", "{class_path: os.system}", "", "a=b", "[1]", "x: y"])
def test_text_stays_text_whatever_it_looks_like(text: str) -> None:
    assert read(f"--game={text}").config.game == text


def test_text_that_may_be_null_keeps_what_looks_like_a_number() -> None:
    assert read("--label", "1e5").config.label == "1e5"
    assert read("--label", "null").config.label is None


@dataclass(frozen=True)
class Free:
    settings: dict[str, Any] = field(default_factory=dict)


def test_a_flag_sets_one_key_of_a_mapping_and_leaves_the_others(tmp_path: Path) -> None:
    file = write(tmp_path, "settings: {data: {root: here, side: 32}, data.classes: 5}")

    def settings(*words: str) -> dict[str, Any]:
        options = {"program": "demo", "description": "", "default_name": "demo"}
        return parse(Free, [*words], **options).config.settings

    assert settings("--settings.data.root", "there", "--config", file) == {
        "data": {"root": "there", "side": 32},
        "data.classes": 5,
    }
    assert settings("--settings.data.classes", "7", "--config", file)["data.classes"] == 7
    assert settings("--settings.rate", "1e-3", "--settings.on", "null") == {"rate": 1e-3, "on": None}
    assert settings("--settings.a", "1", "--settings", "{a: 2, b: 3}") == {"a": 1, "b": 3}


def test_print_config_prints_yaml_that_reads_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--steps", "1e3", "--game=1e5", "--rate", "1e-9", "--teacher.path=no", "--widths", "[7]")
    with pytest.raises(SystemExit) as end:
        read(*words, "--print_config")
    assert end.value.code == 0
    assert read("--config", write(tmp_path, capsys.readouterr().out)).config == read(*words).config


def test_help_names_every_field_with_its_text(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        read("-h", "--config", "missing.yaml")
    shown = capsys.readouterr()
    assert (end.value.code, shown.err) == (0, "")
    for part in ("--teacher.path", "--widths", "--out", "--dry_run", "--print_config", "A demo.", "a file, or 100% of"):
        assert part in " ".join(shown.out.split())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.text(min_size=1),
        st.text() | st.integers() | st.booleans() | st.none() | st.floats(allow_nan=False) | st.lists(st.text()),
    )
)
def test_yaml_reads_back_what_was_dumped(tmp_path: Path, mapping: dict[str, object]) -> None:
    path = tmp_path / "any.yaml"
    path.write_bytes(dump_yaml(mapping).encode("utf-8"))
    back = load_yaml(path)
    assert back == mapping
    assert all(type(back[key]) is type(mapping[key]) for key in mapping)


def test_to_mapping_holds_plain_values_only() -> None:
    mapping = to_mapping(Demo())
    assert mapping["teacher"] == {"path": "zoo", "temperature": 0.5}
    assert mapping["widths"] == [32, 64]
    assert dict(flatten(mapping))["teacher.path"] == "zoo"


@pytest.mark.parametrize("annotation", [Path, dict[str, int], "Teacher | None", Any, type])
def test_a_field_that_could_name_code_is_the_programmers_error(annotation: Any) -> None:
    config_class = dataclass(frozen=True)(type("Bad", (), {"__annotations__": {"x": annotation}, "x": None}))
    config_class.__module__ = __name__
    with pytest.raises(TypeError, match=r"Bad\.x"):
        read(config_class=config_class)


def test_a_field_named_like_a_flag_is_the_programmers_error() -> None:
    with pytest.raises(TypeError, match="out"):
        read(config_class=dataclass(frozen=True)(type("Bad", (), {"__annotations__": {"out": str}, "out": "x"})))


def test_a_script_without_a_run_folder_may_have_a_field_named_out() -> None:
    fields = {"__annotations__": {"out": str}, "out": "x"}
    config_class = dataclass(frozen=True)(type("Writes", (), fields))
    parsed = parse(config_class, ["--out", "file.onnx"], program="x", description="", default_name=None)
    assert parsed.config.out == "file.onnx"


# ---- what is refused -------------------------------------------------------------------------------------------


def refuse(run_python, tmp_path: Path, *argv: str) -> str:
    """The line of an error, from a process of its own."""
    program = tmp_path / "program.py"
    program.write_text(
        "from dataclasses import dataclass, field\nfrom typing import Literal\n"
        "from polydistill.config.parsing import parse\nfrom polydistill.errors import run_script\n"
        "@dataclass(frozen=True)\nclass Teacher:\n    path: str = 'zoo'\n    temperature: float = 0.01\n"
        "    def __post_init__(self):\n"
        "        if self.temperature <= 0:\n            raise ValueError(f'must be > 0,\\ngot {self.temperature}')\n"
        "@dataclass(frozen=True)\nclass Demo:\n    needed: str\n    teacher: Teacher = field(default_factory=Teacher)\n"
        "    steps: int = 10\n    learning_rate: float = 0.1\n    fast: bool = False\n    limit: int | None = None\n"
        "    widths: tuple[int, ...] = (32,)\n    device: Literal['cpu', 'cuda'] = 'cpu'\n"
        "    def __post_init__(self):\n        if self.steps < 1:\n            raise ValueError('steps must be >= 1')\n"
        "@run_script\ndef main():\n"
        "    print(parse(Demo, program='p', description='d', default_name='n'))\nmain()\n"
    )
    process = run_python(str(program), *argv)
    assert process.returncode == 2, process
    assert process.stdout == ""
    assert process.stderr.startswith("error: ")
    assert process.stderr.count("\n") == 1
    assert process.stderr.endswith("\n")
    return process.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--step", "3"], "unknown flag --step; did you mean --steps?"),
        (["--teacher.pth", "a"], "unknown flag --teacher.pth; did you mean --teacher.path?"),
        (["--temperature", "1"], "unknown flag --temperature; did you mean --teacher.temperature?"),
        (["--dry-run"], "unknown flag --dry-run; did you mean --dry_run?"),
        (["--zzzzzz", "1"], "unknown flag --zzzzzz"),
        (["--teacher", "a.yaml"], "--teacher is a group: set its fields, like --teacher.path"),
        (["--teacher=a.yaml"], "--teacher is a group: set its fields, like --teacher.path"),
        (["pong"], "unexpected word 'pong': values follow a flag, like --out FOLDER"),
        (["--steps"], "--steps needs a value"),
        (["--fast", "--steps"], "--steps needs a value"),
        (["--fast", "maybe"], "--fast must be true or false, got 'maybe'"),
        (["--dry_run=true"], "--dry_run takes no value"),
        (["--steps", "1.5"], "--steps must be a whole number, got '1.5'"),
        (["--steps", "ten"], "--steps must be a whole number, got 'ten'"),
        (["--steps", "true"], "--steps must be a whole number, got 'true'"),
        (["--steps", "inf"], "--steps must be a whole number, got 'inf'"),
        (["--steps", "null"], "--steps must be a whole number, got 'null'"),
        (["--steps", "[[["], "--steps must be a whole number, got '[[['"),
        (["--learning_rate", "nan"], "--learning_rate must be a number, got 'nan'"),
        (["--learning_rate", ".nan"], "--learning_rate must be a number, got '.nan'"),
        (["--fast", "3"], "--fast must be true or false, got '3'"),
        (["--limit", "x"], "--limit must be a whole number or null, got 'x'"),
        (["--widths", "[1, x]"], "--widths must be a list, each a whole number, got '[1, x]'"),
        (["--widths", "[1, null]"], "--widths must be a list, each a whole number, got '[1, null]'"),
        (["--device", "cudda"], "--device must be one of cpu, cuda, got 'cudda'; did you mean cuda?"),
        (["--steps", "0"], "steps must be >= 1"),
        (["--teacher.temperature", "-1e-3"], "teacher: must be > 0, got -0.001"),
        (["--config", "none.yaml"], "cannot read none.yaml: No such file or directory"),
        (["--config", "."], "cannot read .: Is a directory"),
    ],
)
def test_a_wrong_word_is_one_line_and_code_2(run_python, tmp_path: Path, words: list[str], message: str) -> None:
    assert refuse(run_python, tmp_path, "--needed", "x", *words) == f"error: {message}\n"


def test_a_field_without_default_must_be_said(run_python, tmp_path: Path) -> None:
    assert refuse(run_python, tmp_path) == "error: --needed is needed: there is no default\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepz: 3", "bad.yaml: unknown key stepz; did you mean steps?"),
        ("teacher:\n  pth: a", "bad.yaml: unknown key teacher.pth; did you mean teacher.path?"),
        ("out: a", "bad.yaml: unknown key out"),
        ("1: 2", "bad.yaml: unknown key 1"),
        ("teacher: a.yaml", "bad.yaml: teacher is a group: set its fields, like teacher.path"),
        ("teacher: null", "bad.yaml: teacher is a group: set its fields, like teacher.path"),
        ("steps: ten", "bad.yaml: steps must be a whole number, got 'ten'"),
        ("steps: null", "bad.yaml: steps must be a whole number, got None"),
        ("steps: {a: 1}", "bad.yaml: steps must be a whole number, got {'a': 1}"),
        (
            "needed: 5",
            """bad.yaml: needed must be text, got 5; quotes make it text: "5" in a file, '"5"' in a shell""",
        ),
        (
            "needed: {class_path: os.system, init_args: {command: 'touch hacked'}}",
            "bad.yaml: needed must be text, got {'class_path': 'os.system', 'init_args': {'command': 'touch hacked'}}",
        ),
        ("learning_rate: .nan", "bad.yaml: learning_rate must be a number, got nan"),
        ("widths: &a [*a]", "bad.yaml: widths must be a list, each a whole number, got [[...]]"),
        ("needed: x\nsteps: 0", "steps must be >= 1"),
        ("- 1\n- 2", "bad.yaml must hold `key: value` lines, not a list"),
        ("just words", "bad.yaml must hold `key: value` lines, not a str"),
        ("steps: 1\nsteps: 2", "bad.yaml, line 1: not valid YAML: the key 'steps' is there twice"),
        ("teacher.path: a\nteacher:\n  path: b", "bad.yaml: the key teacher.path is there twice"),
        ("steps: [1\nfast: {", "bad.yaml, line 2: not valid YAML: expected ',' or ']', but got ':'"),
        ("needed: 2024-99-99", "bad.yaml: not valid YAML: month must be in 1..12"),
        ("needed: !!python/object/apply:os.system ['touch hacked']", "bad.yaml, line 1: not valid YAML: could not"),
        ("needed: \ud800", "bad.yaml: not valid YAML: 'utf-8' codec"),
    ],
)
def test_a_wrong_file_is_one_line_and_code_2(run_python, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    line = refuse(run_python, tmp_path, "--config", "bad.yaml")
    if message.endswith(("could not", "codec")):  # the rest is the library's wording
        line = "error: " + message + "\n" if line.startswith("error: " + message) else line
    assert line == f"error: {message}\n"
    assert not (tmp_path / "hacked").exists()


# ---- scripts ---------------------------------------------------------------------------------------------------


def test_a_user_error_anywhere_in_a_script_is_one_line_and_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    @run_script
    def main(text: str) -> None:
        raise UserError(text)

    with pytest.raises(SystemExit) as end:
        main("two\n  lines")
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: two lines\n"


def test_a_bug_in_a_script_keeps_its_traceback_and_a_result_passes() -> None:
    assert run_script(lambda x: x + 1)(1) == 2
    with pytest.raises(ZeroDivisionError):
        run_script(lambda: 1 / 0)()


def test_control_c_is_code_130_without_traceback(root: Path) -> None:
    program = (
        "import time\nfrom polydistill.errors import run_script\n"
        "@run_script\ndef main():\n    print('ready', flush=True)\n    time.sleep(60)\nmain()\n"
    )
    environment = os.environ | {"PYTHONPATH": str(root)}
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stderr == b"interrupted\n"


def test_suggest_names_the_nearest_or_nothing() -> None:
    assert suggest("pongg", ["breakout", "pong"]) == "; did you mean pong?"
    assert suggest("zzz", ["breakout", "pong"]) == ""
    assert suggest("a", iter(())) == ""


def test_importing_config_loads_neither_jsonargparse_nor_torch(run_python) -> None:
    code = "import sys, polydistill.config.parsing; print(sorted({'jsonargparse', 'torch', 'rich'} & set(sys.modules)))"
    assert run_python("-c", code).stdout == "[]\n"


@dataclass(frozen=True)
class Extra:
    """A group that most configs do not use."""

    left_out = True

    rate: float | None = None


@dataclass(frozen=True)
class Extended:
    """A config with such a group."""

    steps: int = 1
    extra: Extra = field(default_factory=Extra)


def test_a_group_that_nobody_uses_is_not_written() -> None:
    assert to_mapping(Extended()) == {"steps": 1}
    assert to_mapping(Extended(extra=Extra(rate=0.0))) == {"steps": 1, "extra": {"rate": 0.0}}
