"""What a weight is worth: invariants of the measure and of the ranking. Its values are pinned by golden files."""

import pytest
import timm
import torch
from timm.models.swin_transformer import SwinTransformer

from anyvit.models.layers.channel_idle import channel_idle
from anyvit.scaling.shrink.importance import importance, keep_all_but, prunable, relative, why_not_prunable


def test_importance_rises_with_the_size_of_a_weight_and_ends_at_one():
    weight = torch.randn(7, 9, generator=torch.Generator().manual_seed(0))
    scores = importance(weight).flatten()[weight.abs().flatten().argsort()]
    assert scores.dtype == torch.float64
    assert (scores.diff() >= 0).all()
    assert scores[0] > 0
    assert scores[-1] == 1


def test_scale_sign_and_stored_type_change_nothing():
    weight = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    scores = importance(weight)
    assert torch.equal(importance(weight.float()), scores)
    torch.testing.assert_close(importance(-3 * weight.double()), scores, rtol=1e-12, atol=0)


def test_millions_of_small_weights_are_told_apart():
    """In float32 the sum of the squares of the largest swallows the others, and many shares come out alike."""
    energies = torch.cat((torch.linspace(1, 2, 1000) * 1e-9, torch.ones(1000)))
    assert len(relative(energies)[:1000].unique()) == 1000


def test_of_equal_scores_the_first_go():
    (first, second), threshold = keep_all_but([torch.tensor([[0.5, 0.1]]), torch.tensor([0.5, 0.5, 1.0])], 3)
    assert first.tolist() == [[False, False]]
    assert second.tolist() == [False, True, True]
    assert threshold == 0.5
    assert keep_all_but([torch.ones(2)], 0)[1] is None


PUBLISHED = [
    ("swin_tiny_patch4_window7_224", 28_288_354, 25_878_528, (13.7, 32.0, 50.3)),
    ("swin_small_patch4_window7_224", 49_606_258, 47_112_192, (14.2, 33.2, 52.2)),
    ("swin_base_patch4_window7_224", 87_768_224, 83_755_008, (14.3, 33.4, 52.5)),
]


@pytest.mark.parametrize(("name", "total", "pruned", "reductions"), PUBLISHED)
def test_published_reductions_follow_from_the_structure(name, total, pruned, reductions):
    """Percent of all parameters that go at sparsity 0.15, 0.35 and 0.55, as the paper's table prints them."""
    with torch.device("meta"):
        model = timm.create_model(name)
    weights = prunable(model)
    assert list(weights) == ["qkv", "proj", "mlp"]
    assert sum(parameter.numel() for parameter in model.parameters()) == total
    assert sum(weight.numel() for part in weights.values() for weight in part.values()) == pruned
    for sparsity, reduction in zip((0.15, 0.35, 0.55), reductions, strict=True):
        assert abs(100 * sparsity * pruned / total - reduction) < 0.06  # 14.25 is printed as 14.2


def test_refusals_say_what_was_looked_for():
    reason = why_not_prunable(torch.nn.Linear(2, 2))
    assert reason == "a Linear has no unquantized linear layers named *.attn.qkv, *.attn.proj, *.mlp.fc1, *.mlp.fc2"
    swin = SwinTransformer(img_size=16, patch_size=2, embed_dim=8, depths=(1,), num_heads=(2,), window_size=4)
    assert why_not_prunable(swin) is None
    reason = why_not_prunable(channel_idle(swin, 0.75))
    assert reason == "layers.0.blocks.0.mlp is a ChannelIdleMlp: merging mixes the weights that pruning tells apart"
