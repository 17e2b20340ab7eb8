"""One set of weights, a ViT for every number of heads."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch.nn import functional as F

from anyvit.errors import ModelError, SettingError
from anyvit.models import HydraViT, elastic, is_plain_vit, share
from tests.models.conftest import SHAPE, shuffled

HEADS = (1, 2, 3, 4)


@pytest.mark.parametrize("heads", HEADS)
def test_three_ways_to_run_a_subnetwork_answer_alike(hydra, images, heads):
    views, extracted = hydra.subnetwork(heads), hydra.extract(heads)
    plain = VisionTransformer(**{**SHAPE, "embed_dim": heads * 8, "num_heads": heads}).eval()
    plain.load_state_dict(extracted.state_dict())
    expected = plain(images)
    for answer in (views(images), extracted(images), hydra(images, heads=heads)):
        assert torch.equal(answer, expected)


def test_full_size_is_timms_to_the_bit(hydra, images):
    plain = VisionTransformer(**SHAPE).eval()
    plain.load_state_dict(hydra.state_dict())
    assert torch.equal(hydra(images), plain(images))
    assert torch.equal(hydra(images, heads=4), plain(images))


@pytest.mark.parametrize("heads", HEADS)
def test_subnetworks_are_plain_vits_of_their_own_size(hydra, images, heads):
    for model in (hydra.subnetwork(heads), hydra.extract(heads)):
        assert type(model) is VisionTransformer
        assert is_plain_vit(model)
        assert model.num_features == model.embed_dim == model.head_hidden_size == heads * 8
        assert model.forward_features(images).shape == (3, 17, heads * 8)
        assert [tuple(x.shape) for x in model.forward_intermediates(images)[1]] == [(3, heads * 8, 4, 4)] * 2
        assert [info["num_chs"] for info in model.feature_info] == [heads * 8] * 2
        assert model.forward_head(model.forward_features(images), pre_logits=True).shape == (3, heads * 8)
        assert model.get_classifier().in_features == heads * 8
        model.reset_classifier(7)
        assert model(images).shape == (3, 7)


def test_views_need_no_memory_and_follow_the_weights(hydra, images):
    narrow = hydra.subnetwork(2)
    for name, parameter in narrow.named_parameters():
        full = hydra.get_parameter(name)
        assert parameter.untyped_storage().data_ptr() == full.untyped_storage().data_ptr()
    before = narrow(images)
    with torch.no_grad():
        hydra.blocks[1].mlp.fc1.weight.add_(0.1)
    assert not torch.equal(narrow(images), before)
    assert torch.equal(narrow(images), hydra(images, heads=2))
    hydra.load_state_dict(shuffled(HydraViT(**SHAPE)).state_dict())
    assert torch.equal(narrow(images), hydra(images, heads=2))


def test_extracted_weights_are_apart_and_can_be_saved(hydra, images, tmp_path):
    extracted = hydra.extract(2)
    save_file(extracted.state_dict(), tmp_path / "narrow.safetensors")
    expected = extracted(images)
    with torch.no_grad():
        for parameter in hydra.parameters():
            parameter.zero_()
    extracted.load_state_dict(load_file(tmp_path / "narrow.safetensors"))
    assert torch.equal(extracted(images), expected)
    assert all(parameter.is_contiguous() for parameter in extracted.parameters())


def test_weights_outside_the_slice_do_not_count_nor_what_ran_before(hydra, images):
    expected = {heads: hydra(images, heads=heads) for heads in HEADS}
    for heads in reversed(HEADS):
        assert torch.equal(hydra(images, heads=heads), expected[heads])
    kept = {name: torch.zeros_like(parameter) for name, parameter in hydra.named_parameters()}
    for name, parameter in hydra.subnetwork(2).named_parameters():
        torch.as_strided(kept[name], parameter.shape, parameter.stride()).fill_(1)
    with torch.no_grad():
        for name, parameter in hydra.named_parameters():
            parameter[kept[name] == 0] = 1e6
    assert torch.equal(hydra(images, heads=2), expected[2])


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("heads", HEADS)
def test_gradients_are_dense_and_zero_outside_the_slice(images, heads, separate):
    hydra = shuffled(HydraViT(**SHAPE, elastic_heads=HEADS, separate_classifiers=separate)).train()
    F.cross_entropy(hydra(images, heads=heads), torch.tensor([0, 1, 2])).backward()
    inside = {name: p.numel() for name, p in hydra.subnetwork(heads).named_parameters()}
    for name, parameter in hydra.named_parameters():
        assert parameter.grad is not None, name
        own = name.replace(f"heads.{heads}.", "head.")
        assert parameter.grad.count_nonzero() <= inside.get(own, 0), name
    extracted = shuffled(HydraViT(**SHAPE, elastic_heads=HEADS, separate_classifiers=separate)).extract(heads)
    F.cross_entropy(extracted(images), torch.tensor([0, 1, 2])).backward()
    torch.testing.assert_close(
        hydra.blocks[0].attn.proj.weight.grad[: heads * 8, : heads * 8], extracted.blocks[0].attn.proj.weight.grad
    )


def test_gradient_checkpointing_changes_nothing(hydra, images):
    def gradients():
        hydra.zero_grad()
        hydra(images, heads=3).sum().backward()
        return [parameter.grad for parameter in hydra.parameters()]

    expected = gradients()
    hydra.set_grad_checkpointing()
    hydra(images, heads=3)
    torch.testing.assert_close(gradients(), expected)
    loss = hydra(images, heads=3).sum()
    with torch.no_grad():
        hydra(images, heads=3)  # the weights that backward reads again are not those of this forward
    hydra.zero_grad()
    loss.backward()
    torch.testing.assert_close([parameter.grad for parameter in hydra.parameters()], expected)


def test_two_subnetworks_train_in_one_step(hydra, images):
    (hydra(images, heads=1).sum() + hydra(images, heads=3).sum()).backward()
    both = hydra.cls_token.grad.clone()
    hydra.zero_grad()
    hydra(images, heads=1).sum().backward()
    hydra(images, heads=3).sum().backward()
    torch.testing.assert_close(hydra.cls_token.grad, both)


def test_training_mode_reaches_the_narrow_forward(images):
    hydra = shuffled(HydraViT(**SHAPE, drop_path_rate=0.9))
    expected = hydra(images, heads=2)
    torch.manual_seed(0)
    assert not torch.equal(hydra.train()(images, heads=2), expected)
    assert torch.equal(hydra.eval()(images, heads=2), expected)


def test_a_part_that_was_replaced_is_used(hydra, images):
    hydra(images, heads=2)
    hydra.blocks[0].mlp.act = torch.nn.ReLU()
    assert torch.equal(hydra(images, heads=2), hydra.extract(2)(images))
    hydra.reset_classifier(7)
    assert hydra(images, heads=2).shape == (3, 7)
    hydra.set_input_size(img_size=24)
    assert hydra(torch.randn(1, 3, 24, 24), heads=2).shape == (1, 7)


@pytest.mark.parametrize("change", [copy.deepcopy, share, lambda model: copy.deepcopy(model).to(torch.bfloat16)])
def test_copies_and_conversions_keep_working(hydra, images, change):
    hydra(images, heads=2).sum().backward()
    other = change(hydra)
    images = images.to(other.cls_token.dtype)
    assert torch.equal(other(images, heads=2), other.extract(2)(images))
    assert torch.equal(other.subnetwork(2)(images), other.extract(2)(images))


def test_conversion_in_place(hydra, images):
    hydra(images, heads=2)
    hydra.to(torch.bfloat16)
    images = images.bfloat16()
    assert torch.equal(hydra(images, heads=2), hydra.subnetwork(2)(images))


def test_timms_contract_at_full_size(hydra, images):
    assert hydra.forward_features(images).shape == (3, 17, 32)
    assert len(hydra.forward_intermediates(images, indices=1, intermediates_only=True)) == 1
    assert hydra.get_classifier() is hydra.head
    assert {"pos_embed", "cls_token"} <= hydra.no_weight_decay()
    assert hydra.elastic_heads == HEADS
    assert (hydra.num_heads, hydra.head_dim) == (4, 8)


def test_separate_classifiers(images):
    hydra = shuffled(HydraViT(**SHAPE, elastic_heads=(2, 3, 4), separate_classifiers=True))
    state = hydra.state_dict()
    assert {key: tuple(state[key].shape) for key in state if key.startswith("head")} == {
        f"heads.{k}.{name}": shape for k in (2, 3, 4) for name, shape in (("weight", (5, 8 * k)), ("bias", (5,)))
    }
    for heads in (2, 3, 4):
        assert torch.equal(hydra(images, heads=heads), hydra.extract(heads)(images))
        assert torch.equal(hydra.extract(heads).head.weight, hydra.heads[str(heads)].weight)
    assert torch.equal(hydra(images), hydra(images, heads=4))
    assert hydra.get_classifier() is hydra.heads["4"]
    hydra.reset_classifier(7)
    assert hydra(images, heads=3).shape == (3, 7)
    with pytest.raises(SettingError, match=r"heads must be one of \[2, 3, 4\]: got 1"):
        hydra(images, heads=1)
    with pytest.raises(ModelError, match="separate classifiers already; extract a subnetwork first"):
        elastic(hydra)


def test_init_reference_is_pytorchs_own():
    torch.manual_seed(0)
    bound = 32**-0.5
    reference, timms = HydraViT(**SHAPE, init="reference"), HydraViT(**SHAPE, init="timm")
    for name in ("weight", "bias"):
        drawn = getattr(reference.blocks[0].attn.qkv, name)
        assert 0.9 * bound < drawn.abs().max() <= bound
    assert timms.blocks[0].attn.qkv.bias.count_nonzero() == 0
    assert 0.015 < timms.blocks[0].attn.qkv.weight.std() < 0.025
    assert 0.015 < reference.pos_embed.std() < 0.025
    assert reference.cls_token.abs().max() < 1e-5


@pytest.mark.parametrize(
    ("heads", "words"),
    [
        (0, "heads must be from 1 to 4: got 0"),
        (5, "heads must be from 1 to 4: got 5"),
        (2.0, r"heads must be a whole number from 1 to 4: got 2\.0"),
        (True, "heads must be a whole number from 1 to 4: got True"),
        ("2", "heads must be a whole number from 1 to 4: got '2'"),
    ],
)
def test_wrong_number_of_heads_is_refused(hydra, images, heads, words):
    for call in (lambda: hydra(images, heads=heads), lambda: hydra.subnetwork(heads), lambda: hydra.extract(heads)):
        with pytest.raises(SettingError, match=f"^{words}$"):
            call()


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"elastic_heads": [2, 2, 4]}, SettingError, r"elastic heads must not repeat: got \[2, 2, 4\]"),
        ({"elastic_heads": [0, 4]}, SettingError, r"elastic heads must be whole numbers from 1 to 4: got \[0, 4\]"),
        ({"elastic_heads": [2, 5]}, SettingError, r"elastic heads must be whole numbers from 1 to 4: got \[2, 5\]"),
        ({"elastic_heads": [1.5, 4]}, SettingError, r"elastic heads must be whole numbers from 1 to 4: got \[1.5, 4\]"),
        (
            {"elastic_heads": [1, 2]},
            SettingError,
            r"elastic heads must end with all 4 heads, the full model: got \[1, 2\]",
        ),
        ({"num_heads": 5}, ModelError, "num_heads 5 does not divide embed_dim 32"),
        ({"init": "best"}, SettingError, "init must be one of reference, timm: got 'best'"),
    ],
)
def test_wrong_arguments_are_refused(changes, error, words):
    with pytest.raises(error, match=f"^{words}$"):
        HydraViT(**{**SHAPE, **changes})


def test_images_of_another_size_are_refused_unless_size_is_dynamic(hydra):
    larger = torch.randn(1, 3, 24, 20)
    for heads in (2, 4):
        with pytest.raises(SettingError, match=r"^images are 24 x 20 pixels and the model takes 16 x 16: "):
            hydra(larger, heads=heads)
    dynamic = shuffled(HydraViT(**SHAPE, dynamic_img_size=True))
    assert torch.equal(dynamic(larger, heads=2), dynamic.extract(2)(larger))
