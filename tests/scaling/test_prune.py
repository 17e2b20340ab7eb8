"""The prune lever: heads and hidden units that really go, zeros elsewhere, and what it is after `heads`."""

import pytest
import timm
import torch
from sklearn.datasets import load_digits
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional as F

from anyvit.costs.counts import count_macs, count_params
from anyvit.errors import ModelError, SettingError
from anyvit.models import create_model
from anyvit.models.layers.indexed import channels_of
from anyvit.protocols import UNCHANGED
from anyvit.scaling.candidate import Candidate, Step
from anyvit.scaling.shrink import lever_named
from anyvit.scaling.shrink.units import head_importance, strongest
from anyvit.scaling.workshop import reshape

LEVER = lever_named("prune")
IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def _vit(seed: int = 0, **arguments) -> VisionTransformer:
    torch.manual_seed(seed)
    shape = {"img_size": 16, "patch_size": 4, "embed_dim": 48, "depth": 3, "num_heads": 6, "num_classes": 5}
    model = VisionTransformer(**{**shape, **arguments}).eval()
    with torch.no_grad():  # blocks and units that differ, biases too
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * torch.rand(()))
    return model


def _swin() -> SwinTransformer:
    return SwinTransformer(
        img_size=16, patch_size=2, embed_dim=8, depths=(1, 1), num_heads=(2, 2), window_size=4, num_classes=5
    ).eval()


def test_units_where_shapes_allow_it_and_zeros_elsewhere():
    assert LEVER.settings(_vit()) == [UNCHANGED, {"units": 0.15}, {"units": 0.35}, {"units": 0.55}]
    zeros = [UNCHANGED, *({"zeros_not_faster": share} for share in (0.15, 0.35, 0.55))]
    assert LEVER.settings(_swin()) == zeros
    assert LEVER.settings(_vit(mlp_layer=timm.layers.GluMlp)) == zeros


@pytest.mark.parametrize("model", [_vit(), _swin()], ids=["vit", "swin"])
@pytest.mark.parametrize("way", ["units", "zeros_not_faster"])
def test_a_share_of_zero_is_the_model_itself(model, way):
    assert torch.equal(LEVER.apply(model, {way: 0})(IMAGES), model(IMAGES))


