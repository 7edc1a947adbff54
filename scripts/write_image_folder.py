"""Write CIFAR images as a folder of JPEG files, train/<class>/*.jpg and val/<class>/*.jpg, for distill_images.py.

python scripts/write_image_folder.py --data.made_up 600 --out pictures                   made-up images, seconds
python scripts/write_image_folder.py --data.root DIR --per_class 50 --side 96 --out pictures
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # this clone's packages, installed or not
from polydistill._environment import require_environment

require_environment("timm")

from dataclasses import dataclass, field
from pathlib import Path

from polydistill.config.parsing import parse
from polydistill.disk import disk_errors
from polydistill.errors import UserError, require_at_least, require_at_most, run_script
from polydistill.vision.images.data import DataConfig, ImageSet, load_images


@dataclass(frozen=True)
class WriteConfig:
    """Which images are written, and how.

    Args:
        out: folder to write, which must be new or empty.
        data: which images.
        per_class: most images of each class to learn from; 0: all.
        test_per_class: most images of each class to be tested on; 0: all.
        side: pixels of a square picture.
        quality: of the JPEG files, 1 to 95.
    """

    out: str
    data: DataConfig = field(default_factory=lambda: DataConfig(validation_images=0))
    per_class: int = 0
    test_per_class: int = 0
    side: int = 96
    quality: int = 90

    def __post_init__(self) -> None:
        require_at_least(0, self, "per_class", "test_per_class")
        require_at_least(1, self, "side", "quality")
        require_at_most(95, self, "quality")


@run_script
def main(argv: list[str] | None = None) -> None:
    """Write the files."""
    config = parse(
        WriteConfig, argv, program="python scripts/write_image_folder.py", description=__doc__ or "", default_name=None
    ).config
    out = Path(config.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there and not empty: give --out another folder")
    images = load_images(config.data, "cpu")
    n_train = write(images.train, out / "train", config.per_class, config)
    n_test = write(images.test, out / "val", config.test_per_class, config)
    print(f"{out}: {n_train:,} pictures to learn from, {n_test:,} to be tested on")


def write(images: ImageSet, folder: Path, most: int, config: WriteConfig) -> int:
    """Write the first ``most`` of each class; how many there are."""
    from PIL import Image

    written: dict[int, int] = {}
    for pixels, label in zip(images.images.numpy(), images.labels.tolist(), strict=True):
        number = written.get(label, 0)
        if most and number >= most:
            continue
        path = folder / f"class_{label:03d}" / f"{number:05d}.jpg"
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(pixels).resize((config.side, config.side), Image.Resampling.BICUBIC)
            picture.save(path, quality=config.quality)
        written[label] = number + 1
    return sum(written.values())


if __name__ == "__main__":
    main()
