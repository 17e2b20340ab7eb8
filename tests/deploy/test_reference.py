"""Weights of others: published checkpoints, and files for a timm model."""

import argparse
import collections

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from anyvit.deploy.reference import load_reference, load_weights, read
from anyvit.errors import BundleError, ModelError, SettingError
from anyvit.models import HydraViT, create_model, elastic

SHAPE = {"img_size": 16, "patch_size": 4, "embed_dim": 128, "depth": 2, "num_heads": 2, "num_classes": 5}
IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def plain():
    torch.manual_seed(0)
    return VisionTransformer(**SHAPE, mlp_ratio=3.0).eval()


def _training_checkpoint(average, last) -> dict:
    """As timm's training script writes it."""
    return {
        "epoch": 3,
        "arch": "hydravit_dyn_patch16_224",
        "state_dict": last,
        "state_dict_ema": average,
        "args": argparse.Namespace(lr=1e-3),
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3}]},
        "metric": 71.0,
    }


def test_shapes_tell_everything_but_the_head_width(plain):
    model = load_reference("hydravit", plain.state_dict())
    assert isinstance(model, HydraViT)
    assert not model.training
    assert (model.num_heads, model.head_dim, model.elastic_heads) == (2, 64, (1, 2))
    assert torch.equal(model(IMAGES), plain(IMAGES))
    narrow = load_reference("hydravit", plain.state_dict(), {"head_dim": 32})
    assert narrow.num_heads == 4


@pytest.mark.parametrize(
    "options", [{"init_values": 0.1}, {"qkv_bias": False}, {"no_embed_class": True}, {"num_classes": 0}]
)
def test_variants_are_read_off_the_shapes(options):
    plain = VisionTransformer(**{**SHAPE, **options}).eval()
    assert torch.equal(load_reference("hydravit", plain.state_dict())(IMAGES), plain(IMAGES))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("suffix", [".pth.tar", ".safetensors"])
def test_files_and_prefixes(plain, tmp_path, prefix, suffix):
    weights = {prefix + name: tensor for name, tensor in plain.state_dict().items()}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path)
    assert torch.equal(load_reference("hydravit", path)(IMAGES), plain(IMAGES))


def test_the_average_is_taken_where_there_is_one(plain, tmp_path):
    other = VisionTransformer(**SHAPE, mlp_ratio=3.0).eval()
    path = tmp_path / "last.pth.tar"
    torch.save(_training_checkpoint(plain.state_dict(), other.state_dict()), path)
    assert torch.equal(load_reference("hydravit", path)(IMAGES), plain(IMAGES))
    assert torch.equal(load_reference("hydravit", path, use_ema=True)(IMAGES), plain(IMAGES))
    assert torch.equal(load_reference("hydravit", path, use_ema=False)(IMAGES), other(IMAGES))
    with pytest.raises(BundleError, match=r"^the checkpoint has no moving average"):
        load_reference("hydravit", {"model": plain.state_dict()}, use_ema=True)


def test_half_precision_and_another_image_size(plain):
    weights = {name: tensor.half() for name, tensor in plain.state_dict().items()}
    model = load_reference("hydravit", weights, {"img_size": 24})
    assert model.cls_token.dtype == torch.float32
    assert model(torch.randn(1, 3, 24, 24)).shape == (1, 5)


def test_images_that_are_not_square_must_be_named():
    plain = VisionTransformer(**{**SHAPE, "img_size": (16, 32)}).eval()
    with pytest.raises(ModelError, match=r"^a position table of 33 rows is no square grid: give img_size$"):
        load_reference("hydravit", plain.state_dict())
    images = torch.randn(1, 3, 16, 32)
    model = load_reference("hydravit", plain.state_dict(), {"img_size": (16, 32)})
    assert torch.equal(model(images), plain(images))


def test_what_no_checkpoint_can_be(plain, tmp_path):
    weights, other = plain.state_dict(), "these weights are not those of the model described"
    for arguments, error, words in (
        (("hydra", weights), SettingError, r"unknown system 'hydra'\. Did you mean 'hydravit'\? Known: .*hydravit"),
        (("hydravit", {"epoch": 3}), BundleError, "the checkpoint holds no weights: its keys are epoch"),
        (("hydravit", {"a": torch.ones(1)}), ModelError, "these are not the weights of a plain ViT: 'patch_embed"),
        (
            ("hydravit", weights, {"head_dim": 48}),
            ModelError,
            "embed_dim 128 is no multiple of head_dim 48",
        ),
        (("hydravit", weights, {"num_heads": 3}), ModelError, "num_heads 3 does not divide embed_dim 128"),
        (
            ("hydravit", weights, {"depth": 3}),
            ModelError,
            f"{other}: blocks.2",
        ),
        (
            ("hydravit", weights, {"dim": 64}),
            ModelError,
            f"{other}: cls_token",
        ),
        (("hydravit", weights, {"colour": 1}), SettingError, "config: .* unexpected keyword argument 'colour'"),
        (("hydravit", tmp_path / "none.pth"), BundleError, ".*none.pth: no such file"),
    ):
        with pytest.raises(error, match=f"^{words}"):
            load_reference(*arguments)
    with pytest.raises(SettingError, match=r"^hydravit has one module only: leave out part 'encoder'$"):
        load_reference("hydravit", weights, part="encoder")


