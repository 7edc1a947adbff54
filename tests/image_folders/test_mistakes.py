"""What a user may get wrong: one line with exit code 2, before hours are spent, and nothing is lost."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from polydistill.errors import UserError
from polydistill.image_folders import library, pictures, pretrained
from polydistill.image_folders.folder import read_folders
from polydistill.image_folders.library import load_timm
from polydistill.image_folders.pictures import BrokenPictureError, UnreadPictureError, read_picture
from tests.image_folders.samples import NETWORK, Script, refused, write_pictures

# ---- the folder --------------------------------------------------------------------------------------------------


def read(root: Path) -> str:
    """The one line with which a folder is refused."""
    with pytest.raises(UserError) as error:
        read_folders(str(root), "train", "val")
    return str(error.value)


def test_a_folder_that_is_missing_or_empty_is_refused(tmp_path: Path) -> None:
    assert read(tmp_path / "none").endswith("none does not exist: name the folder that holds train/ and val/")
    (tmp_path / "file").write_text("")
    assert "file is a file: name the folder" in read(tmp_path / "file")
    assert "holds no folder train: pictures are expected as train/<class>/*.jpg" in read(tmp_path)
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    (tmp_path / ".cache").mkdir()
    assert "holds no folder val but test, train: pictures are expected" in read(tmp_path)
    (tmp_path / "val").mkdir()
    assert "train holds no class folders: a folder for each of two classes or more is needed" in read(tmp_path)
    write_pictures(tmp_path / "train", 1, classes=("one",))
    assert "train holds the one class one: " in read(tmp_path)


def test_class_folders_that_differ_or_hold_no_pictures_are_named(tmp_path: Path) -> None:
    write_pictures(tmp_path / "train", 1, classes=("a", "b", "c"))
    write_pictures(tmp_path / "val", 1, classes=("a", "b", "d"))
    assert read(tmp_path) == "the class folders of train and val differ: only train has c; only val has d"
    shutil.move(tmp_path / "val" / "d", tmp_path / "val" / "c")
    shutil.move(tmp_path / "train" / "b" / "0.jpg", tmp_path / "train" / "b" / "notes.txt")
    line = read(tmp_path)
    assert line.startswith(f"the class folder {tmp_path / 'train' / 'b'} holds no pictures (.bmp, ")


def test_links_hidden_files_upper_case_and_circles_are_no_trouble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("train", "val"):
        write_pictures(tmp_path / part, 1, classes=("a", "elsewhere", "日本"))
        shutil.move(tmp_path / part / "elsewhere", tmp_path / f"hidden {part}")
        (tmp_path / part / "b").symlink_to(tmp_path / f"hidden {part}", target_is_directory=True)
        (tmp_path / part / ".cache").mkdir()
        (tmp_path / part / "README.txt").write_text("")
        inside = tmp_path / part / "a"
        (inside / "._0.jpg").write_text("of a Mac")
        (inside / "deeper").mkdir()
        shutil.copy(inside / "0.jpg", inside / "deeper" / "SECOND.JPEG")
        (inside / "circle").symlink_to(inside, target_is_directory=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    train, test = read_folders("~", "train", "val")
    assert train.classes == test.classes == ("a", "b", "日本")
    assert train.files == ("a/0.jpg", "a/deeper/SECOND.JPEG", "b/0.jpg", "日本/0.jpg")
    assert train.labels == (0, 0, 1, 2)


# ---- pictures ----------------------------------------------------------------------------------------------------


def ramp() -> Image.Image:
    """Dark on the left, light on the right, 4 x 2 pixels."""
    return Image.fromarray(np.array([[0, 80, 160, 240]] * 2, dtype=np.uint8))


def test_pictures_of_every_kind_become_red_green_and_blue(tmp_path: Path) -> None:
    kinds = {
        "grey.png": ramp(),
        "grey and alpha.png": ramp().convert("LA"),
        "palette.png": ramp().convert("P"),
        "alpha.png": ramp().convert("RGBA"),
        "cmyk.tif": ramp().convert("RGB").convert("CMYK"),
        "deep.png": Image.fromarray(np.asarray(ramp()).astype(np.uint16) * 257),
        "bits.png": ramp().convert("1"),
    }
    for name, picture in kinds.items():
        picture.save(tmp_path / name)
        found = np.asarray(read_picture(tmp_path / name))
        assert found.shape == (2, 4, 3), name
        assert found[:, 0].max() < 60 < 200 < found[:, 3].min(), name
    ramp().save(tmp_path / "transparent.gif", transparency=0)
    ramp().save(tmp_path / "moving.gif", save_all=True, append_images=[ramp().rotate(180)])
    for name in ("transparent.gif", "moving.gif"):
        assert np.asarray(read_picture(tmp_path / name))[0, 3, 0] > 200, "the first frame"
    exif = Image.Exif()
    exif[0x0112] = 6  # held by its right side
    ramp().convert("RGB").save(tmp_path / "turned.png", exif=exif)
    assert read_picture(tmp_path / "turned.png").size == (2, 4)


def test_what_is_no_picture_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = {"empty.jpg": b"", "text.jpg": b"<html>", "postscript.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n"}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BrokenPictureError, match=rf"{name} is no picture of JPEG, PNG"):
            read_picture(tmp_path / name)
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(BrokenPictureError, match=r"pipe\.jpg cannot be decoded: it is no file"):
        read_picture(tmp_path / "pipe.jpg")
    Image.fromarray(np.zeros((4, 4), dtype=np.float32)).save(tmp_path / "numbers.tif")
    with pytest.raises(BrokenPictureError, match=r"numbers\.tif cannot be decoded: its pixels are of the kind F"):
        read_picture(tmp_path / "numbers.tif")
    ramp().save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 7)
    with pytest.raises(BrokenPictureError, match=r"huge\.png cannot be decoded: Image size \(8 pixels\) exceeds"):
        pictures.check_header(tmp_path / "huge.png")


def test_what_the_disk_does_not_give_is_no_broken_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnreadPictureError, match=r"gone\.jpg cannot be read from the disk: No such file"):
        read_picture(tmp_path / "gone.jpg")
    ramp().save(tmp_path / "there.png")

    def failing(number: int) -> None:
        def fail(*_: object, **__: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(Image, "open", fail)

    for number in (errno.EIO, errno.ESTALE, errno.EMFILE):
        failing(number)
        with pytest.raises(UnreadPictureError, match=os.strerror(number)):
            pictures.check_header(tmp_path / "there.png")
    failing(errno.EINVAL)  # a damaged file that names a place before its beginning
    with pytest.raises(BrokenPictureError, match="cannot be decoded: Invalid argument"):
        pictures.check_header(tmp_path / "there.png")


@pytest.mark.parametrize(("workers", "check"), [("0", "headers"), ("0", "none"), ("1", "none")])
def test_a_disk_that_fails_ends_a_run_in_one_line_though_broken_pictures_are_skipped(
    script: Script, words: list[str], pictures: Path, monkeypatch: pytest.MonkeyPatch, workers: str, check: str
) -> None:
    path, opened = pictures / "val" / "müll" / "3.jpg", Image.open

    def fails(file: Any, **options: Any) -> Image.Image:
        if file.name == str(path) or file.name == path:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return opened(file, **options)

    monkeypatch.setattr(Image, "open", fails)
    options = ["--data.broken", "skip", "--data.check", check, "--data.workers", workers, "--training.epochs", "1"]
    assert refused(script(*words, *options)) == f"error: {path} cannot be read from the disk: Input/output error"


def truncate(path: Path) -> None:
    """Leave the header whole."""
    path.write_bytes(path.read_bytes()[:-300])


def test_a_broken_header_is_found_before_training_and_skipped_by_option(
    script: Script, words: list[str], pictures: Path, tmp_path: Path
) -> None:
    (pictures / "train" / "müll" / "3.jpg").write_bytes(b"no")
    (pictures / "train" / "müll" / "4.jpg").write_bytes(b"no")
    error = refused(script(*words))
    assert f"{pictures / 'train' / 'müll' / '3.jpg'} is no picture of JPEG" in error
    assert "nor can 1 more; fix or remove them, or leave them out by --data.broken skip" in error
    assert not (tmp_path / "run").exists()
    done = script(*words, "--data.broken", "skip")
    assert done.code == 0, done.err
    assert "34 pictures" in done.out
    assert "(2 that cannot be decoded" in " ".join(done.out.split())
    assert done.err.count("left out: ") == 2


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_broken_body_ends_a_run_in_one_line_or_counts_for_nothing(
    script: Script, words: list[str], pictures: Path, tmp_path: Path, workers: str
) -> None:
    path = pictures / "val" / "müll" / "3.jpg"
    truncate(path)
    words += ["--data.workers", workers, "--training.epochs", "1"]
    assert refused(script(*words)).startswith(f"error: {path} cannot be decoded: ")
    done = script(*words, "--data.broken", "skip", "--out", tmp_path / "skips")
    assert done.code == 0, done.err
    assert done.err.count(f"left out: {path} cannot be decoded") == 1, "once, not at every look"
    assert "(1 that cannot be decoded" in " ".join(done.out.split())
    assert json.loads((tmp_path / "skips" / "summary.json").read_text())["data"]["left_out"] == 1
    assert f"{path} cannot be decoded" in refused(script(*words, "--data.check", "whole", "--out", tmp_path / "whole"))


# ---- the teacher -------------------------------------------------------------------------------------------------


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """A network of five classes."""
    network = load_timm().create_model(NETWORK.removeprefix("timm:"), num_classes=5)
    save_file(network.state_dict(), tmp_path / "teacher.safetensors")
    return tmp_path / "teacher.safetensors"


def test_a_teacher_of_other_classes_is_refused_with_both_numbers(
    script: Script, words: list[str], teacher: Path, tmp_path: Path
) -> None:
    words += ["--teacher.path", str(teacher)]
    error = refused(script(*words))
    assert f"{teacher} tells 5 classes apart, and 3 are expected: name the classes" in error
    assert not (tmp_path / "run").exists()
    assert refused(script(*words, "--dry_run")) == error
    names = tmp_path / "names.txt"
    for text, expected in {
        "a\nb\nclass 2\nclass 10\nc\n": "names no class müll of the folder; it names a, b, class 2 and 2 more",
        "a\nb\nmüll\nclass 2\nclass 10\nc\n": "names.txt names 6 classes, and",
        "a\na\nmüll\nclass 2\nclass 10\n": "has a twice: which score is meant?",
        "[1, 2]": "is no list of names, one per line or in JSON",
        "[": "is no list of names, one per line or in JSON",
    }.items():
        names.write_text(text, encoding="utf-8")
        assert expected in refused(script(*words, "--teacher.classes", names))
    assert "cannot read none.txt" in refused(script(*words, "--teacher.classes", "none.txt"))


def test_weights_that_do_not_fit_are_refused(script: Script, words: list[str], teacher: Path, tmp_path: Path) -> None:
    words += ["--teacher.path", str(teacher)]
    other = refused(script(*words, "--teacher.network", "timm:test_efficientnet"))
    assert "does not fit teacher.network timm:test_efficientnet with 3 classes: missing " in other
    teacher.write_bytes(b"no")
    assert "is no safetensors file, or damaged" in refused(script(*words))
    assert "there is no file none.pth" in refused(script(*words, "--teacher.path", "none.pth"))

    class Runs:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'executed'}",)

    torch.save({"state_dict": {}, "args": Runs()}, tmp_path / "hostile.pth")
    assert "holds more than weights" in refused(script(*words, "--teacher.path", tmp_path / "hostile.pth"))
    assert not (tmp_path / "executed").exists()


def test_another_teacher_than_a_run_began_with_is_refused(script: Script, words: list[str], tmp_path: Path) -> None:
    make = load_timm().create_model
    for name in ("first", "second"):
        save_file(make("test_resnet", num_classes=3).state_dict(), tmp_path / f"{name}.safetensors")
    assert script(*words, "--teacher.path", tmp_path / "first.safetensors").code == 0
    shutil.copy(tmp_path / "first.safetensors", tmp_path / "moved.safetensors")
    grown = [*words, "--lineage.generations", "2", "--teacher.path"]
    assert "the teacher has other weights than the one" in refused(script(*grown, tmp_path / "second.safetensors"))
    assert script(*grown, tmp_path / "moved.safetensors").code == 0


def test_the_names_of_a_teachers_classes_may_lie_elsewhere_and_must_stay_what_they_were(
    script: Script, words: list[str], teacher: Path, tmp_path: Path
) -> None:
    names = ["a", "müll", "class 10", "b", "class 2"]
    for file, found in {"names": names, "moved": names, "other": names[::-1]}.items():
        (tmp_path / f"{file}.txt").write_text("\n".join(found), encoding="utf-8")
    words += ["--teacher.path", str(teacher), "--training.epochs", "1"]
    assert script(*words, "--teacher.classes", tmp_path / "names.txt").code == 0
    grown = [*words, "--lineage.generations", "2"]
    error = refused(script(*grown, "--teacher.classes", tmp_path / "other.txt"))
    assert f"with teacher.classes {tmp_path / 'other.txt'} the teacher has other weights than the one" in error
    assert "teacher.classes is" in refused(script(*grown, "--dry_run"))
    done = script(*grown, "--teacher.classes", tmp_path / "moved.txt", "--dry_run")
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ((401, 401), "(its answer is HTTP 401): they are not for everybody: ask for them on their page there"),
        ((403, 403), "(its answer is HTTP 403): they are not for everybody"),
        ((404, 404), "(its answer is HTTP 404): they are not there: leave teacher.pretrained out"),
        ((404, 403), "(its answer is HTTP 403): they are not for everybody"),
        ((503, 503), "(its answer is HTTP 503): try again later"),
        ((404, 0), ""),
    ],
)
def test_weights_that_the_hub_refuses_are_told_apart_from_a_hub_out_of_reach(
    monkeypatch: pytest.MonkeyPatch, answers: tuple[int, int], expected: str
) -> None:
    import huggingface_hub

    left = list(answers)

    def ask(url: str, timeout: float) -> None:
        if status := left.pop(0):
            error = OSError("Client Error")
            error.response = SimpleNamespace(status_code=status)  # type: ignore[attr-defined]
            raise error

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repository, file: None)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", ask)
    if not expected:
        pretrained.require_weights(NETWORK)  # the second name of the file is there
        assert not left
        return
    with pytest.raises(UserError) as error:
        pretrained.require_weights(NETWORK)
    assert expected in str(error.value)
    assert "where it can be reached" not in str(error.value)


def test_a_hub_that_cannot_be_reached_is_one_line_before_anything_long(
    script: Script, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: list[float] = []

    def offline(url: str, timeout: float) -> None:
        asked.append(timeout)
        raise OSError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", offline)
    error = refused(script(*words, "--teacher.pretrained", "--data.root", "none"))
    assert "the weights of timm:test_resnet cannot be fetched from the Hugging Face Hub (Name or service" in error
    assert asked == [5.0]
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repository, file: "there.safetensors")
    assert "data.root none does not exist" in refused(script(*words, "--teacher.pretrained", "--data.root", "none"))
    none = refused(script(*words, "--teacher.pretrained", "--teacher.network", "timm:botnet50ts_256"))
    assert "timm has no weights of timm:botnet50ts_256: leave teacher.pretrained out" in none


def test_weights_that_cannot_be_fetched_are_one_line(
    script: Script, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url, timeout: None)
    make = load_timm().create_model

    def offline(name: str, **options: Any) -> Any:
        if options.get("pretrained"):
            raise OSError("We couldn't connect\nto the Hub")
        return make(name, **options)

    monkeypatch.setattr(load_timm(), "create_model", offline)
    error = refused(script(*words, "--teacher.pretrained", "--student.network", "resnet-8"))
    assert "the weights of timm:test_resnet cannot be fetched from the Hugging Face Hub (We couldn't connect)" in error
    assert "give the file by --teacher.path" in error


LOSS = """
from polydistill.losses import ban
CALLS = []
def fails(student, teacher, labels):
    CALLS.append(len(student))
    if len(CALLS) > 6:
        raise ValueError("mine")
    return ban(student, teacher)
