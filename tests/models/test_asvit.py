"""As-ViT's variants have the counted sizes, learn, take any image size where padded, and coarser tokens for a while."""

import pytest
import timm
import torch
from sklearn.datasets import load_digits
from timm.models import group_parameters
from torch.nn import functional as F

from anyvit.costs.counts import count_macs, count_params
from anyvit.deploy.reference import load_reference, load_weights
from anyvit.errors import ModelError, SettingError
from anyvit.models import create_model
from anyvit.models.asvit import VARIANTS, AsViT, WindowAttention
from anyvit.models.asvit_topology import Topology

TINY = "8,2,2,1|4,1,2,1|3,1,3,1|2,1,2,2|16,16"
PUBLISHED = {
    "asvit_seed_224": (2_319_624, 0.4916),
    "asvit_small_224": (28_775_328, 5.132),
    "asvit_base_224": (52_258_652, 8.754),
    "asvit_large_224": (87_580_820, 22.358),
}


def tiny(**arguments):
    torch.manual_seed(0)
    model = AsViT(**{"topology": TINY, "img_size": 32, "num_classes": 5, **arguments}).eval()
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def images(size=32, count=2):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_macs_are_the_counted_ones(name):
    with torch.device("meta"):
        model = create_model(name).eval()
    params, giga = PUBLISHED[name]
    assert count_params(model) == params
    assert count_macs(model, 224) / 1e9 == pytest.approx(giga, rel=5e-3)


@pytest.mark.parametrize("text", [TINY, *(variant.topology for variant in VARIANTS.values())])
def test_a_full_string_is_read_and_written(text):
    assert Topology.parse(text).to_string() == text


def test_a_short_string_has_one_block_a_stage_and_32_channels():
    topology = Topology.parse("8,2,3|4,1,2|4,1,4,7|4,1,6|32")
    assert topology.depths == (1, 1, 7, 1)
    assert topology.widths == (32, 64, 128, 256)
    assert topology.heads_by_stage == (4, 8, 16, 32)
    assert topology.sized((1, 2, 3, 4), 180).to_string() == "8,2,3,1|4,1,2,2|4,1,4,3|4,1,6,4|32,180"
    assert topology.sized((1, 1, 1, 1), 180).widths == (180, 360, 720, 1024)
    assert topology.grids(224) == (56, 28, 14, 7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("8,2,3|4,1,2|4,1,4|32", "has 4 fields: four stages and the heads"),
        ("8,2,3|4,1,2|4,1,4|4,1,x|32", "holds something that is no whole number"),
        ("8,2,3|4,1,2|4,1|4,1,6|32", "a stage is kernel,split,expansion or"),
        ("8,2,3|4,1,2|4,1,4|4,1,6|20", "heads 20 of the last stage must be a multiple of 8"),
        ("8,2,3|4,1,2|4,1,4|4,0,6|32", "every number must be 1 or more"),
        ("3,2,3|4,1,2|4,1,4|4,1,6|32", "a kernel of 3 skips pixels: 4 is the least there"),
        ("8,2,3|4,1,2|4,1,4|4,1,6|32,3", "3 channels cannot be shared by 4 heads: raise hidden 3"),
    ],
)
def test_strings_that_describe_no_network_are_refused(text, message):
    with pytest.raises(ModelError, match=message):
        Topology.parse(text)


def test_image_sizes_that_do_not_divide_are_refused_unless_padded():
    with pytest.raises(ModelError, match="window split 3 does not divide grid 8, at image size 32"):
        AsViT(topology="8,3,3|4,1,2|4,1,4|4,1,6|32", img_size=32)
    with pytest.raises(ModelError, match="image size 40 is not divisible by 32: .* Take another size, or padded=True"):
        create_model("asvit", topology=TINY, image_size=40)
    model = create_model("asvit", topology="8,3,3|4,1,2|4,1,4|4,1,6|32", image_size=41, padded=True).eval()
    assert [layer.shape[-1] for layer in model.forward_intermediates(images(41), intermediates_only=True)] == [
        11,
        6,
        3,
        2,
    ]
    assert model(images(41)).isfinite().all()
    with pytest.raises(SettingError, match="images are 3 x 40 x 40 and the model takes 3 channels of 41 x 41 pixels"):
        model(images(40))
    with pytest.raises(ModelError, match="no pretrained weights of asvit_seed_224"):
        create_model("asvit_seed_224", pretrained=True)


def test_padding_changes_nothing_where_all_divides():
    assert torch.equal(tiny()(images()), tiny(padded=True)(images()))


def test_what_fills_up_a_window_is_not_looked_at():
    torch.manual_seed(0)
    attention, x = WindowAttention(8, 2), torch.randn(2, 5, 5, 8)  # windows of 2: the last row and column are alone
    found = attention(x, 2)
    for rows, columns in ((slice(0, 2), slice(2, 4)), (slice(2, 4), slice(4, 5)), (slice(4, 5), slice(4, 5))):
        alone = attention.attend(x[:, rows, columns].flatten(1, 2))
        torch.testing.assert_close(found[:, rows, columns].flatten(1, 2), alone)


