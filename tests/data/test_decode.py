"""Whatever comes in, an upright 8-bit RGB image comes out."""

import numpy as np
import pytest
from PIL import Image

from anyvit.data.decode import BrokenImageError, decode, decoded_size, standardize
from anyvit.errors import DataError
from tests.data.conftest import encoded, picture

RGB = picture(0, (16, 12))


def pixels(source):
    image = decode(source)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_kinds_keep_every_pixel(kind):
    np.testing.assert_array_equal(pixels(encoded(RGB, kind)), np.asarray(RGB))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_kinds_come_close(kind):
    smooth = picture(0, (4, 3)).resize((64, 48), Image.Resampling.BICUBIC)
    assert np.abs(pixels(encoded(smooth, kind, quality=95)) - np.asarray(smooth)).mean() < 3


def test_greyscale_and_bilevel():
    grey = RGB.convert("L")
    np.testing.assert_array_equal(pixels(encoded(grey)), np.repeat(np.asarray(grey)[..., None], 3, axis=-1))
    assert set(np.unique(pixels(encoded(RGB.convert("1"))))) == {0, 255}


def test_palette():
    palette = RGB.quantize(8)
    np.testing.assert_array_equal(pixels(encoded(palette)), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_laid_over_white(mode):
    image = RGB.convert(mode)
    alpha = np.zeros((12, 16), dtype=np.uint8)
    alpha[:, 8:] = 255
    image.putalpha(Image.fromarray(alpha))
    result = pixels(encoded(image))
    assert (result[:, :8] == 255).all()
    np.testing.assert_array_equal(result[:, 8:], np.asarray(image.convert("RGB"))[:, 8:])


def test_half_transparent_is_half_white():
    image = Image.new("RGBA", (2, 2), (0, 0, 0, 128))
    assert np.abs(pixels(encoded(image)) - 127).max() <= 1


def test_transparent_palette_entry_is_white():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    assert pixels(encoded(image, transparency=0)).tolist() == [[[255, 255, 255], [40, 50, 60]]]


def test_cmyk():
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert np.abs(pixels(encoded(image, "JPEG", quality=100)) - (255, 0, 0)).max() <= 3
    np.testing.assert_array_equal(pixels(encoded(image, "TIFF"))[0, 0], (255, 0, 0))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_greyscale_is_scaled_over_its_full_range(kind):
    values = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)
    assert pixels(encoded(Image.fromarray(values), kind))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_big_endian_16_bit():
    values = np.array([[0, 65535]], dtype=">u2")
    image = Image.frombytes("I;16B", (2, 1), values.tobytes())
    assert np.asarray(standardize(image))[0, :, 1].tolist() == [0, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_undone(kind, orientation):
    turns = {2: [0], 3: [3], 4: [1], 5: [5], 6: [2], 7: [6], 8: [4]}  # the inverse of what the camera did
    stored = RGB
    for turn in turns.get(orientation, []):
        stored = stored.transpose(Image.Transpose(turn))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    np.testing.assert_array_equal(pixels(encoded(stored, kind, exif=exif, **options)), np.asarray(RGB))


def test_jpeg_orientation():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(encoded(RGB, "JPEG", exif=exif)).size == (12, 16)
    assert decoded_size(encoded(RGB, "JPEG", exif=exif)) == (16, 12)


def test_damaged_exif_does_not_matter():
    assert decode(encoded(RGB, "JPEG", exif=b"Exif\0\0rubbish that is no TIFF block")).size == (16, 12)


def test_standardize_leaves_its_argument_alone():
    image = RGB.copy()
    standardize(image).putpixel((0, 0), (1, 2, 3))
    np.testing.assert_array_equal(np.asarray(image), np.asarray(RGB))


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "the file is empty"),
        (b"not an image at all", "not a JPEG, PNG, WebP, BMP, TIFF or PPM image"),
        (encoded(RGB.resize((200, 200)), "JPEG")[:3000], "truncated"),
        (encoded(RGB.resize((200, 200)))[:3000], "truncated"),
        (
            encoded(Image.fromarray(np.ones((2, 2), dtype=np.float32)), "TIFF"),
            "floating-point pixels have no fixed scale",
        ),
        (encoded(Image.fromarray(np.full((2, 2), 1 << 20, np.int32)), "TIFF"), "32-bit pixels have no fixed scale"),
    ],
)
def test_broken_images_say_why(content, cause):
    with pytest.raises(BrokenImageError, match=cause):
        decode(content)


def test_a_file_is_read_and_a_missing_one_is_named_as_such(tmp_path):
    (tmp_path / "x.png").write_bytes(encoded(RGB))
    assert decode(tmp_path / "x.png").size == RGB.size
    with pytest.raises(DataError, match="No such file"):
        decode(tmp_path / "y.png")
