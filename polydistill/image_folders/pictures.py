"""One picture from one file: decoded by Pillow, upright, in red, green and blue; what cannot be read is one line.

Contract: only formats whose readers are part of Pillow are opened, so that no file starts another program; a picture
whose header claims more pixels than Pillow trusts is refused before they are decoded.
"""

from __future__ import annotations

import errno
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from polydistill.errors import UserError, printable

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000")
ENDINGS = frozenset(
    ".jpg .jpeg .jpe .jfif .png .gif .webp .bmp .tif .tiff .ppm .pgm .pbm .jp2 .j2k".split()  # noqa: SIM905
)
MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV"})  # of eight bits or fewer
DEEP = "I;16"  # how the names of modes of sixteen bits begin
NO_FAULT_OF_THE_DISK = (None, errno.EINVAL, errno.EOVERFLOW)  # of Pillow itself, or it sought a place there is not
IN_WORKER = "Caught "  # how torch begins the text of an error of a loader's worker


class PictureError(UserError):
    """A file whose picture is not there; of a text that comes from a loader's worker only the last line is told."""

    def __init__(self, text: str) -> None:
        last = text.strip().splitlines()[-1] if text.startswith(IN_WORKER) else ""
        super().__init__(last.partition(f"{type(self).__name__}: ")[2] or text)


class BrokenPictureError(PictureError):
    """The file cannot be decoded."""


class UnreadPictureError(PictureError):
    """The disk did not give the file: another time it may, so that it is not to be left out."""


def check_header(path: Path) -> None:
    """Read what a file says of itself, and decode nothing.

    Raises:
        BrokenPictureError: it is no picture, or one that :func:`read_picture` refuses by its header.
        UnreadPictureError: the disk refused.
    """
    with _opened(path):
        pass


def read_picture(path: Path) -> Image:
    """The picture, as the camera was held (EXIF), in the mode RGB; of an animation the first frame.

    Grey becomes three equal colours, sixteen bits become eight, and transparency is dropped, as timm does.

    Raises:
        BrokenPictureError: it cannot be decoded.
        UnreadPictureError: the disk refused.
    """
    from PIL import Image, ImageOps

    with _opened(path) as image:
        if image.mode.startswith(DEEP):
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        elif image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        return ImageOps.exif_transpose(image).convert("RGB")


@contextmanager
def _opened(path: Path) -> Iterator[Image]:
    """The file with its header read; whatever goes wrong inside the context is told as one line."""
    from PIL import Image, UnidentifiedImageError

    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe would wait forever
            raise ValueError("it is no file")
        with warnings.catch_warnings(), open(path, "rb") as file:
            warnings.simplefilter("ignore")  # of EXIF that is wrong, and the like
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(file, formats=FORMATS)
            if image.mode not in MODES and not image.mode.startswith(DEEP):
                raise ValueError(f"its pixels are of the kind {image.mode}, which has no agreed colours")
            yield image
    except UnidentifiedImageError:
        raise BrokenPictureError(f"{_name(path)} is no picture of {', '.join(FORMATS)}") from None
    except Exception as error:  # whatever the readers of Pillow make of damaged files
        told = printable((getattr(error, "strerror", None) or str(error) or type(error).__name__).rstrip("."))
        if isinstance(error, OSError) and error.errno not in NO_FAULT_OF_THE_DISK:
            raise UnreadPictureError(f"{_name(path)} cannot be read from the disk: {told}") from None
        raise BrokenPictureError(f"{_name(path)} cannot be decoded: {told}") from None


def _name(path: Path) -> str:
    return printable(str(path))
