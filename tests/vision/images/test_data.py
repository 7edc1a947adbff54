"""polydistill.vision.archives and data: the official bytes, or one line that says what is wrong with them."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import re
import socket
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from polydistill.errors import UserError
from polydistill.vision.images import archives, data
from polydistill.vision.images.archives import RELEASES, Rows, encode_rows, read_release
from polydistill.vision.images.choices import choose_per_class, choose_validation
from polydistill.vision.images.data import DataConfig, load_images, measure_normalization, write_made_up

HUNDRED = RELEASES["cifar100"]


def row(label: int, *, release: str = "cifar100", red: int = 0, green: int = 0, blue: int = 0) -> bytes:
    """One row, put together by hand from the format's description."""
    labels = bytes([label // 5, label]) if release == "cifar100" else bytes([label])
    return labels + bytes([red]) * 1024 + bytes([green]) * 1024 + bytes([blue]) * 1024


def write_hundred(folder: Path, train: bytes, test: bytes) -> Path:
    (folder / "cifar-100-binary").mkdir(parents=True, exist_ok=True)
    (folder / "cifar-100-binary" / "train.bin").write_bytes(train)
    (folder / "cifar-100-binary" / "test.bin").write_bytes(test)
    return folder


def write_archive(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


# ---- the format --------------------------------------------------------------------------------------------------


def test_a_row_is_its_fine_label_and_its_planes_of_red_green_and_blue(tmp_path: Path) -> None:
    pixels = bytearray(row(42, red=10, green=20, blue=30))
    pixels[2 + 33] = 99  # red, second row, second column
    write_hundred(tmp_path, bytes(pixels), row(7))
    train, test = read_release("cifar100", tmp_path, official=False)
    assert train.labels.tolist() == [42]
    assert test.labels.tolist() == [7]
    assert train.images[0, 0, 0].tolist() == [10, 20, 30]
    assert train.images[0, 1, 1].tolist() == [99, 20, 30]
    assert (train.images == 99).sum() == 1


def test_cifar10_has_one_label_and_five_files_in_order(tmp_path: Path) -> None:
    for index in range(1, 6):
        (tmp_path / f"data_batch_{index}.bin").write_bytes(row(index, release="cifar10", blue=index))
    (tmp_path / "test_batch.bin").write_bytes(row(9, release="cifar10"))
    train, test = read_release("cifar10", tmp_path, official=False)
    assert train.labels.tolist() == [1, 2, 3, 4, 5]
    assert train.images[:, 0, 0, 2].tolist() == [1, 2, 3, 4, 5]
    assert test.labels.tolist() == [9]


def test_folder_folder_above_and_archive_give_the_same_rows(tmp_path: Path) -> None:
    content = {"train.bin": row(1) + row(2), "test.bin": row(3)}
    above = write_hundred(tmp_path, content["train.bin"], content["test.bin"])
    packed = tmp_path / "packed"
    packed.mkdir()
    archive = write_archive(
        packed / "cifar-100-binary.tar.gz", {f"cifar-100-binary/{name}": text for name, text in content.items()}
    )
    for root in (above, above / "cifar-100-binary", packed, archive):
        train, test = read_release("cifar100", root, official=False)
        assert (train.labels.tolist(), test.labels.tolist()) == ([1, 2], [3])


def test_encoded_rows_are_decoded_unchanged() -> None:
    generator = np.random.default_rng(0)
    rows = Rows(
        generator.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8), generator.integers(0, 100, 6, dtype=np.uint8)
    )
    back = archives.decode_rows(HUNDRED, [("a", encode_rows(HUNDRED, rows))], official=False)
    assert np.array_equal(back.images, rows.images)
    assert np.array_equal(back.labels, rows.labels)


# ---- the real set ------------------------------------------------------------------------------------------------


def test_the_real_set_has_its_published_counts_and_statistics(real_cifar100: Path) -> None:
    images = load_images(DataConfig(root=str(real_cifar100)))
    assert (len(images.train), len(images.validation), len(images.test)) == (45_000, 5_000, 10_000)
    assert images.train.labels.bincount().unique().tolist() == [450]
    assert images.validation.labels.bincount().unique().tolist() == [50]
    assert images.test.labels.bincount().unique().tolist() == [100]
    assert images.normalization.mean == pytest.approx((0.50708, 0.48655, 0.44092), abs=1e-5)
    assert images.normalization.std == pytest.approx((0.26733, 0.25644, 0.27615), abs=1e-5)


def test_the_split_of_the_real_set_is_the_one_of_every_result(real_cifar100: Path) -> None:
    train, _ = read_release("cifar100", real_cifar100)
    held_out = choose_validation(train.labels, 5_000)
    assert (
        hashlib.sha256(np.packbits(held_out).tobytes()).hexdigest()
        == "79029ca3bd152a4a1c9faef9d79c32bca91ed17a0f11de3fd204d809b288c7cc"
    )


def test_one_flipped_bit_of_the_real_set_is_found(real_cifar100: Path, tmp_path: Path) -> None:
    source = next(
        folder for folder in (real_cifar100, real_cifar100 / HUNDRED.folder) if (folder / "test.bin").is_file()
    )
    content = bytearray((source / "test.bin").read_bytes())
    content[1_000_000] ^= 1
    write_hundred(tmp_path, (source / "train.bin").read_bytes(), bytes(content))
    with pytest.raises(UserError, match=r"test\.bin is damaged: its md5 is"):
        read_release("cifar100", tmp_path)


# ---- what is wrong with it ---------------------------------------------------------------------------------------


def test_rows_that_are_not_the_official_ones_need_a_word(tmp_path: Path) -> None:
    write_hundred(tmp_path, row(1), row(2))
    with pytest.raises(UserError, match=r"train\.bin holds 1 images, the official one 50,000.*--data\.official false"):
        read_release("cifar100", tmp_path)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (row(1) + row(2)[:-1], r"train\.bin is truncated: 6,147 bytes are no multiple of 3,074"),
        (b"", r"train\.bin holds no images"),
        (row(1) + bytes([20, 100]) + bytes(3072), r"train\.bin: image 1 has label 100, but there are 100 classes"),
    ],
)
def test_a_damaged_file_is_one_clear_line_that_names_its_folder(tmp_path: Path, train: bytes, message: str) -> None:
    with pytest.raises(UserError, match=rf"^in {tmp_path} \(data\.root\): {message}"):
        read_release("cifar100", write_hundred(tmp_path, train, row(1)), official=False)