def test_removed_units_are_those_that_a_zero_would_silence():
    """What is cut out of the matrices is what counted for nothing with its weights at zero."""
    model, silenced = _vit(), _vit()
    kept = strongest(model, 0.4)
    for block, heads, hidden in zip(silenced.blocks, kept.heads, kept.hidden, strict=True):
        for layer, stays in (
            (block.attn.proj, channels_of(heads, block.attn.head_dim)),
            (block.mlp.fc2, torch.tensor(hidden)),
        ):
            gone = torch.ones(layer.in_features, dtype=torch.bool).index_fill(0, stays, False)
            layer.weight.data[:, gone] = 0
    smaller = LEVER.apply(model, {"units": 0.4})
    torch.testing.assert_close(smaller(IMAGES), silenced(IMAGES), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(smaller(IMAGES), model(IMAGES), atol=1e-2)


def test_units_make_the_model_smaller_by_a_number_that_no_weight_changes():
    sizes = {seed: [LEVER.apply(_vit(seed), setting) for setting in LEVER.settings(_vit())] for seed in (0, 1)}
    for models in zip(*sizes.values(), strict=True):
        assert count_params(models[0]) == count_params(models[1])
        assert count_macs(models[0], 16) == count_macs(models[1], 16)
    full, *smaller = (count_macs(model, 16) for model in sizes[0])
    assert smaller == sorted(smaller, reverse=True)
    assert smaller[1] < 0.72 * full
    assert all(block.mlp.fc1.out_features % 8 == 0 for block in sizes[0][2].blocks)


def test_every_block_keeps_a_head_and_hidden_units():
    model = _vit()
    with torch.no_grad():
        for parameter in model.blocks[1].parameters():
            parameter.zero_()
    smaller = LEVER.apply(model, {"units": 0.95})
    assert all(block.attn.num_heads >= 1 and block.mlp.fc1.out_features >= 8 for block in smaller.blocks)
    assert smaller(IMAGES).shape == (3, 5)


def test_a_louder_head_matters_more():
    model = _vit()
    with torch.no_grad():
        model.blocks[0].attn.proj.weight[:, channels_of([2], 8)] *= 10
    assert head_importance(model)[0].argmax() == 2


@pytest.mark.parametrize("setting", [{"units": 0.35}, {"zeros_not_faster": 0.35}], ids=["units", "zeros"])
def test_after_heads_it_prunes_the_subnetwork(setting):
    model = create_model("hydravit_small_patch2_8", num_classes=5).eval()
    images = torch.randn(2, 3, 8, 8)
    before = model(images)
    candidate = Candidate((Step("heads", {"heads": 4}), Step("prune", setting)), Step("torch"))
    assert candidate.id == f"heads4-{next(iter(setting))}0.35-torch"
    smaller = reshape(model, candidate)
    assert torch.equal(smaller(images), LEVER.apply(model.extract(4), setting)(images))
    assert not {p.untyped_storage().data_ptr() for p in smaller.parameters()} & {
        p.untyped_storage().data_ptr() for p in model.parameters()
    }
    F.cross_entropy(smaller(images), torch.tensor([0, 1])).backward()
    assert torch.equal(model(images), before)
    whole = reshape(model, Candidate((Step("heads"), Step("prune", setting)), Step("torch")))
    assert torch.equal(whole(images), LEVER.apply(model, setting)(images))


def test_wrong_models_and_settings_are_refused():
    with pytest.raises(ModelError, match=r"^SwinTransformer cannot lose heads and hidden units: a SwinTransformer is "):
        LEVER.apply(_swin(), {"units": 0.5})
    with pytest.raises(ModelError, match=r"^the prune lever: a Linear has no unquantized linear layers named \*\.attn"):
        LEVER.apply(nn.Linear(2, 2), {"units": 0.5})
    with pytest.raises(SettingError, match=r"^the share of units that the prune lever removes must be .*: got 1$"):
        LEVER.apply(_vit(), {"units": 1})
    broken = _vit()
    broken.blocks[1].attn.qkv.weight.data[0, 0] = torch.inf
    with pytest.raises(ModelError, match=r"^blocks\.1\.attn\.qkv\.weight holds weights that are not finite"):
        LEVER.apply(broken, {"units": 0.5})


@pytest.mark.slow
def test_half_of_the_weights_go_and_a_short_training_mends_it():
    digits = load_digits()
    images, labels = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1, torch.tensor(digits.target)
    torch.manual_seed(1)
    order = torch.randperm(len(images))
    seen, unseen = order[:1400], order[1400:]

    def train(model: nn.Module, epochs: int, lr: float) -> None:
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=22 * epochs + 1)
        for batch in (part for _ in range(epochs) for part in seen[torch.randperm(1400)].split(64)):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()

    def accuracy(model: nn.Module) -> float:
        with torch.no_grad():
            return (model.eval()(images[unseen]).argmax(1) == labels[unseen]).float().mean().item()

    model = VisionTransformer(img_size=8, patch_size=2, in_chans=1, embed_dim=64, depth=4, num_heads=4, num_classes=10)
    train(model, 20, 3e-3)
    dense = accuracy(model)
    sparse, narrow = LEVER.apply(model, {"zeros_not_faster": 0.5}), LEVER.apply(model, {"units": 0.35})
    assert accuracy(sparse) > dense - 0.03
    for smaller, loss in ((sparse, 0.02), (narrow, 0.06)):
        train(smaller, 3, 5e-4)
        assert accuracy(smaller) > dense - loss
    assert sum(int((parameter == 0).sum()) for parameter in sparse.parameters()) >= 0.48 * count_params(model)
