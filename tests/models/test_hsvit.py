"""HSViT: published sizes, one pass against a loop over groups, parts, votes, and what is refused."""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from anyvit.costs.counts import count_macs, count_params
from anyvit.deploy.reference import load_reference
from anyvit.errors import ModelError, SettingError
from anyvit.models import HSViT, create_model
from anyvit.models.hsvit import rows_per_group

SMALL = {"img_size": 16, "kernels": (8, 24), "num_groups": 6, "embed_dim": 16, "num_heads": 4, "num_classes": 5}

PUBLISHED = [  # name, more arguments, parameters, GMACs
    ("hsvit_c2a2_32", {}, 812_298, 0.102),
    ("hsvit_c3a4_32", {}, 2_242_826, 0.344),
    ("hsvit_c4a8_32", {}, 6_873_354, 0.638),
    ("hsvit_c2a2_32", {"num_classes": 100}, 818_148, 0.102),
    ("hsvit_c3a4_32", {"num_classes": 100}, 2_248_676, 0.344),
    ("hsvit_c4a8_32", {"num_classes": 100}, 6_879_204, 0.638),
    ("hsvit_c2a2_28", {}, 810_186, 0.078),
    ("hsvit_c3a4_28", {}, 2_240_714, 0.267),
    ("hsvit_c4a8_28", {}, 6_871_242, 0.508),
    ("hsvit_c2a2_64", {}, 824_648, 0.220),
    ("hsvit_c3a4_64", {}, 2_255_176, 0.632),
    ("hsvit_c4a8_64", {}, 6_885_704, 0.927),
    ("hsvit_c2a2_128", {}, 818_213, 0.864),
    ("hsvit_c3a4_128", {}, 2_248_741, 1.107),
    ("hsvit_c4a8_128", {}, 6_879_269, 3.439),
    ("hsvit_wide_c4a8_32", {}, 11_484_874, 1.678),
    ("hsvit_wide_c4a8_32", {"num_classes": 100}, 11_490_724, 1.678),
    ("hsvit_wide_c4a8_28", {}, 11_481_610, 1.303),
    ("hsvit_wide_c4a8_64", {}, 11_497_224, 2.821),
    ("hsvit_c5a8_256", {}, 6_964_616, 4.374),
    ("hsvit_c4a8_32", {"num_groups": 0}, 4_692_234, None),
    ("hsvit_c4a8_32", {"img_size": 8, "kernel_sizes": (3, 3, 3, 0)}, 2_181_898, None),
    ("hsvit_c2a2_8", {"in_chans": 1}, 52_986, None),
]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return HSViT(**SMALL).eval()


@pytest.fixture
def images():
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("name", "more", "params", "gmacs"), PUBLISHED)
def test_published_sizes(name, more, params, gmacs):
    with torch.device("meta"):
        model = timm.create_model(name, **more)
    assert count_params(model) == params
    if gmacs is not None:
        assert round(count_macs(model, model.img_size[0], model.in_chans) / 1e9, 3) == gmacs


def test_hybrid_size_and_frozen_backbone():
    with torch.device("meta"):
        model = timm.create_model("hsvit_resnet50_224").train()
    assert sum(p.numel() for p in model.trunk.parameters()) == 23_508_032
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 1_830_408
    assert model.tokens_per_group == 32
    assert model.training
    assert not any(module.training for module in model.trunk.cnn.modules())


