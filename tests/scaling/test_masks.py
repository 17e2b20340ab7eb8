"""Zeros in the place of weights: which, that they stay, and what they count."""

import copy
import math

import pytest
import torch
from timm.layers import Mlp
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional as F

from anyvit.costs.counts import count_macs, count_params
from anyvit.errors import ModelError, SettingError
from anyvit.models.layers.sparse import SparseLinear
from anyvit.scaling.shrink.importance import prunable
from anyvit.scaling.shrink.masks import count_nonzero, keeping_zeros, masked, weakest

LAYER = "layers.1.blocks.0.mlp.fc1.weight"


@pytest.fixture
def swin() -> SwinTransformer:
    torch.manual_seed(0)
    return SwinTransformer(
        img_size=32, patch_size=2, embed_dim=8, depths=(2, 2), num_heads=(2, 2), window_size=4, num_classes=5
    ).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_each_module_loses_the_same_share_and_no_layer_all(swin):
    masks = weakest(swin, 0.7)
    for weights in prunable(swin).values():
        zeros = sum(int((~masks.keep[name]).sum()) for name in weights)
        assert zeros == math.floor(0.7 * sum(weight.numel() for weight in weights.values()))
    assert min(masks.densities.values()) > 0
    assert list(masks.keep) == [name for name, _ in swin.named_parameters() if name in masks.keep]


def test_what_stays_at_a_larger_sparsity_stays_at_a_smaller_one(swin):
    mild, strong = weakest(swin, 0.3).keep, weakest(swin, 0.6).keep
    assert all((mild[name] | ~strong[name]).all() for name in mild)


def test_the_scale_of_a_layer_changes_no_mask(swin):
    before = weakest(swin, 0.5).keep
    with torch.no_grad():
        swin.get_parameter(LAYER).mul_(-4)
    after = weakest(swin, 0.5).keep
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_nothing_but_the_modules_changes(swin, images):
    smaller = masked(swin, weakest(swin, 0.5).keep)
    weights = {name for part in prunable(swin).values() for name in part}
    for name, parameter in smaller.named_parameters():
        original = swin.get_parameter(name)
        assert parameter is original or name in weights
        assert torch.equal(parameter[parameter != 0], original[parameter != 0])
    assert torch.equal(masked(swin, weakest(swin, 0).keep)(images), swin(images))


def _train(model, images, steps=4):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(images), torch.arange(len(images))).backward()
        optimizer.step()


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_zeros_stay_zeros_in_training(swin, images, mode):
    keep = weakest(swin, 0.5).keep
    model = copy.deepcopy(masked(swin, keep)).train(mode)
    before = copy.deepcopy(model.state_dict())
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    _train(model, images)
    average.update_parameters(model)
    for name, part in keep.items():
        weight = model.get_parameter(name)
        assert torch.equal(weight != 0, part)
        assert torch.equal(average.module.get_parameter(name) != 0, part)
        assert not torch.equal(weight, before[name])


def test_a_trained_one_is_an_ordinary_state_dict_and_comes_back(swin, images):
    keep = weakest(swin, 0.5).keep
    tuned = masked(swin, keep)
    _train(tuned, images)
    swin.load_state_dict(tuned.state_dict())
    again = keeping_zeros(swin)
    _train(again, images)
    assert all(torch.equal(again.get_parameter(name) != 0, part) for name, part in keep.items())


@pytest.mark.filterwarnings("ignore:.*jit:FutureWarning")
def test_outside_of_training_it_is_an_ordinary_layer():
    """Traced and exported with gradients on too, as converters do: nothing masks the weights at each call."""
    layer = masked(nn.ModuleDict({"mlp": Mlp(8)}), {"mlp.fc1.weight": torch.eye(8) > 0}).eval()["mlp"].fc1
    x = torch.randn(2, 8)
    exported, traced = torch.export.export(layer, (x,)), torch.jit.trace(layer, (x,))
    assert "mul" not in str(exported.graph) + str(traced.graph)
    assert torch.equal(exported.module()(x), layer(x))
    assert torch.equal(traced(x), layer(x))


def test_zeros_are_counted_apart_from_what_really_runs():
    model = VisionTransformer(img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=3, num_classes=5)
    smaller = masked(model, weakest(model, 0.5).keep)
    zeros = sum(int((layer.weight == 0).sum()) for layer in smaller.modules() if isinstance(layer, SparseLinear))
    assert (count_params(smaller), count_macs(smaller, 16)) == (count_params(model), count_macs(model, 16))
    assert count_nonzero(smaller, 16) == {
        "params": count_params(model) - zeros,
        "macs": count_macs(model, 16) - 17 * zeros,  # 4 x 4 patches and the class token
    }


def test_every_stage_of_a_swin_counts_its_own_tokens(swin):
    keep = weakest(swin, 0.5).keep
    zeros = {name: int((~part).sum()) for name, part in keep.items()}
    saved = sum(count * (256 if "layers.0" in name else 64) for name, count in zeros.items())
    assert count_nonzero(masked(swin, keep), 32)["macs"] == count_macs(swin, 32) - saved


def test_wrong_values_are_refused(swin):
    with pytest.raises(SettingError, match=r"^sparsity must be a number from 0 to below 1: got 1\.0$"):
        weakest(swin, 1.0)
    with pytest.raises(SettingError, match=r"^sparsity 0\.9999 leaves nothing of layers\.\d"):
        weakest(swin, 0.9999)
    with torch.no_grad():
        swin.get_parameter(LAYER)[0, 0] = torch.nan
    with pytest.raises(ModelError, match=rf"^{LAYER} holds weights that are not finite"):
        weakest(swin, 0.5)