def test_timms_contract():
    model = tiny()
    tokens, maps = model.forward_intermediates(images(), norm=True)
    assert torch.equal(tokens, model.forward_features(images()))
    assert torch.equal(maps[-1].permute(0, 2, 3, 1), tokens)
    assert [(m.shape[1], 32 // m.shape[2]) for m in maps] == [
        (i["num_chs"], i["reduction"]) for i in model.feature_info
    ]
    assert model.forward_head(tokens, pre_logits=True).shape == (2, model.head_hidden_size)
    torch.testing.assert_close(model.forward_head(tokens), model(images()))
    model.reset_classifier(3)
    assert model(images()).shape == (2, 3)
    model.reset_classifier(0)
    assert model(images()).shape == (2, model.num_features)
    model.set_grad_checkpointing()
    model.train()(images()).sum().backward()
    assert model.patch_embed.proj.weight.grad.any()
    features = timm.create_model("asvit", topology=TINY, image_size=32, features_only=True, out_indices=(1, 2))
    assert [f.shape[1] for f in features(images())] == [32, 64]
    groups = group_parameters(model, model.group_matcher())
    first = ["patch_embed.norm.bias", *(f"layers.{stage}.blocks.0.attn.proj.bias" for stage in range(4))]
    assert [min(groups[place]) for place in range(5)] == first
    assert "layers.0.downsample.norm.weight" in groups[1]
    assert len(group_parameters(model, model.group_matcher(coarse=True))) == 5  # stem and four stages


def test_tokens_grow_coarser_and_back():
    model = tiny().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plain = model(images())
    for factor, grid in ((1, 8), (2, 4), (4, 2)):
        model.set_token_factor(factor)
        assert model.embed(images()).shape[1:3] == (grid, grid)
        assert F.cross_entropy(model(images()), torch.tensor([0, 1])).isfinite()
    model.set_token_factor(1)
    assert torch.equal(model(images()), plain)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    with pytest.raises(SettingError, match="a token factor is one of 1, 2, 4: got 3"):
        model.set_token_factor(3)


@pytest.mark.parametrize("factor", [2, 4])
def test_a_coarse_token_sees_as_far_as_the_kernel_spreads(factor):
    """Of its 8 x 8 pixels each is `factor` from the next; the image is filled up alike on all sides, left the less."""
    x, embed = images(64), tiny(img_size=64).patch_embed
    embed.norm = torch.nn.Identity()
    reach, side = 7 * factor + 1, 16 // factor
    corner = 4 * factor - ((side - 1) * 4 * factor + reach - 64) // 2  # of the second token
    seen = x[:, :, corner : corner + reach : factor, corner : corner + reach : factor]
    expected = F.conv2d(seen, embed.proj.weight, embed.proj.bias)[:, :, 0, 0]
    torch.testing.assert_close(embed(x, factor)[:, 1, 1], expected)


def reference_of(model):
    names = {".norm2.": ".mlps.0.0.", ".mlp.": ".mlps.0.1.", "pre_logits.": "head.0.", "head.": "head.2."}
    found = {}
    for name, tensor in model.state_dict().items():
        ours = next((ours for ours in names if ours in name), None)
        found[name.replace(ours, names[ours]) if ours else name] = tensor
    return found


def test_the_references_layout_and_ours_are_read(tmp_path):
    from safetensors.torch import save_file

    model = tiny()
    words = {"arch": "8,2,2|4,1,2|3,1,3|2,1,2|16", "img_size": 32, "hidden": 16, "depths": [1, 1, 1, 2]}
    loaded = load_reference("asvit", {"model": reference_of(model)}, words)
    assert torch.equal(loaded(images()), model(images()))
    save_file(model.state_dict(), tmp_path / "own.safetensors")
    fresh = AsViT(topology=TINY, img_size=32, num_classes=5).eval()
    assert load_weights(fresh, tmp_path / "own.safetensors") == ()
    assert torch.equal(fresh(images()), model(images()))


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (None, SettingError, "the weights' shapes do not tell arch, the string of the topology"),
        ({"arch": TINY, "image": 32}, SettingError, "config: unknown word 'image'"),
        (
            {"arch": TINY.replace("16,16", "16,24"), "img_size": 32},
            ModelError,
            "these weights are not those of the model",
        ),
    ],
)
def test_wrong_references_are_refused(words, error, message):
    with pytest.raises(error, match=message):
        load_reference("asvit", reference_of(tiny()), words)


@pytest.mark.slow
def test_it_learns_the_digits():
    digits = load_digits()
    pixels = torch.tensor(digits.images, dtype=torch.float32)[:, None].expand(-1, 3, -1, -1) / 8 - 1
    inputs = F.interpolate(pixels, 32, mode="bilinear")
    labels = torch.tensor(digits.target)
    torch.manual_seed(0)
    order = torch.randperm(len(inputs))
    train, test = order[:1400], order[1400:]
    model = AsViT(topology="4,2,2|2,1,2|2,1,2|2,1,2|16,16", img_size=32, num_classes=10)
    epochs, steps = 8, len(train) // 50
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=epochs * steps)
    for _ in range(epochs):
        for batch in train[torch.randperm(len(train))].split(50):
            loss = F.cross_entropy(model(inputs[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        right = (model(inputs[test]).argmax(1) == labels[test]).float().mean().item()
    assert right >= 0.93
