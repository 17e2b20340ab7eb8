"""ToMe: the matching, what merging conserves, schedules, and any number of protected tokens."""

import numpy as np
import onnxruntime
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from anyvit.backends.graph import onnx_program
from anyvit.errors import SettingError
from anyvit.models.layers.tome import match, match_every, merge_by_size, merge_schedule, tome
from tests.models.conftest import SHAPE, shuffled


def keys(count=17, seed=0):
    return torch.randn(3, count, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("prefix", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("count", [16, 17])
@pytest.mark.parametrize("r", [1, 4, 99])
def test_a_matching_covers_every_token_once(prefix, count, r):
    found = match(keys(count), r, prefix)
    merged = min(r, (count - prefix) // 2)
    assert found.stays.shape == (3, count - merged)
    everything = torch.cat((found.stays, found.merged), 1).sort(1).values
    assert torch.equal(everything, torch.arange(count).expand(3, -1))
    assert torch.equal(found.stays[:, :prefix], torch.arange(prefix).expand(3, -1))
    assert (found.into >= prefix).all()
    for row in found.places[:, :prefix]:
        assert row.tolist() == list(range(prefix))


def test_the_most_alike_go_first():
    metric = keys()
    found = match(metric, 3, 1)
    unit = metric / metric.norm(dim=-1, keepdim=True)
    likeness = unit[:, 2::2] @ unit[:, 1::2].transpose(1, 2)
    best = likeness.max(-1).values.topk(3)
    assert torch.equal(found.merged, 2 + 2 * best.indices)
    destination = found.stays.gather(1, found.into)
    expected = 1 + 2 * likeness.argmax(-1).gather(1, best.indices)
    assert torch.equal(destination, expected)


def test_ties_and_zero_keys_are_decided_by_position():
    found = match(torch.zeros(2, 9, 4), 2, 1)
    assert found.merged.tolist() == [[2, 4]] * 2
    assert found.stays.tolist() == [[0, 6, 8, 1, 3, 5, 7]] * 2
    assert found.into.tolist() == [[3, 3]] * 2


@pytest.mark.parametrize("prefix", [0, 1, 2, 4])
def test_merging_conserves_the_sum(prefix):
    x, sizes = keys(seed=1), None
    for step in range(3):
        matching = match(keys(x.shape[1], seed=step), 3, prefix)
        before = x.sum(1) if sizes is None else (x * sizes).sum(1)
        x, sizes = merge_by_size(matching, x, sizes)
        torch.testing.assert_close((x * sizes).sum(1), before, atol=1e-5, rtol=1e-5)
    assert torch.equal(sizes.sum(1), torch.full((3, 1), 17.0))


@pytest.mark.parametrize("prefix", [0, 1, 2, 3])
def test_unmerge_gives_every_token_what_it_went_into(prefix):
    x = keys(seed=1)
    matching = match(keys(), 5, prefix)
    back = matching.unmerge(matching.merge(x, "sum"))
    assert torch.equal(back[:, :prefix], x[:, :prefix])
    alone = matching.origins[matching.origins >= 0]
    assert len(alone) >= 3 * (17 - 2 * 5)
    for image in range(3):
        for row in matching.origins[image][matching.origins[image] >= 0].tolist():
            assert torch.equal(back[image, row], x[image, row])


def test_no_gradient_goes_through_the_matching():
    metric = keys().requires_grad_()
    x, sizes = merge_by_size(match(metric, 4, 1), metric, None)
    assert not sizes.requires_grad
    x.sum().backward()
    torch.testing.assert_close(metric.grad.sum(), torch.tensor(3.0 * 13 * 8))  # each of 13 tokens is a mean


def test_what_is_left_over_by_every_kth_is_thrown_away():
    found = match_every(keys(14), 3)
    assert found.stays[0].tolist() == [2, 5, 8, 11]
    assert (found.places[:, 12:] == -1).all()
    assert not found.unmerge(torch.ones(3, 4, 2))[:, 12:].any()


@pytest.mark.parametrize(
    ("options", "prefix"),
    [({}, 1), ({"reg_tokens": 2}, 3), ({"class_token": False, "global_pool": "avg"}, 0), ({"qk_norm": True}, 1)],
    ids=str,
)
def test_sizes_and_sources_add_up(options, prefix, images):
    model = tome(shuffled(VisionTransformer(**{**SHAPE, "depth": 4}, **options)), 3)
    assert model.token_counts() == [13, 10, 7, 4]
    for tokens in model.stages(images):
        sources = tokens.sources()
        assert torch.equal(sources.sum(1), torch.ones(3, 16 + prefix))
        assert torch.equal(sources.sum(2), tokens.sizes[..., 0])
        alone = tokens.origins() >= 0
        assert torch.equal(alone, tokens.sizes[..., 0] == 1)


def test_a_pooling_head_takes_the_mean_by_size(images):
    model = tome(shuffled(VisionTransformer(**SHAPE, global_pool="avg")), 5)
    *_, tokens = model.stages(images)
    mean = (tokens.sizes * tokens.x)[:, 1:].sum(1) / 16
    torch.testing.assert_close(model(images), model.head(model.fc_norm(mean)), atol=1e-5, rtol=1e-5)


def test_proportional_attention_is_attention_over_copies():
    """Two equal patches that became one count as two."""
    model = shuffled(VisionTransformer(**SHAPE))
    with torch.no_grad():
        model.pos_embed.zero_()
    alike = torch.randn(1, 3, 1, 4, generator=torch.Generator().manual_seed(0)).expand(3, 3, 16, 4)
    images = alike.repeat(1, 1, 1, 4)  # all patches of a column are equal, and so are all columns
    assert torch.allclose(tome(model, 4)(images), model(images), atol=1e-4)
    assert not torch.allclose(tome(model, 4, proportional=False)(images), model(images), atol=1e-3)


def test_schedules():
    assert merge_schedule(16, 12, inflect=-1) == [32, 29, 26, 23, 20, 17, 14, 11, 8, 5, 2, 0]
    assert sum(merge_schedule(16, 12, inflect=1)) == 187
    assert merge_schedule([3, 2], 4) == [3, 2, 0, 0]
    assert merge_schedule(7, 1) == [7]


@pytest.mark.slow
def test_onnx_answers_alike_at_any_batch(images, tmp_path):
    """A pooling head, so that merging and putting back are both in it."""
    model = tome(shuffled(VisionTransformer(**SHAPE, global_pool="avg", class_token=False)), 3)
    onnx_program(model, images[:2]).save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for batch in (1, 3):
        (found,) = session.run(None, {"images": images[:batch].numpy()})
        np.testing.assert_allclose(found, model(images[:batch]).detach().numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"r": -1}, r"^blocks\.0: r must be a whole number, not a negative one: got -1$"),
        ({"r": [2, -3]}, r"^blocks\.1: r must be a whole number, not a negative one: got -3$"),
        ({"r": 2.5}, r"got 2\.5$"),
        ({"r": 2, "inflect": 1.5}, r"^inflect must be from -1 to 1, over at least 2 blocks: got 1\.5 over 2$"),
        ({"r": [2, 2], "inflect": 1}, r"leave out inflect 1$"),
    ],
)
def test_settings_that_cannot_be(arguments, words):
    with pytest.raises(SettingError, match=words):
        tome(VisionTransformer(**SHAPE), **arguments)


def test_a_longer_list_is_not_used_to_its_end():
    assert tome(VisionTransformer(**SHAPE), [2, 2, 9]).token_counts() == [14, 12]


def test_a_keep_rate_is_not_for_merging(images):
    with pytest.raises(SettingError, match=r"^blocks\.0: keep_rate and tokens are for EViT"):
        tome(VisionTransformer(**SHAPE), 2)(images, keep_rate=0.5)
