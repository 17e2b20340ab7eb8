"""A model over several sizes of an image: sizes, tiles, grids, and what is refused."""

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from timm.models.vision_transformer import VisionTransformer
from torch.nn import functional as F

from anyvit.errors import ModelError, SettingError
from anyvit.models.layers.scales import merge, multi_scale, split
from tests.models.conftest import SHAPE, shuffled

REGISTERS = 3  # and the class token


@pytest.fixture
def vit() -> VisionTransformer:
    return shuffled(VisionTransformer(**SHAPE, reg_tokens=REGISTERS - 1))


@pytest.mark.parametrize("tiles", [1, 2, 3])
def test_merge_undoes_split(tiles):
    images = torch.randn(2, 3, 12, 12)
    assert torch.equal(merge(split(images, tiles), tiles), images)


def test_tiles_come_by_row_column_and_image():
    images = torch.arange(2 * 4 * 4).view(2, 1, 4, 4)
    tiles = split(images, 2)
    assert tiles.shape == (8, 1, 2, 2)
    for row in range(2):
        for column in range(2):
            for image in range(2):
                expected = images[image, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
                assert torch.equal(tiles[(row * 2 + column) * 2 + image], expected)


def test_one_scale_is_the_model(vit, images):
    expected = vit.forward_features(images)
    assert torch.equal(multi_scale(vit.forward_features, images, [1], num_prefix_tokens=REGISTERS), expected)


@pytest.mark.parametrize(("grid_of", "side"), [(0, 4), (1, 8), (2, 12)])
def test_shapes_and_prefix(vit, images, grid_of, side):
    found = multi_scale(vit.forward_features, images, [1, 2, 3], grid_of=grid_of, num_prefix_tokens=REGISTERS)
    assert found.shape == (3, REGISTERS + side * side, 3 * 32)
    single = vit.forward_features(images)
    torch.testing.assert_close(found[:, :REGISTERS, :32], single[:, :REGISTERS])
    larger = F.interpolate(images, (32, 32), mode="bicubic")
    quarters = [vit.forward_features(larger[..., y : y + 16, x : x + 16]) for y in (0, 16) for x in (0, 16)]
    mean = torch.stack([quarter[:, :REGISTERS] for quarter in quarters]).mean(0)
    torch.testing.assert_close(found[:, :REGISTERS, 32:64], mean)


@pytest.mark.parametrize("max_batch", [1, 3, 5, 100])
def test_few_tiles_at_once_change_nothing(vit, images, max_batch):
    given = []

    def model(tiles):
        given.append(len(tiles))
        return vit.forward_features(tiles)

    apart = multi_scale(model, images, [1, 2], num_prefix_tokens=REGISTERS, max_batch=max_batch)
    together = multi_scale(vit.forward_features, images, [1, 2], num_prefix_tokens=REGISTERS)
    torch.testing.assert_close(apart, together, atol=1e-5, rtol=1e-5)
    assert sum(given) == 3 + 12
    assert max(given) == min(max_batch, 12)


def test_images_do_not_know_each_other(vit, images):
    def features(batch):
        return multi_scale(vit.forward_features, batch, [1, 2], num_prefix_tokens=REGISTERS)

    together = features(images)
    torch.testing.assert_close(together, torch.cat([features(image[None]) for image in images]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(features(images[[2, 0, 1]]), together[[2, 0, 1]], atol=1e-5, rtol=1e-5)


def test_a_model_of_single_patches_sees_the_whole_large_image():
    images, filters = torch.randn(2, 3, 16, 16), torch.randn(5, 3, 4, 4)
    found = multi_scale(lambda x: F.conv2d(x, filters, stride=4), images, [1, 2], grid_of=1)
    larger = F.interpolate(images, (32, 32), mode="bicubic")
    torch.testing.assert_close(found[:, 5:], F.conv2d(larger, filters, stride=4))


def test_large_images_keep_their_detail(vit):
    images = torch.randn(2, 3, 32, 32)
    found = multi_scale(
        vit.forward_features, images, img_sizes=[16, 32], scales=[9], tile=16, grid_of=1, num_prefix_tokens=REGISTERS
    )
    corner = vit.forward_features(images[..., :16, :16])[:, REGISTERS:].unflatten(1, (4, 4))
    torch.testing.assert_close(found[:, REGISTERS:, 32:].unflatten(1, (8, 8))[:, :4, :4], corner)


def test_smoothing_is_asked_for():
    images = torch.randn(1, 3, 16, 16)
    smooth = F.interpolate(images, (8, 8), mode="bicubic", antialias=True)
    assert torch.equal(multi_scale(lambda x: x, images, [0.5], antialias=True), smooth)
    assert not torch.allclose(multi_scale(lambda x: x, images, [0.5]), smooth, atol=1e-2)


def test_half_precision_is_resized_in_float32():
    images = torch.randn(1, 3, 16, 16, dtype=torch.bfloat16)
    found = multi_scale(lambda x: x, images, [1, 2], grid_of=1)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found[:, 3:], F.interpolate(images.float(), (32, 32), mode="bicubic").bfloat16())


def test_gradients_reach_model_and_images(vit, images):
    images.requires_grad_()
    multi_scale(vit.forward_features, images, [1, 2], num_prefix_tokens=REGISTERS).square().sum().backward()
    assert images.grad.count_nonzero() == images.numel()
    assert all(parameter.grad is not None for name, parameter in vit.named_parameters() if "head" not in name)


def test_a_linear_probe_has_twice_the_inputs_and_is_no_worse():
    """The backbone has learned nothing: its features are random, and yet tell digits apart."""
    digits = load_digits()
    images = F.interpolate(torch.tensor(digits.images[:900, None] / 8 - 1, dtype=torch.float32), (32, 32))
    torch.manual_seed(0)
    vit = VisionTransformer(img_size=32, patch_size=8, in_chans=1, embed_dim=24, depth=1, num_heads=2).eval()
    accuracy = {}
    with torch.no_grad():
        for scales in ((1,), (1, 2)):
            features = multi_scale(vit.forward_features, images, scales, num_prefix_tokens=1)[:, 1:].mean(1)
            assert features.shape[1] == 24 * len(scales)
            features = (features - features.mean(0)) / features.std(0)
            probe = LogisticRegression(max_iter=300).fit(features[:600], digits.target[:600])
            accuracy[scales] = probe.score(features[600:], digits.target[600:900])
    assert accuracy[1, 2] >= accuracy[1,] - 0.01, accuracy
    assert accuracy[1,] > 0.3, accuracy


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, r"^give scales, such as \(1, 2\), or img_sizes in pixels: there are none$"),
        ({"scales": [1, 1.7]}, "^27 pixels make no 2 equal tiles of at most 16 pixels a side: take 32 pixels"),
        ({"scales": [1, 1.5]}, r"^the model does not take tiles of 12 x 12 pixels: Input height \(12\) .* multiples"),
        ({"scales": [1, 0]}, "^scales and img_sizes must be above 0 and leave a pixel: 0 does not$"),
        ({"scales": [1, -0.5]}, "above 0 and leave a pixel: -0.5 does not$"),
        ({"img_sizes": [0]}, "above 0 and leave a pixel: 0 does not$"),
        ({"scales": [1], "grid_of": 1}, "^grid_of must be the position of one of 1 sizes, from 0: got 1$"),
        ({"scales": [1], "grid_of": -1}, "^grid_of must be .* got -1$"),
        ({"scales": [1], "tile": 0}, "^tile must be at least 1 pixel: got 0$"),
        ({"scales": [1], "max_batch": 0}, "^max_batch must be at least 1: got 0$"),
    ],
)
def test_what_cannot_be(vit, images, arguments, words):
    with pytest.raises(SettingError, match=words):
        multi_scale(vit.forward_features, images, **{"num_prefix_tokens": REGISTERS, **arguments})


@pytest.mark.parametrize("count", [0, 1, 19])
def test_prefix_tokens_must_be_counted(vit, images, count):
    with pytest.raises(ModelError, match=f"^19 tokens without {count} prefix tokens are no square grid: num_prefix_to"):
        multi_scale(vit.forward_features, images, [1, 2], num_prefix_tokens=count)


def test_maps_have_no_prefix():
    with pytest.raises(SettingError, match="^maps have no prefix tokens: num_prefix_tokens must be 0, got 1$"):
        multi_scale(lambda x: x, torch.randn(1, 3, 4, 4), [1], num_prefix_tokens=1)


def test_images_must_be_square(vit):
    with pytest.raises(SettingError, match="^images are 16 x 24 pixels: several scales take square ones, as 16 x 16$"):
        multi_scale(vit.forward_features, torch.randn(1, 3, 16, 24), [1])
