"""Class-wise pruning. The golden file `prune` pins the scores; here is what it does not show."""

from dataclasses import replace

import pytest
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch.nn import functional as F

from anyvit.errors import DataError, ModelError, SettingError
from anyvit.models.layers.indexed import Kept, sliced
from anyvit.scaling.spread import pruning
from anyvit.scaling.spread.pruning import keep_best, prune

SHAPE = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 3, "num_classes": 5, "mlp_ratio": 2}


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = VisionTransformer(**SHAPE).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.fixture
def images():
    return torch.randn(7, 3, 16, 16, generator=torch.Generator().manual_seed(1)).double()


def test_scores_are_those_of_models_without_the_unit(model, images):
    """By the book: one slice a unit, one pass each."""
    found = prune(model, images, 2)
    whole = Kept.everything(model)
    after_channels = replace(whole, embed=found.kept.embed)
    after_heads = replace(after_channels, heads=found.kept.heads)
    for channel in range(12):
        assert_score(found.channel_scores[channel], model, replace(whole, embed=without(whole.embed, channel)), images)
    for block in range(2):
        for head in range(3):
            heads = exchanged(whole.heads, block, without(whole.heads[block], head))
            assert_score(found.head_scores[block][head], model, replace(after_channels, heads=heads), images)
        for unit in range(24):
            hidden = exchanged(whole.hidden, block, without(whole.hidden[block], unit))
            assert_score(found.hidden_scores[block][unit], model, replace(after_heads, hidden=hidden), images)


def without(positions, gone):
    return tuple(place for place in positions if place != gone)


def exchanged(blocks, index, positions):
    return tuple(positions if place == index else block for place, block in enumerate(blocks))


@torch.no_grad()
def assert_score(score, model, kept, images):
    p, q = model(images).log_softmax(1), sliced(model, kept)(images).log_softmax(1)
    torch.testing.assert_close(score, (p.exp() * (p - q)).sum(1).mean(), rtol=1e-9, atol=1e-12)


@torch.no_grad()
def test_masks_say_what_slices_say(model, images):
    found = prune(model, images, 2)
    channels = sliced(model, replace(Kept.everything(model), embed=found.kept.embed))
    for block, heads, units in zip(channels.blocks, found.kept.heads, found.kept.hidden, strict=True):
        block.attn.proj.weight.unflatten(1, (3, 4))[:, [head for head in range(3) if head not in heads]] = 0
        block.mlp.fc2.weight[:, [unit for unit in range(24) if unit not in units]] = 0
    torch.testing.assert_close(channels(images), found.model(images), rtol=1e-12, atol=1e-12)


def test_all_heads_kept_changes_nothing(model, images):
    found = prune(model, images, 3)
    assert found.kept == Kept.everything(model)
    assert torch.equal(found.model(images), model(images))


def test_the_result_is_timms_and_the_model_is_left(model, images):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    found = prune(model, images, 1)
    assert model.training
    assert model.blocks[0].attn.fused_attn
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    theirs = VisionTransformer(**{**SHAPE, "embed_dim": 4, "num_heads": 1}).double().eval()
    theirs.load_state_dict(found.model.state_dict())
    assert torch.equal(theirs(images), found.model(images))


@pytest.mark.parametrize("tokens", [1, 30, 10**6])
def test_how_much_runs_at_once_changes_no_choice(model, images, tokens, monkeypatch):
    once = prune(model, images, 2)
    monkeypatch.setattr(pruning, "_TOKENS", tokens)
    again = prune(model, images, 2)
    assert again.kept == once.kept
    torch.testing.assert_close(again.channel_scores, once.channel_scores, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {"qk_norm": True, "init_values": 0.5},
        {"reg_tokens": 2, "global_pool": "avg"},
        {"scale_attn_norm": True, "scale_mlp_norm": True, "pre_norm": True},
    ],
    ids=str,
)
def test_whatever_a_plain_vit_has_is_pruned_too(options, images):
    torch.manual_seed(0)
    model = VisionTransformer(**SHAPE, **options).eval()
    found = prune(model, images.float(), 2)
    assert (found.model.embed_dim, found.model(images.float()).shape) == (8, (7, 5))


def test_a_distilled_vit_is_pruned_too(images):
    torch.manual_seed(0)
    found = prune(VisionTransformerDistilled(**SHAPE).eval(), images.float(), 2)
    assert found.model(images.float()).shape == (7, 5)


def test_news_reach_the_end(model, images):
    events = []
    prune(model, images, 2, progress=events.append)
    assert [stage for stage in dict.fromkeys(event.message for event in events)] == [
        "channels",
        "heads",
        "hidden units",
    ]
    shares = [event.done for event in events]
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_equal_scores_keep_the_first():
    assert keep_best(torch.tensor([1.0, 3.0, 1.0, 1.0, 2.0]), 3) == (0, 1, 4)


@pytest.mark.parametrize(
    ("scores", "words"),
    [([1.0, float("nan"), 2.0], "2 units are to be kept, and 2 of 3 scores"), ([1.0], "1 of 1 scores are finite")],
)
def test_scores_that_decide_nothing(scores, words):
    with pytest.raises(ModelError, match=words):
        keep_best(torch.tensor(scores), 2)


def test_a_model_that_answers_nan(model, images):
    with torch.no_grad():
        model.head.bias[0] = float("nan")
    with pytest.raises(ModelError, match="0 of 12 scores are finite: the model must answer"):
        prune(model, images, 2)


@pytest.mark.parametrize("heads", [0, -1, 4])
def test_heads_that_cannot_be_kept(model, images, heads):
    with pytest.raises(SettingError, match=f"from 1 to 3: got {heads}"):
        prune(model, images, heads)


def test_no_images(model, images):
    with pytest.raises(DataError, match="no images to score by"):
        prune(model, images[:0], 2)


def test_heads_that_do_not_make_up_the_width(model, images):
    fewer = sliced(model, replace(Kept.everything(model), heads=((0, 1), (0, 1))))
    with pytest.raises(ModelError, match="2 heads of 4 channels are not the 12 channels"):
        prune(fewer, images, 1)


def test_divergence_is_taken_in_float64():
    """In float32 almost equal answers differ by rounding alone, and the sign of the score is chance."""
    logits = torch.tensor([[9.0, -4.0, 2.5]])
    near = logits + torch.tensor([1e-6, 0, 0])
    answers = logits.double().log_softmax(-1)
    exact = F.kl_div(near.double().log_softmax(-1), answers, log_target=True, reduction="sum")
    assert torch.equal(pruning._divergences(answers, near[None]), exact.reshape(1, 1))
