"""The program that travels with an export sees images exactly as AnyViT does."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from anyvit.data.decode import decode
from anyvit.data.preprocessing import Preprocessing
from anyvit.deploy import standalone

RANDOM = np.random.default_rng(0)
COLOURS = RANDOM.integers(0, 256, (21, 33, 4), dtype=np.uint8)


def turned() -> tuple[Image.Image, dict]:
    exif = Image.Exif()
    exif[0x0112] = 6
    return Image.fromarray(COLOURS[..., :3]), {"exif": exif}


def transparent_palette() -> tuple[Image.Image, dict]:
    return Image.fromarray(COLOURS[..., :3]).quantize(16), {"transparency": 3}


PICTURES = {
    "rgb.png": (Image.fromarray(COLOURS[..., :3]), {}),
    "alpha.png": (Image.fromarray(COLOURS), {}),
    "alpha.webp": (Image.fromarray(COLOURS), {"lossless": True}),
    "grey.png": (Image.fromarray(COLOURS[..., 0]), {}),
    "grey-alpha.png": (Image.fromarray(COLOURS).convert("LA"), {}),
    "palette.png": (Image.fromarray(COLOURS[..., :3]).quantize(16), {}),
    "palette-transparent.png": transparent_palette(),
    "16bit.png": (Image.fromarray(RANDOM.integers(0, 65536, (21, 33)).astype(np.uint16)), {}),
    "16bit.tiff": (Image.fromarray(RANDOM.integers(0, 65536, (21, 33)).astype(np.uint16)), {}),
    "bilevel.png": (Image.fromarray(COLOURS[..., 0]).convert("1"), {}),
    "photo.jpg": (Image.fromarray(COLOURS[..., :3]), {}),
    "turned.jpg": turned(),
    "turned.png": turned(),
    "cmyk.jpg": (Image.fromarray(COLOURS[..., :3]).convert("CMYK"), {}),
    "cmyk.tiff": (Image.fromarray(COLOURS[..., :3]).convert("CMYK"), {}),
    "rgb.bmp": (Image.fromarray(COLOURS[..., :3]), {}),
}


@pytest.mark.parametrize("name", PICTURES)
def test_reading_equals_decoding(name, tmp_path):
    picture, options = PICTURES[name]
    picture.save(tmp_path / name, **options)
    ours, theirs = decode(tmp_path / name), standalone.read(str(tmp_path / name))
    assert theirs.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(theirs), np.asarray(ours))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest"])
@pytest.mark.parametrize("crop_ratio", [1.0, 0.9, 0.875])
@pytest.mark.parametrize("size", [(8, 8), (33, 21), (21, 33), (5, 90), (224, 225)])
def test_preparing_equals_preprocessing(size, crop_ratio, interpolation):
    picture = Image.fromarray(RANDOM.integers(0, 256, (*size, 3), dtype=np.uint8))
    rule = Preprocessing(17, crop_ratio, interpolation, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    np.testing.assert_array_equal(standalone.prepare(picture, rule.to_json()), rule(picture).numpy())