def test_a_label_out_of_range_names_its_own_file(tmp_path: Path) -> None:
    write_made_up("cifar10", tmp_path, 50, 10)
    (tmp_path / "data_batch_3.bin").write_bytes(row(10, release="cifar10"))
    with pytest.raises(UserError, match=r"data_batch_3\.bin: image 0 has label 10"):
        read_release("cifar10", tmp_path, official=False)


def test_an_empty_folder_says_what_belongs_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cifar-100-binary/train\.bin nor cifar-100-binary\.tar\.gz"):
        read_release("cifar100", tmp_path)


def test_a_missing_test_file_is_named(tmp_path: Path) -> None:
    write_hundred(tmp_path, row(1), row(1))
    (tmp_path / "cifar-100-binary" / "test.bin").unlink()
    with pytest.raises(UserError, match=r"cannot read .*test\.bin"):
        read_release("cifar100", tmp_path, official=False)


def test_an_archive_with_another_checksum_is_refused(tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "cifar-100-binary.tar.gz", {"cifar-100-binary/train.bin": row(1)})
    with pytest.raises(UserError, match="is damaged: its md5 is"):
        read_release("cifar100", archive)


@pytest.mark.parametrize("keep", [0, 10, 1000])
def test_a_truncated_archive_is_one_line(tmp_path: Path, keep: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, 3072, dtype=np.uint8).tobytes()
    archive = write_archive(tmp_path / "a.tar.gz", {"cifar-100-binary/train.bin": bytes(2) + noise})
    archive.write_bytes(archive.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"truncated or damaged|holds no"):
        read_release("cifar100", archive, official=False)