def test_an_unfrozen_backbone_learns_and_a_part_takes_its_channels(images):
    torch.manual_seed(0)
    arguments = {"img_size": 64, "backbone": "resnet18", "num_groups": 8, "embed_dim": 16}
    model = HSViT(**arguments, freeze_backbone=False).train()
    assert any(module.training for module in model.trunk.cnn.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    large = F.interpolate(images, 64)
    model.eval()
    torch.testing.assert_close(model.part([2, 5]).forward_features(large), model.forward_features(large)[:, [2, 5]])


def one_by_one(model, tokens):
    """The groups one after the other, each with PyTorch's own attention."""
    class_tokens = []
    state = model.attention.state_dict()
    for g, own in enumerate(tokens.unflatten(1, (model.num_groups, -1)).unbind(1)):
        x = torch.cat((state["cls_token"][g].expand(len(own), -1, -1), own), 1) + state["pos_embed"][g]
        for depth in range(len(model.attention.blocks)):
            part = {name: state[f"blocks.{depth}.{name}"][g] for name in BLOCK}
            y = F.layer_norm(x, x.shape[-1:], part["norm.weight"], part["norm.bias"])
            attention = nn.MultiheadAttention(x.shape[-1], SMALL["num_heads"], batch_first=True)
            attention.in_proj_weight.data, attention.in_proj_bias.data = part["attn.qkv.weight"], part["attn.qkv.bias"]
            attention.out_proj.weight.data = part["attn.proj.weight"]
            attention.out_proj.bias.data = part["attn.proj.bias"]
            x = x + attention(y, y, y, need_weights=False)[0]
        class_tokens.append(x[:, 0])
    return torch.stack(class_tokens, 1)


BLOCK = [f"{part}.{kind}" for part in ("norm", "attn.qkv", "attn.proj") for kind in ("weight", "bias")]


def test_one_pass_is_the_loop(model, images):
    tokens = model.tokens(images)
    torch.testing.assert_close(model.attend(tokens), one_by_one(model, tokens), rtol=1e-5, atol=1e-5)


def test_groups_are_independent(model, images):
    before = model.forward_features(images)
    for parameter in model.attention.parameters():
        parameter.data[2].mul_(1.5)
    after = model.forward_features(images)
    others = [0, 1, 3, 4, 5]
    assert torch.equal(after[:, others], before[:, others])
    assert not torch.allclose(after[:, 2], before[:, 2])


def test_permuting_groups_with_their_channels_leaves_the_logits(model, images):
    logits, order = model(images), [3, 0, 5, 1, 4, 2]
    state = model.state_dict()
    for name, rows in rows_per_group(model).items():
        state[name] = torch.cat([state[name][g * rows : (g + 1) * rows] for g in order])
    model.load_state_dict(state)
    torch.testing.assert_close(model(images), logits, rtol=1e-6, atol=1e-6)


def test_a_part_answers_for_its_groups_in_memory_of_its_own(model, images):
    whole, part = model.forward_features(images), model.part([1, 4])
    assert part.groups == (1, 4)
    torch.testing.assert_close(part.forward_features(images), whole[:, [1, 4]])
    torch.testing.assert_close(part(images), model.forward_head(whole[:, [1, 4]]))
    assert count_params(part) < count_params(model) / 2
    again = HSViT(**part.arguments)
    again.load_state_dict(part.state_dict())
    assert torch.equal(again.eval()(images), part(images))
    part.head.weight.data.zero_()
    assert model.head.weight.any()
    torch.testing.assert_close(part.part([4]).forward_features(images), whole[:, [4]])


def test_a_subnetwork_shares_the_weights(model, images):
    few = model.subnetwork(2)
    torch.testing.assert_close(few.forward_features(images), model.forward_features(images)[:, :2])
    model.attention.cls_token.data.zero_()
    assert not few.attention.cls_token.any()


def test_votes_in_training(images):
    model = HSViT(**SMALL, drop_rate=0.0, group_drop_rate=0.9).train()
    torch.manual_seed(1)
    votes = model.draw_votes(1000)
    assert votes.shape == (1000, 6)
    assert votes.any(dim=1).all()
    assert not votes.all()
    tokens = torch.randn(4, 6, 16)
    only_first = torch.zeros(4, 6).index_fill(1, torch.tensor([0]), 1.0)
    torch.testing.assert_close(model.forward_head(tokens, weights=only_first), model.forward_head(tokens[:, :1]))
    assert model.eval().draw_votes(4) is None


def test_voting_by_logits_is_another_model(model, images):
    other = HSViT(**SMALL, vote="logits").eval()
    other.load_state_dict(model.state_dict())
    tokens = model.forward_features(images)
    torch.testing.assert_close(other(images), model.head(model.norm(tokens)).mean(1))
    assert not torch.allclose(other(images), model(images))


def test_checkpointing_leaves_the_gradient(images):
    torch.manual_seed(0)
    model = HSViT(**SMALL, drop_rate=0.0).train()
    twin = copy.deepcopy(model)
    twin.set_grad_checkpointing()
    for each in (model, twin):
        each(images).square().sum().backward()
    torch.testing.assert_close(twin.attention.pos_embed.grad, model.attention.pos_embed.grad)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_groups": 5}, "num_groups 5 does not divide the 24 kernels"),
        ({"num_heads": 3}, "num_heads 3 does not divide embed_dim 16"),
        ({"pools": (2,)}, r"got \[8, 24\], \[3, 3\] and \[2\]"),
        ({"kernel_sizes": (3, 4)}, r"odd, or the map changes its size: got \[3, 4\]"),
        ({"kernel_sizes": (3, 0)}, r"256 pixels must be embed_dim=16"),
        ({"groups": (1, 1)}, r"rising numbers from 0 to 5.*\[1, 1\]"),
        ({"groups": (6,)}, r"\[6\]"),
        ({"groups": ()}, "at least one"),
        ({"vote": "median"}, "features, logits: got 'median'"),
    ],
)
def test_refusals(change, words):
    with pytest.raises(ModelError, match=words):
        HSViT(**{**SMALL, **change})


