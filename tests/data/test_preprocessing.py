"""Preprocessing is what ten lines of NumPy and Pillow make of its description, to the last bit."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from anyvit.data import preprocessing
from anyvit.data.preprocessing import INTERPOLATIONS, Preprocessing
from anyvit.errors import SettingError
from tests.data.conftest import picture


def by_hand(image, description):
    """The rule as another program would write it from the JSON."""
    size = description["image_size"]
    new = round(size / description["crop_ratio"])
    width, height = image.size
    short = min(width, height)
    width, height = round(width * new / short), round(height * new / short)
    image = image.resize((width, height), getattr(Image, description["interpolation"].upper()))
    left, top = (width - size) // 2, (height - size) // 2
    x = np.array(image).astype("float32")[top : top + size, left : left + size] / np.float32(255)
    return ((x - np.float32(description["mean"])) / np.float32(description["std"])).transpose(2, 0, 1)


@given(
    width=st.integers(1, 70),
    height=st.integers(1, 70),
    image_size=st.integers(1, 48),
    crop_ratio=st.floats(0.5, 1.0),
    interpolation=st.sampled_from(INTERPOLATIONS),
)
def test_equals_numpy_and_pillow_exactly(width, height, image_size, crop_ratio, interpolation):
    image = picture(width * 100 + height, (width, height))
    preprocessing = Preprocessing(image_size, crop_ratio, interpolation)
    result = preprocessing(image)
    assert result.dtype == torch.float32
    assert result.shape == (3, image_size, image_size)
    np.testing.assert_array_equal(result.numpy(), by_hand(image, json.loads(json.dumps(preprocessing.to_json()))))


def test_survives_json():
    preprocessing = Preprocessing(96, 0.875, "bilinear", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    assert Preprocessing.from_json(json.loads(json.dumps(preprocessing.to_json()))) == preprocessing


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"image_size": 0}, "image_size 0 is too small"),
        ({"image_size": 8, "crop_ratio": 1.2}, r"crop_ratio 1.2 is outside \(0, 1\]"),
        ({"image_size": 8, "interpolation": "cubic"}, "unknown interpolation 'cubic'.*bicubic"),
        ({"image_size": 8, "std": (1.0, 0.0, 1.0)}, "must be positive"),
    ],
)
def test_refuses_what_is_out_of_range(arguments, words):
    with pytest.raises(SettingError, match=words):
        Preprocessing(**arguments)


def test_batches_of_pixels_are_normalized_as_images_are():
    rule = Preprocessing(4, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.1))
    images = [Image.effect_noise((4, 4), 90).convert("RGB") for _ in range(3)]
    pixels = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])
    expected = torch.stack([rule.normalize(image) for image in images])
    torch.testing.assert_close(rule.normalize_batch(pixels), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(500, 20), (31, 640), (97, 64)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
def test_of_a_long_and_thin_image_only_what_is_kept_is_made(monkeypatch, size, interpolation):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    rule = Preprocessing(48, 0.9, interpolation)
    whole = np.asarray(rule.crop(image), dtype=int)
    monkeypatch.setattr(preprocessing, "MOST_RESIZED", 0)
    difference = np.abs(np.asarray(rule.crop(image), dtype=int) - whole)
    assert difference.max() <= 2
    assert difference.mean() < 0.5


def test_a_line_of_pixels_takes_no_more_memory_than_what_is_kept():
    assert Preprocessing(224).crop(Image.new("RGB", (50_000, 1), "red")).getpixel((5, 5)) == (255, 0, 0)