def test_an_archive_with_damage_inside_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(b"no tar file at all" * 100))
    with pytest.raises(UserError, match="truncated or damaged"):
        read_release("cifar100", path, official=False)


def test_links_and_paths_in_an_archive_reach_nothing(tmp_path: Path) -> None:
    path = tmp_path / "cifar-100-binary.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        link = tarfile.TarInfo("cifar-100-binary/train.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
        outside = tarfile.TarInfo("../outside")
        archive.addfile(outside, io.BytesIO(b""))
    with pytest.raises(UserError, match=r"holds no cifar-100-binary/train\.bin"):
        read_release("cifar100", path, official=False)
    assert not (tmp_path.parent / "outside").exists()


def test_without_network_one_line_says_which_file_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*arguments: object, **options: object) -> None:
        raise OSError("the network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    with pytest.raises(UserError) as caught:
        archives.download("cifar100", tmp_path)
    text = str(caught.value)
    assert "\n" not in text
    for part in ("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz", str(tmp_path), "--data.root"):
        assert part in text


def test_a_download_with_the_right_checksum_is_read_and_shows_its_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_made_up("cifar100", tmp_path, 300, 200)
    content = {f"{HUNDRED.folder}/{name}": (tmp_path / name).read_bytes() for name in ("train.bin", "test.bin")}
    served = write_archive(tmp_path / HUNDRED.archive, content).read_bytes()
    release = HUNDRED._replace(
        archive_md5=hashlib.md5(served, usedforsecurity=False).hexdigest(),
        rows_per_file={"train.bin": 300, "test.bin": 200},
    )
    asked: list[str] = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(served)))
            self.end_headers()
            self.wfile.write(served)

        def log_message(self, *arguments: object) -> None:
            pass

    monkeypatch.setitem(archives.RELEASES, "cifar100", release)
    monkeypatch.chdir(tmp_path)
    with http.server.HTTPServer(("127.0.0.1", 0), Server) as server:
        monkeypatch.setattr(archives, "URL", f"http://127.0.0.1:{server.server_port}/~kriz/")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            first, again = (load_images(DataConfig(validation_images=100)) for _ in range(2))
        finally:
            server.shutdown()
            thread.join()
    assert asked == ["/~kriz/cifar-100-binary.tar.gz"], "once for both"
    assert "100%" in capsys.readouterr().err
    assert (tmp_path / "data" / HUNDRED.archive).read_bytes() == served
    assert (len(first.train), len(first.validation), len(first.test)) == (200, 100, 200)
    assert torch.equal(first.train.images, again.train.images)
    rows = np.frombuffer((tmp_path / "train.bin").read_bytes(), np.uint8).reshape(300, -1)
    pixels = rows[~choose_validation(rows[:, 1], 100), 2:].reshape(200, 3, 32, 32)
    assert np.array_equal(first.train.images.permute(0, 3, 1, 2).numpy(), pixels)


def test_a_download_with_another_checksum_is_refused_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = tmp_path / "served"
    served.mkdir()
    (served / "cifar-100-binary.tar.gz").write_bytes(b"another file")

    def copy(url: str, output_file: str, pooch: object) -> None:
        Path(output_file).write_bytes((served / url.rsplit("/", 1)[1]).read_bytes())

    monkeypatch.setattr("pooch.core.choose_downloader", lambda url, progressbar=False: copy)
    with pytest.raises(UserError, match=r"cannot get cifar-100-binary\.tar\.gz .*by hand"):
        archives.download("cifar100", tmp_path / "data")
    assert [path for path in (tmp_path / "data").rglob("*") if path.is_file()] == []


