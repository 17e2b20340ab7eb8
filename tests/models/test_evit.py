"""EViT: which tokens stay, the run-time override, where tokens came from, and published weights."""

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from anyvit.backends.graph import onnx_program
from anyvit.deploy.reference import load_reference
from anyvit.errors import ModelError, SettingError
from anyvit.models.layers.evit import complement, evit, keep_rate_at
from anyvit.models.layers.token_reduction import ReducedViT
from tests.models.conftest import SHAPE, shuffled

RATES = [1, 0.7, 1, 0.5]


@pytest.fixture
def model():
    return shuffled(VisionTransformer(**{**SHAPE, "depth": 4}))


@pytest.mark.parametrize(
    ("rate", "fused", "dropped"),
    [
        (0.9, [178, 162, 147], [177, 160, 144]),
        (0.8, [158, 128, 104], [157, 126, 101]),
        (0.7, [139, 99, 71], [138, 97, 68]),
        (0.6, [119, 73, 45], [118, 71, 43]),
        (0.5, [99, 51, 27], [98, 49, 25]),
    ],
)
def test_token_counts_of_deit_small(rate, fused, dropped):
    with torch.device("meta"):
        plain = timm.create_model("deit_small_patch16_224")
    for fuse, counts in ((True, fused), (False, dropped)):
        found = evit(plain, rate, fuse=fuse).token_counts()
        assert found == [196] * 3 + [count for count in counts for _ in range(3)]


def test_a_keep_rate_of_one_at_run_time_is_the_plain_model(model, images):
    smaller = evit(model, RATES)
    torch.testing.assert_close(smaller(images, keep_rate=1), model(images), atol=1e-6, rtol=1e-6)
    assert not torch.allclose(smaller(images), model(images), atol=1e-3)


def test_the_override_holds_for_one_call(model, images):
    smaller = evit(model, RATES)
    before = smaller(images)

    def counts(**override):
        return [tokens.patches for tokens in smaller.stages(images, **override)]

    assert counts(keep_rate=0.25) == [16, 5, 5, 3]
    assert counts(keep_rate=[0.1, 0.5, 0.1, 1]) == [16, 9, 9, 9]
    assert counts(tokens=[None, 3, None, None]) == [16, 4, 4, 3]
    assert counts(tokens=[8, 9, 9, 2]) == [9, 9, 9, 3]
    assert torch.equal(smaller(images), before)


