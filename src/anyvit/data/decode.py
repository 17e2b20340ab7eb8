"""From encoded bytes to pixels: the one decoder behind training, evaluation, prediction, export and serving.

Whatever comes in (JPEG, PNG, WebP, BMP, TIFF, PPM; greyscale, palette, alpha, CMYK, 16 bit; turned by EXIF), an upright
8-bit RGB image comes out.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from anyvit.errors import DataError

KINDS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM")
SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"})


class BrokenImageError(DataError):
    """Bytes that are no image, or only part of one. Such images are skipped and counted, not fatal one by one."""


class TooManyPixelsError(BrokenImageError):
    """An image of more pixels than were allowed; its pixels were not decoded."""


def decode(source: bytes | Path) -> Image.Image:
    """The upright 8-bit RGB image in `source`.

    Raises:
        BrokenImageError: the bytes are empty, damaged, or no image of a known kind. The message is the cause alone;
            the caller knows the name.
        DataError: the file cannot be read.
    """
    return decode_opened(open_encoded(source))


def decode_opened(image: Image.Image) -> Image.Image:
    """The upright 8-bit RGB image of what `open_encoded` has opened. Raises BrokenImageError as `decode` does."""
    try:
        return standardize(image)
    except BrokenImageError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever they trip over
        raise BrokenImageError(_cause(error)) from error


def decoded_size(source: bytes) -> tuple[int, int]:
    """Width and height as the header tells them, before EXIF turns the image; the pixels are not decoded.

    Raises:
        BrokenImageError: as in `decode`, as far as the header shows it.
    """
    return open_encoded(source).size


def standardize(image: Image.Image) -> Image.Image:
    """A copy of `image`, upright and 8-bit RGB; alpha over white, 16 bits over their full range.

    Raises:
        BrokenImageError: the pixel values have no fixed scale (32-bit integers, floats).
    """
    image = _upright(image)
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_16_bit(image)
    if image.mode == "F":
        raise BrokenImageError("floating-point pixels have no fixed scale (save the image with 8 or 16 bits)")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def open_encoded(source: bytes | Path, *, most_pixels: int | None = None) -> Image.Image:
    """The image in `source` as far as its header tells; the pixels are not decoded yet.

    Args:
        source: An encoded image, or the path of one.
        most_pixels: Pixels that it may have; None: as many as Pillow takes.

    Raises:
        TooManyPixelsError: It has more.
        BrokenImageError: as in `decode`, as far as the header shows it.
        DataError: the file cannot be read.
    """
    image = _open(source)
    if most_pixels is not None and image.width * image.height > most_pixels:
        raise TooManyPixelsError(f"{image.width} x {image.height} pixels are more than the {most_pixels} allowed")
    return image


def _open(source: bytes | Path) -> Image.Image:
    try:
        encoded = source.read_bytes() if isinstance(source, Path) else source
    except OSError as error:
        raise DataError(error.strerror or str(error)) from error
    if not encoded:
        raise BrokenImageError("the file is empty")
    try:
        return Image.open(io.BytesIO(encoded), formats=KINDS)
    except UnidentifiedImageError:
        raise BrokenImageError("not a JPEG, PNG, WebP, BMP, TIFF or PPM image") from None
    except Image.DecompressionBombError as error:
        raise TooManyPixelsError(_cause(error)) from error
    except Exception as error:
        raise BrokenImageError(_cause(error)) from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    except Exception:  # a damaged EXIF block does not make the pixels worse
        return image
    return ImageOps.exif_transpose(image) if turned else image


def _from_16_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise BrokenImageError("32-bit pixels have no fixed scale (save the image with 8 or 16 bits)")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")


def _cause(error: Exception) -> str:
    return str(error) or type(error).__name__