def test_a_file_that_is_there_is_not_downloaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"the archive"
    release = HUNDRED._replace(archive_md5=hashlib.md5(content, usedforsecurity=False).hexdigest())
    monkeypatch.setitem(archives.RELEASES, "cifar100", release)
    (tmp_path / "cifar-100-binary.tar.gz").write_bytes(content)

    def refuse(url: str, progressbar: bool = False) -> None:
        raise AssertionError("nothing is to be downloaded")

    monkeypatch.setattr("pooch.core.choose_downloader", refuse)
    assert archives.download("cifar100", tmp_path) == tmp_path / "cifar-100-binary.tar.gz"


# ---- parts of it -------------------------------------------------------------------------------------------------


def test_the_validation_images_are_fixed_balanced_and_as_many_as_asked() -> None:
    labels = np.repeat(np.arange(100, dtype=np.uint8), 20)
    np.random.default_rng(0).shuffle(labels)
    held_out = choose_validation(labels, 200)
    assert np.bincount(labels[held_out]).tolist() == [2] * 100
    assert np.array_equal(held_out, choose_validation(labels, 200))
    # results on 45,000 training images of another split would be other results
    held_out = choose_validation(np.repeat(np.arange(100, dtype=np.uint8), 500), 5_000)
    assert (
        hashlib.sha256(np.packbits(held_out).tobytes()).hexdigest()
        == "48e3243993bcc7b0795da5294a3e592bf85ef2140e57020f43235acc963c9f02"
    )
    for n in (0, 1, 77, 1999):
        assert choose_validation(labels, n).sum() == n


def test_images_per_class_are_the_same_ones_in_every_run_and_none_of_validation(made_up_cifar10: Path) -> None:
    def load(n: int, **options: int) -> data.Images:
        root = str(made_up_cifar10)
        return load_images(
            DataConfig("cifar10", root, official=False, validation_images=40, images_per_class=n, **options)
        )

    def pictures(part: data.ImageSet) -> set[bytes]:
        return {image.numpy().tobytes() for image in part.images}

    few, more, everything = load(3), load(7), load(0)
    assert few.train.labels.bincount().tolist() == [3] * 10
    assert more.train.labels.bincount().tolist() == [7] * 10
    assert pictures(few.train) < pictures(more.train) < pictures(everything.train), "never an image of validation"
    for images in (few, more):
        assert torch.equal(images.validation.images, everything.validation.images)
        assert torch.equal(images.test.images, everything.test.images)
        assert images.normalization == everything.normalization
    chosen = choose_per_class(np.repeat(np.arange(3, dtype=np.uint8), 100), 2, 3)
    assert np.flatnonzero(chosen).tolist() == [17, 46, 122, 193, 237, 261], (
        "stored, since other images would give other results"
    )


def test_the_first_classes_alone_are_left_in_every_part(made_up_cifar10: Path) -> None:
    options = {"name": "cifar10", "root": str(made_up_cifar10), "official": False}
    whole = load_images(DataConfig(**options, validation_images=0))  # type: ignore[arg-type]
    part = load_images(DataConfig(**options, validation_images=20, classes=4))  # type: ignore[arg-type]
    assert part.classes == 4
    assert part.validation.labels.bincount().tolist() == [5] * 4
    assert len(part.train) + 20 == (whole.train.labels < 4).sum()
    assert torch.equal(part.test.images, whole.test.images[whole.test.labels < 4])
    assert torch.equal(part.test.labels, whole.test.labels[whole.test.labels < 4])
    assert part.normalization == whole.normalization