"""


def test_a_loss_that_fails_while_it_teaches_keeps_its_traceback_and_says_in_which_batch(
    script: Script, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(LOSS)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match="mine") as error:
        script(*words, "--student.objective", "mine:fails")
    assert re.fullmatch(r"in batch \d of epoch 1 of generation 1", error.value.__notes__[0])
    assert error.traceback[-1].path.name == "mine.py"


# ---- timm and the config -----------------------------------------------------------------------------------------


def test_a_torchvision_that_does_not_fit_torch_is_one_line(
    script: Script, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    library.load_timm.cache_clear()
    monkeypatch.setattr(library, "import_module", broken)
    error = refused(script(*words))
    assert error.startswith("error: timm cannot be imported (operator torchvision::nms does not exist): install the ")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--teacher.network timm:resnt18", "timm has no network 'resnt18'; did you mean timm:resnet18"),
        ("--teacher.network resnet18", "networks of timm begin with timm:, as timm:resnet18"),
        ("--student.network timm:resnet18.bogus", "timm has no weights 'resnet18.bogus' (there are resnet18."),
        ("--augmentation.auto_augment bogus", "timm knows no policy 'bogus'"),
        ("--training.batch_size 37", "training.batch_size is 37, but train holds 36 pictures"),
        ("--data.validation_images 30", "30 of which are held out for validation"),
        ("--data.test train", "a network is not tested on what it learned from"),
        ("--teacher.pretrained --teacher.path x", "path and pretrained name two teachers"),
        ("--teacher.classes x", "classes is of a teacher that is given"),
        ("--evaluation.selection best_val", "but data.validation_images is 0"),
        ("--student.objective dkpp --student.permutation fixed", "permutation cannot be fixed here"),
        ("--augmentation.scale [0.5]", "scale must be two numbers above 0, the smaller first"),
        ("--augmentation.mixup 0.2 --training.batch_size 7", "mixed pictures need an even one"),
        ("--training.ema 1", "ema must lie between 0 and 1, as 0.999, got 1"),
        ("--augmentation.cutmix 1 --data.broken skip", "does not go with mixed pictures unless data.check is whole"),
        ("--student.objective no_module:loss", "cannot be imported"),
        (
            "--training.epochs 100000000 --training.log_every_steps 1",
            "are free; make room, and the same command goes on",
        ),
        ("--teacher.network timm:test_vit --teacher.image_size 50", "timm:test_vit does not take pictures of 50 x 50"),
    ],
)
def test_a_config_that_cannot_work_is_one_line(
    script: Script, words: list[str], tmp_path: Path, options: str, expected: str
) -> None:
    assert expected in refused(script(*words, *options.split()))
    assert not (tmp_path / "run").exists()


def test_without_a_folder_one_line_asks_for_it(script: Script) -> None:
    assert refused(script()) == "error: --data.root is needed: there is no default"