def test_images_of_another_kind_are_refused(model):
    for shape in ((1, 1, 16, 16), (1, 3, 8, 8)):
        with pytest.raises(SettingError, match=r"the model takes 3 channels of 16 x 16 pixels"):
            model(torch.zeros(shape))


def test_any_image_size_is_taken():
    """The reference's formula fails where the pools do not divide the image."""
    assert HSViT(**{**SMALL, "img_size": (17, 30)}).eval()(torch.zeros(2, 3, 17, 30)).shape == (2, 5)


def test_nothing_is_pretrained_but_backbones():
    with pytest.raises(ModelError, match="no pretrained weights of hsvit_c2a2_8"):
        create_model("hsvit_c2a2_8", pretrained=True)


def test_a_reference_checkpoint_needs_words():
    with pytest.raises(SettingError, match="attn_num, conv_kernel_nums, image_size, num_heads, pool_strides"):
        load_reference("hsvit", {"model.embed_projection.0.weight": torch.zeros(4, 4)})
    with pytest.raises(SettingError, match="unknown words in config: dpeth"):
        load_reference("hsvit", {"model.embed_projection.0.weight": torch.zeros(4, 4)}, {"dpeth": 2})


def test_a_hybrid_checkpoint_with_its_cnn(images):
    """The reference holds a ResNet of Hugging Face, whose layers are named otherwise."""
    torch.manual_seed(0)
    arguments = {"img_size": 64, "backbone": "resnet50", "num_groups": 8, "embed_dim": 16, "num_classes": 5}
    model = HSViT(**arguments).eval()
    config = {"sub_module_path": "microsoft/resnet-50", "sub_module_feature_size": 4, "conv_kernel_num": 2048}
    config |= {"attn_num": 8, "attn_embed_dim": 16, "attn_depth": 2, "num_heads": 8, "num_classes": 5}
    loaded = load_reference("hsvit", published(model), config)
    large = F.interpolate(images, 64)
    assert torch.equal(loaded(large), model(large))


def published(model):
    """The weights of a hybrid under the reference's names."""
    weights = {}
    for name, tensor in model.state_dict().items():
        if name.startswith("trunk.cnn.layer"):
            stage, block, layer, rest = name.removeprefix("trunk.cnn.layer").split(".", 3)
            if layer == "downsample":
                number, rest = rest.split(".", 1)
                place = f"shortcut.{'normalization' if number == '1' else 'convolution'}.{rest}"
            else:
                kind = "normalization" if layer.startswith("bn") else "convolution"
                place = f"layer.{int(layer[-1]) - 1}.{kind}.{rest}"
            weights[f"model.conv2d_submodule.encoder.stages.{int(stage) - 1}.layers.{block}.{place}"] = tensor
        elif name.startswith("trunk.cnn."):
            kind = "convolution" if "conv1" in name else "normalization"
            weights[f"model.conv2d_submodule.embedder.embedder.{kind}.{name.rpartition('.')[2]}"] = tensor
        elif name in ("attention.cls_token", "attention.pos_embed"):
            ours = {"attention.cls_token": "cls_token_embeddings", "attention.pos_embed": "position_embeddings"}
            weights[f"model.{ours[name]}"] = tensor[:, None]
        elif name.startswith("attention.blocks."):
            depth, rest = name.removeprefix("attention.blocks.").split(".", 1)
            theirs = rest.replace("norm.", "layer_norm.").replace("attn.qkv.", "self_attn.in_proj_")
            theirs = theirs.replace("attn.proj", "self_attn.out_proj")
            for group, own in enumerate(tensor):
                weights[f"model.attn_encoders.{group}.{depth}.attn_block.{theirs}"] = own
        else:
            place = {
                "embed": "model.embed_projection",
                "norm": "classifier.mlp_head.0",
                "head": "classifier.mlp_head.1",
            }
            first, rest = name.split(".", 1)
            weights[f"{place[first]}.{rest}"] = tensor
    return weights