def test_counts_of_a_few_classes_are_known_before_the_files_are_read() -> None:
    config = DataConfig(validation_images=1_000, classes=20)
    assert (config.n_classes, config.images_to_learn, config.known_images("test")) == (20, 9_000, 2_000)
    assert DataConfig(validation_images=1_000, classes=20, images_per_class=25).images_to_learn == 500
    for made_up in (200, 207, 250):
        config = DataConfig(made_up=made_up, validation_images=5, classes=30)
        images = load_images(config)
        assert (config.images_to_learn, config.known_images("test")) == (len(images.train), len(images.test))


def test_a_class_with_too_few_images_is_named(made_up_cifar10: Path) -> None:
    config = DataConfig("cifar10", str(made_up_cifar10), official=False, validation_images=40, images_per_class=17)
    with pytest.raises(UserError, match=r"images_per_class is 17, but class 0 has 16 images beside those of valid"):
        load_images(config)
    with pytest.raises(UserError, match="there is no image of the first 2 classes"):
        data._take_classes(Rows(np.zeros((1, 32, 32, 3), np.uint8), np.array([7], np.uint8)), 2)


def test_train_and_validation_are_disjoint_and_together_all(made_up_cifar10: Path) -> None:
    config = DataConfig("cifar10", root=str(made_up_cifar10), official=False, validation_images=40)
    images = load_images(config)
    everything = load_images(DataConfig("cifar10", root=str(made_up_cifar10), official=False, validation_images=0))

    def pictures(*parts: data.ImageSet) -> list[bytes]:
        return sorted(image.numpy().tobytes() for part in parts for image in part.images)

    assert len(set(pictures(images.train, images.validation))) == 200
    assert pictures(images.train, images.validation) == pictures(everything.train)
    assert images.normalization == everything.normalization


def test_statistics_are_those_of_all_pixels() -> None:
    images = np.random.default_rng(1).integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)
    measured = measure_normalization(images)
    scaled = torch.from_numpy(images).double() / 255
    assert measured.mean == pytest.approx(scaled.mean(dim=(0, 1, 2)).tolist(), abs=1e-12)
    assert measured.std == pytest.approx(scaled.std(dim=(0, 1, 2), correction=0).tolist(), abs=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_images": 201, "validation_images": 0}, "data.train_images is 201, but there are 200"),
        ({"test_images": 101, "validation_images": 0}, "data.test_images is 101, but there are 100"),
        ({"validation_images": 200}, "leaves nothing of 200 images"),
    ],
)
def test_a_slice_larger_than_the_data_is_refused(made_up_cifar10: Path, options: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        load_images(DataConfig("cifar10", root=str(made_up_cifar10), official=False, **options))


@pytest.mark.parametrize(
    "options",
    [
        {"train_images": -1},
        {"made_up": 5},
        {"train_images": 5000},
        {"made_up": 1000, "validation_images": 1000},
    ],
)
def test_a_config_out_of_range_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"must|leaves nothing"):
        DataConfig(**options)


def test_made_up_images_take_the_same_road_and_have_all_classes() -> None:
    images = load_images(DataConfig("cifar100", made_up=400, validation_images=100))
    assert (len(images.train), len(images.validation), len(images.test)) == (300, 100, 400)
    assert images.test.labels.bincount().tolist() == [4] * 100
    again = load_images(DataConfig("cifar100", made_up=400, validation_images=100))
    assert torch.equal(images.train.images, again.train.images)


def test_made_up_classes_can_be_told_apart_but_near_ones_overlap() -> None:
    images = load_images(DataConfig("cifar100", made_up=5_000, validation_images=0))

    def colours(part: data.ImageSet) -> torch.Tensor:
        return torch.cat([part.images[:, rows].double().mean(dim=(1, 2)) for rows in (slice(0, 16), slice(16, 32))], 1)

    known, labels = colours(images.train), images.train.labels
    centres = torch.stack([known[labels == label].mean(dim=0) for label in range(100)])
    right = torch.cdist(colours(images.test), centres).argmin(dim=1) == images.test.labels
    assert 0.9 < right.double().mean() < 0.995, "by the nearest mean colours; guessing gives 0.01"