def test_damaged_files_and_objects_are_refused(tmp_path):
    objects, damaged, text = tmp_path / "objects.pth", tmp_path / "damaged.safetensors", tmp_path / "text.pth"
    torch.save({"model": collections.Counter("a"), "code": torch.nn.ReLU()}, objects)
    damaged.write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    text.write_text("not a checkpoint")
    for path, words in (
        (objects, "holds a .*ReLU, which is never built: save the state dict alone$"),
        (damaged, "no safetensors file"),
        (text, "is damaged, or no PyTorch"),
    ):
        with pytest.raises(BundleError, match=words) as refusal:
            read(path)
        assert str(path) in str(refusal.value)
        assert "\n" not in str(refusal.value)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(BundleError, match=r"holds a list, not named weights$"):
        read(tmp_path / "list.pth")


def test_weights_for_a_timm_model(plain, tmp_path):
    save_file(plain.state_dict(), tmp_path / "w.safetensors")
    same = VisionTransformer(**SHAPE, mlp_ratio=3.0).eval()
    assert load_weights(same, tmp_path / "w.safetensors") == ()
    assert torch.equal(same(IMAGES), plain(IMAGES))


def test_other_classes_and_another_size_are_adapted_and_said(plain, tmp_path):
    save_file(plain.state_dict(), tmp_path / "w.safetensors")
    for change in (lambda model: model, elastic):
        model = change(VisionTransformer(**{**SHAPE, "num_classes": 3, "img_size": 24}, mlp_ratio=3.0))
        before = model.head.weight.clone()
        notes = load_weights(model, tmp_path / "w.safetensors")
        assert notes == (
            "pos_embed was resized from (1, 17, 128) to (1, 37, 128)",
            "the classifier is new: the file has one for 5 classes",
        )
        assert torch.equal(model.head.weight, before)
        assert torch.equal(model.blocks[1].mlp.fc1.weight, plain.blocks[1].mlp.fc1.weight)
        assert torch.equal(model.pos_embed[:, 0], plain.pos_embed[:, 0])


def test_a_file_without_classifier(plain, tmp_path):
    plain.reset_classifier(0)
    save_file(plain.state_dict(), tmp_path / "w.safetensors")
    model = VisionTransformer(**SHAPE, mlp_ratio=3.0)
    assert load_weights(model, tmp_path / "w.safetensors") == ("the classifier is new: the file has none",)
    headless = VisionTransformer(**{**SHAPE, "num_classes": 0}, mlp_ratio=3.0)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    assert load_weights(headless, tmp_path / "w.safetensors") == (
        "2 tensors of the file were not used, such as head.bias",
    )


def test_separate_classifiers_are_new(plain, tmp_path):
    save_file(plain.state_dict(), tmp_path / "w.safetensors")
    model = elastic(VisionTransformer(**SHAPE, mlp_ratio=3.0), separate_classifiers=True)
    notes = load_weights(model, tmp_path / "w.safetensors")
    assert notes[0] == "the classifier is new: the file has none"
    assert torch.equal(model.cls_token, plain.cls_token)


def test_other_families_and_two_classifiers(tmp_path):
    for name, wide in (("swin_tiny_patch4_window7_224", {"embed_dim": 24}), ("deit_tiny_distilled_patch16_224", {})):
        small = {**wide, "img_size": 64} if "deit" in name else wide
        source = timm.create_model(name, **small, num_classes=4)
        save_file(source.state_dict(), tmp_path / "w.safetensors")
        model = create_model(name, **small, num_classes=2)
        assert load_weights(model, tmp_path / "w.safetensors") == (
            "the classifier is new: the file has one for 4 classes",
        )


def test_weights_of_another_model_are_refused(plain, tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(plain.state_dict(), path)
    with pytest.raises(
        BundleError, match=r"does not fit the model: 12 of its 44 tensors are not in the file, such as blocks\.2"
    ):
        load_weights(VisionTransformer(**{**SHAPE, "depth": 3}, mlp_ratio=3.0), path)
    oblong = VisionTransformer(**{**SHAPE, "img_size": (16, 32)}, mlp_ratio=3.0)
    save_file(oblong.state_dict(), tmp_path / "oblong.safetensors")
    with pytest.raises(BundleError, match=r"does not fit the model: "):
        load_weights(VisionTransformer(**SHAPE, mlp_ratio=3.0), tmp_path / "oblong.safetensors")
    with pytest.raises(BundleError, match=r"does not fit the model: .* is \(.*\) in the file and \(.*\) in the model$"):
        load_weights(VisionTransformer(**{**SHAPE, "embed_dim": 64}, mlp_ratio=3.0), path)
