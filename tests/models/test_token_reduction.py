"""The seam between attention and MLP: any plain ViT, any prefix, and what both methods keep."""

import copy

import pytest
import timm
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer

from anyvit.costs.counts import count_macs
from anyvit.errors import ModelError, SettingError
from anyvit.models.layers.evit import EViT, evit
from anyvit.models.layers.token_reduction import insert_reducers
from anyvit.models.layers.tome import ToMe, tome
from tests.models.conftest import SHAPE, shuffled

OPTIONS = [
    {},
    {"qk_norm": True, "init_values": 0.5},
    {"scale_attn_norm": True, "pre_norm": True},
    {"reg_tokens": 3, "no_embed_class": True},
]
POOLED = [
    {"global_pool": "avg"},
    {"global_pool": "avg", "class_token": False},
    {"global_pool": "map", "class_token": False, "reg_tokens": 1},
]
METHODS = {"evit": lambda model: evit(model, 0.6), "tome": lambda model: tome(model, 3)}
methods = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def vit(**options):
    torch.manual_seed(0)
    return shuffled(VisionTransformer(**{**SHAPE, **options}))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("whole", [lambda model: evit(model, 1.0), lambda model: tome(model, 0)], ids=METHODS)
def test_nothing_reduced_is_the_model(options, whole, images):
    model = vit(**options)
    torch.testing.assert_close(whole(model)(images), model(images), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("options", POOLED, ids=str)
def test_nothing_merged_is_the_model_where_it_pools(options, images):
    model = vit(**options)
    torch.testing.assert_close(tome(model, 0)(images), model(images), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@methods
def test_four_images_are_four_times_one(options, method, images):
    model = method(vit(**options))
    one_by_one = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(model(images), one_by_one, atol=1e-5, rtol=1e-5)


@methods
def test_prefix_tokens_stay_in_their_order(method, images):
    model = method(vit(reg_tokens=2, depth=4))
    for tokens, left in zip(model.stages(images), model.token_counts(), strict=True):
        assert tokens.x.shape[1] == 3 + left
        assert torch.equal(tokens.places()[:, :3], torch.arange(3).expand(3, -1))
        assert torch.equal(tokens.origins()[:, :3], torch.arange(3).expand(3, -1))


@methods
def test_a_distillation_token_is_a_prefix_token(method, images):
    model = shuffled(VisionTransformerDistilled(**SHAPE))
    smaller = method(model)
    assert smaller.state_dict().keys() == model.state_dict().keys()
    assert smaller(images).shape == (3, 5)
    assert smaller.forward_features(images).shape[1] == 2 + smaller.token_counts()[-1] < 18
    assert torch.allclose(evit(model, 1.0)(images), model(images), atol=1e-6)


@methods
def test_weights_are_shared_and_the_model_is_left_alone(method, images):
    model = vit()
    answer = model(images)
    smaller = method(model)
    assert {p.data_ptr() for p in smaller.parameters()} == {p.data_ptr() for p in model.parameters()}
    assert smaller.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(model(images), answer)
    assert torch.equal(copy.deepcopy(smaller)(images), smaller(images))


@methods
def test_checkpointing_changes_no_gradient(method, images):
    model = method(vit()).train()
    gradients = []
    for enable in (False, True):
        model.zero_grad()
        model.set_grad_checkpointing(enable)
        model(images).square().sum().backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    torch.testing.assert_close(*gradients)
    assert all(gradient.any() for gradient in gradients[0].values())


@methods
def test_dropout_and_drop_path_are_honoured(method, images):
    model = method(vit(drop_path_rate=0.5, attn_drop_rate=0.5, proj_drop_rate=0.1))
    assert torch.equal(model(images), model(images))
    model.train()
    assert not torch.allclose(model(images), model(images))


@methods
def test_bfloat16(method, images):
    model = method(vit()).bfloat16()
    *_, tokens = model.stages(images.bfloat16())
    assert tokens.x.dtype == torch.bfloat16
    assert tokens.sizes is None or tokens.sizes.dtype == torch.float32


@methods
def test_under_autocast_tokens_stay_float32(method, images):
    with torch.autocast("cpu", torch.bfloat16):
        *_, tokens = method(vit()).stages(images)
    assert tokens.x.dtype == torch.float32


@methods
def test_maps_are_whole(method, images):
    """Each patch has its place again, and holds what it went into."""
    model = method(vit(depth=4))
    *_, last = model.stages(images)
    maps = model.forward_intermediates(images, intermediates_only=True)
    assert [tuple(each.shape) for each in maps] == [(3, 32, 4, 4)] * 4
    assert torch.equal(maps[-1].flatten(2).transpose(1, 2), last.restored()[:, 1:])
    layers = model.get_intermediate_layers(images, n=2, return_prefix_tokens=True, norm=True)
    assert torch.equal(layers[-1][1], model.norm(last.x)[:, :1])
    features, found = model.forward_intermediates(images, indices=[1], stop_early=True, output_fmt="NLC")
    assert features.shape[1] == 1 + model.token_counts()[1]
    assert found[0].shape == (3, 16, 32)
    named = model.forward_intermediates(images, output_dict=True, return_prefix_tokens=True)
    assert torch.equal(named["image_features"], model.forward_features(images))
    assert len(named["image_intermediates_prefix"]) == 4


@pytest.mark.slow
@methods
def test_torch_compile_sees_one_graph(method, images):
    found = torch._dynamo.explain(method(vit()))(images)
    assert (found.graph_count, found.graph_break_count) == (1, 0)


def test_reducers_may_differ_by_block(images):
    """Merge in the first block, then drop: sizes go along."""
    model = insert_reducers(vit(), [ToMe(4, proportional=True), EViT(0.5, fuse=True)])
    *_, tokens = model.stages(images)
    assert model.token_counts() == [12, 7]
    assert torch.equal(tokens.sizes.sum(1), torch.full((3, 1), 17.0))
    assert torch.equal(tokens.sizes[..., 0], tokens.sources().sum(2))


@pytest.mark.parametrize(
    ("name", "image_size", "reduce", "gmacs"),
    [
        ("deit_small_patch16_224", 224, lambda model: evit(model, 1.0), 4.599),
        ("deit_small_patch16_224", 224, lambda model: evit(model, 0.7), 3.029),
        ("deit_small_patch16_224", 224, lambda model: evit(model, 0.5, fuse=False), 2.282),
        ("deit_small_patch16_224", 304, lambda model: evit(model, 0.6), 5.062),
        ("deit_base_patch16_224", 224, lambda model: evit(model, 0.7, fuse=False), 11.485),
        ("deit_small_patch16_224", 224, lambda model: tome(model, 13), 2.706),
        ("deit_tiny_patch16_224", 224, lambda model: tome(model, 13), 0.735),
        ("vit_base_patch16_224", 224, lambda model: tome(model, 16), 8.775),
    ],
)
def test_macs_are_the_published_ones(name, image_size, reduce, gmacs):
    with torch.device("meta"):
        model = timm.create_model(name, img_size=image_size)
    assert count_macs(reduce(model), image_size) / 1e9 == pytest.approx(gmacs, rel=5e-3)


def test_what_cannot_lose_tokens():
    for name, words in (
        ("swin_tiny_patch4_window7_224", "a SwinTransformer is not .*: windows and pyramids need the whole grid"),
        ("pvt_v2_b0", "a PyramidVisionTransformerV2 is not .*: windows and pyramids need the whole grid"),
        ("vit_small_patch16_rope_224", "is not timm's VisionTransformer"),
    ):
        with torch.device("meta"):
            model = timm.create_model(name)
        for method in (evit, tome):
            with pytest.raises(ModelError, match=words):
                method(model)
    with pytest.raises(ModelError, match=r"blocks\.0 is a ReducingBlock"):
        tome(tome(vit(), 1), 1)
    with pytest.raises(SettingError, match="the model has 2 blocks: got 1 reducers"):
        insert_reducers(vit(), [ToMe(1, proportional=True)])
    with pytest.raises(SettingError, match="output_fmt must be NCHW or NLC"):
        tome(vit(), 1).forward_intermediates(torch.zeros(1, 3, 16, 16), output_fmt="HWC")