def test_the_order_of_patches_does_not_matter(model, images):
    """Patches moved together with their position embeddings."""
    patches = images.unfold(2, 4, 4).unfold(3, 4, 4).reshape(3, 3, 16, 4, 4)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    moved = patches[:, :, order].reshape(3, 3, 4, 4, 4, 4).permute(0, 1, 2, 4, 3, 5).reshape(images.shape)
    smaller = evit(model, 0.5)
    before = smaller(images)
    with torch.no_grad():
        smaller.pos_embed[:, 1:] = smaller.pos_embed[:, 1:][:, order]
    torch.testing.assert_close(smaller(moved), before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fuse", [True, False])
def test_every_token_knows_where_it_came_from(model, images, fuse):
    *_, tokens = evit(model, RATES, fuse=fuse).stages(images)
    first, second = (step.index for step in tokens.maps)
    real = torch.cat((first, first.new_full((3, 1), -1)), 1)[:, : first.shape[1] + fuse].gather(1, second)
    origins = tokens.origins()[:, 1 : 1 + second.shape[1]]
    assert torch.equal(origins, torch.where(real < 0, -1, real + 1))
    sources, places = tokens.sources(), tokens.places()
    assert torch.equal(sources.sum(1), torch.ones(3, 17) if fuse else (places >= 0).float())
    for image in range(3):
        for row, origin in enumerate(tokens.origins()[image].tolist()):
            members = sources[image, row].nonzero().flatten().tolist()
            assert members == [origin] if origin >= 0 else len(members) > 1
    gone = complement(first, 16)[..., None] + 1
    assert torch.equal(tokens.maps[0].rest, gone[..., 0] - 1)
    at_the_first = torch.gather(tokens.maps[0].places, 1, gone[..., 0])
    assert torch.equal(at_the_first, torch.full_like(at_the_first, 1 + first.shape[1] if fuse else -1))


def test_the_fused_token_is_a_sum_by_attention(model, images):
    """Its weights add up to the attention that was thrown away, not to one."""
    reduced = evit(model, [0.5, 1, 1, 1])
    for block in reduced.blocks:
        torch.nn.init.zeros_(block.mlp.fc2.weight)
        torch.nn.init.zeros_(block.mlp.fc2.bias)
    before = reduced._pos_embed(reduced.patch_embed(images))
    normalized = reduced.blocks[0].norm1(before)
    attn = reduced.blocks[0].attn
    query, key, _ = attn.qkv(normalized).reshape(3, 17, 3, 4, 8).permute(2, 0, 3, 1, 4)
    weights = (query @ key.transpose(2, 3) * 8**-0.5).softmax(-1).mean(1)[:, 0, 1:]
    tokens = next(reduced.stages(images))
    rest = tokens.maps[0].rest
    patches = (before + attn(normalized))[:, 1:]
    expected = torch.stack([weights[i, rest[i]] @ patches[i, rest[i]] for i in range(3)])
    torch.testing.assert_close(tokens.x[:, -1], expected, atol=1e-5, rtol=1e-5)


def test_keep_rate_falls_from_one_to_its_base():
    rates = [keep_rate_at(step, base=0.5, steps_per_epoch=10, start=1, end=5) for step in range(70)]
    assert rates[:11] == [1.0] * 11
    assert rates[30] == pytest.approx(0.75)
    assert rates[50:] == [0.5] * 20
    assert sorted(rates, reverse=True) == rates
    assert keep_rate_at(0, base=0.5, steps_per_epoch=10, start=0, end=0) == 0.5


def test_the_keep_count_is_rounded_as_the_reference_rounds():
    with torch.device("meta"):
        plain = VisionTransformer(**{**SHAPE, "img_size": 40})
    assert evit(plain, 0.55, at=[1], fuse=False).token_counts() == [100, 56]


@pytest.mark.slow
def test_onnx_answers_alike_at_any_batch(model, images, tmp_path):
    smaller = evit(model, 0.5)
    onnx_program(smaller, images[:2]).save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for batch in (1, 3):
        (found,) = session.run(None, {"images": images[:batch].numpy()})
        np.testing.assert_allclose(found, smaller(images[:batch]).detach().numpy(), atol=1e-5)


def test_published_weights(model, images):
    config = {"num_heads": 4, "base_keep_rate": 0.5, "drop_loc": [1, 3], "fuse_token": True}
    published = load_reference("evit", {"model": model.state_dict(), "epoch": 300}, config)
    assert type(published) is ReducedViT
    assert torch.equal(published(images), evit(model, 0.5, at=(1, 3))(images))
    by_block = {"num_heads": 4, "keep_rate": RATES}
    assert torch.equal(
        load_reference("evit", model.state_dict(), by_block)(images), evit(model, RATES, fuse=False)(images)
    )
    wide = load_reference("evit", model.state_dict(), {**by_block, "img_size": (16, 32)})
    assert wide(torch.randn(2, 3, 16, 32)).shape == (2, 5)
    same = load_reference("evit", model.state_dict(), {**by_block, "img_size": 16})
    assert torch.equal(same.pos_embed, model.pos_embed)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda model: evit(model, [1, 1.2, 1, 1]), r"^blocks\.1: keep_rate must be above 0 and at most 1: got 1\.2$"),
        (lambda model: evit(model, 0.0, at=[2]), r"^blocks\.2: keep_rate must be above 0 and at most 1: got 0\.0$"),
        (lambda model: evit(model, "0.7", at=[2]), r"^blocks\.2: keep_rate must be above 0 and at most 1: got '0\.7'$"),
        (lambda model: evit(model, 0.5, at=[4]), r"^tokens can be reduced at blocks 0 to 3: got 4$"),
        (lambda model: evit(model, 0.5, at=[-1]), r"^tokens can be reduced at blocks 0 to 3: got -1$"),
        (lambda model: evit(model, RATES, at=[1]), r"leave out at$"),
        (lambda model: evit(model, [0.5, 1]), r"^the model has 4 blocks: got 2 reducers$"),
        (lambda model: load_reference("evit", model.state_dict()), r"do not tell the keep rate: give base_keep_rate"),
    ],
)
def test_settings_that_cannot_be(model, change, words):
    with pytest.raises(SettingError, match=words):
        change(model)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ({"keep_rate": 1.5}, r"^blocks\.0: keep_rate must be above 0 and at most 1: got 1\.5$"),
        ({"keep_rate": [1, 0, 1, 1]}, r"^blocks\.1: keep_rate must be above 0 .* got 0$"),
        ({"keep_rate": [0.5] * 3}, r"^keep_rate is one value, or one for each of 4 blocks: got 3$"),
        ({"tokens": [1] * 5}, r"^tokens is one value, or one for each of 4 blocks: got 5$"),
        ({"tokens": 0}, r"^blocks\.0: tokens must be from 1 to the 16 patch tokens that there are: got 0$"),
        ({"tokens": [8, 17, 1, 1]}, r"^blocks\.1: tokens must be from 1 to the 9 patch tokens .* got 17$"),
    ],
)
def test_overrides_that_cannot_be(model, images, override, words):
    with pytest.raises(SettingError, match=words):
        evit(model, RATES)(images, **override)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"class_token": False, "global_pool": "avg"}, "class-attention needed, and it has no class token; use tome$"),
        ({"global_pool": "avg"}, r"its head pools \(avg\) past the class token; use tome$"),
    ],
)
def test_without_a_class_token_that_counts(options, words):
    with pytest.raises(ModelError, match=words):
        evit(VisionTransformer(**SHAPE, **options))
