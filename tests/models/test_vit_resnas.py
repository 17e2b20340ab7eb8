"""ViT-ResNAS: the published sizes, networks cut out of a super-network, what is refused, and that it learns."""

import json

import pytest
import timm
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from anyvit.costs.counts import count_macs, count_params
from anyvit.deploy.reference import load_reference, load_weights
from anyvit.errors import ModelError, SettingError
from anyvit.models import create_model
from anyvit.models.vit_resnas import ViTResNAS
from anyvit.models.vit_resnas_layout import macs, read_network_def, with_classes, without_placeholders
from anyvit.models.vit_resnas_space import PUBLISHED, SHARES, Choices, read_space, space_of, stages
from anyvit.models.vit_resnas_super import ViTResNASSuper, searchable
from anyvit.scaling.design.supernet import Band
from anyvit.scaling.design.vit_resnas import ResNASGenes

TABLE = {  # parameters without and with the patch head, and MACs
    "reference_tiny": (42_012_736, 42_781_736, 1_794_378_240),
    "tiny": (40_793_552, 41_498_552, 1_782_630_272),
    "small": (63_724_108, 64_605_108, 2_845_501_856),
    "medium": (96_442_672, 97_323_672, 4_513_135_936),
    "super_tiny": (84_814_464, 85_839_464, 3_497_553_920),
    "super_small": (155_318_528, 156_599_528, 6_260_342_784),
}
SMALL = with_classes(stages((24, 8, [(4, 48)] * 3), (32, 8, [(4, 64)] * 2)), 6)
IMAGES = torch.randn(4, 3, 56, 56, generator=torch.Generator().manual_seed(0))


def lively(model):
    """Weights as large as those of a trained model, and statistics of a BatchNorm."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 or "bias" in name:
            nn.init.normal_(parameter, std=0.2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model.eval()


def supernet(**arguments):
    torch.manual_seed(0)
    return lively(ViTResNASSuper(**{"network_def": SMALL, "img_size": 56, **arguments}))


@pytest.mark.parametrize(("name", "sizes"), TABLE.items())
def test_sizes_are_the_published_ones(name, sizes):
    with torch.device("meta"):
        plain, patches = (create_model(f"vit_resnas_{name}_224", patch_output=output) for output in (None, "seq"))
    assert (count_params(plain), count_params(patches), macs(PUBLISHED[name])) == sizes
    assert count_macs(plain, 224) == sizes[2]


def test_larger_images_and_the_constant_of_the_reference():
    published = [round(macs(PUBLISHED["medium"], size, strict_reference=True) / 1e9, 3) for size in (280, 336, 392)]
    assert published == [7.141, 10.566, 14.916]
    for size in (56, 112):
        with torch.device("meta"):
            model = ViTResNAS(network_def=SMALL, img_size=size, distilled=size == 112)
        assert macs(SMALL, size, num_prefix_tokens=model.num_prefix_tokens) == count_macs(model, size)


def test_published_spaces():
    tiny = space_of(PUBLISHED["super_tiny"], SHARES["tiny"])
    assert tiny[0].width == (256, 224, 192, 176, 160)
    assert tiny[7].width == (512, 448, 384, 352, 320)
    assert tiny[14].width == (1024, 896, 768, 704, 640)
    assert tiny[1] == Choices((), (192, 160, 128, 96), tuple(range(768, 383, -64)))
    assert tiny[9] == Choices((), (576, 480, 384, 288), tuple(range(1536, 767, -128)), (512, 512, 0, 0))
    assert tiny[15] == Choices((), (768, 640, 512, 384), tuple(range(3072, 1535, -256)))
    small = space_of(PUBLISHED["super_small"], SHARES["small"])
    assert [small[index].width for index in (0, 8, 16)] == [
        (320, 280, 240, 220, 200),
        (640, 560, 480, 440, 400),
        (1280, 1120, 960, 880, 800),
    ]
    assert small[10] == Choices((), (768, 672, 576, 480), tuple(range(1920, 959, -160)), (640, 640, 0, 0))
    assert small[23] == Choices((), (1024, 896, 768, 640), tuple(range(3840, 1919, -320)))
    assert [bool(choices.layer) for choices in small[1:8]] == [False, True] * 3 + [False]


def random_parts(count):
    genes = ResNASGenes(SMALL, space_of(SMALL), seed=0)
    anything = Band(lambda network_def: macs(network_def, 56), 0, 1e12)
    parts = [genes.mutate(genes.draw(anything)) for _ in range(count)]
    assert len(set(parts)) == count
    return parts


@torch.no_grad()
def test_a_network_cut_out_answers_as_the_masked_super_network():
    model = supernet()
    for part in random_parts(20):
        smaller = model.extract(json.loads(json.dumps(part)))
        assert type(smaller) is ViTResNAS
        assert count_macs(smaller, 56) == macs(part, 56)
        torch.testing.assert_close(model(IMAGES, network_def=part), smaller(IMAGES), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(IMAGES, network_def=SMALL), model(IMAGES), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.extract(SMALL)(IMAGES), model(IMAGES), rtol=0, atol=0)


@torch.no_grad()
def test_rewiring_changes_no_answer():
    model = supernet()
    before, weight = model(IMAGES), model.blocks[0].mlp.fc1.weight.clone()
    model.rewire()
    torch.testing.assert_close(model(IMAGES), before, rtol=1e-5, atol=1e-5)
    assert not torch.equal(model.blocks[0].mlp.fc1.weight, weight)


def test_training_draws_architectures_and_evaluation_does_not():
    model, images = supernet(), IMAGES.repeat(2, 1, 1, 1)
    model.set_epoch(1, warmup_epochs=1)
    assert torch.equal(model(images), model(images))
    assert not torch.allclose(model(images)[:4], model.train()(images)[:4], atol=1e-3)
    torch.manual_seed(0)
    logits = model(images)
    torch.manual_seed(0)
    assert torch.equal(model(images), logits)
    assert not torch.allclose(model(images), logits, atol=1e-3)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.set_epoch(0, warmup_epochs=1)  # the widest alone
    plain = model.extract(SMALL)
    torch.testing.assert_close(model(images), plain(images), rtol=1e-5, atol=1e-5)


def test_an_absent_block_takes_along_the_next_that_may_be_absent():
    layers = [[24, 0], [24, 0], None]
    space = [[24], *({"attn": [32], "mlp": [48], "layer": layer} for layer in layers), [32]]
    space += [{"attn": [32], "mlp": [64], "layer": [32, 0]}, None]
    network_def = (*SMALL[:6], SMALL[-1])
    model = supernet(network_def=network_def, space=space)
    model.set_epoch(1, warmup_epochs=1)
    torch.manual_seed(0)
    first, second, _, other = (kept.get("layer") for kept in (model._drawn(64)[index] for index in (1, 2, 3, 5)))
    assert first.unique().tolist() == [0, 24]
    assert other.unique().tolist() == [0, 32]
    kept = model._drawn(64)
    assert (kept[2]["layer"] <= kept[1]["layer"]).all()
    assert second is not None
    assert "layer" not in kept[3]


@pytest.mark.parametrize("sampling", ["single", "hybrid"])
def test_one_architecture_a_batch(sampling):
    model = supernet(sampling=sampling)
    model.set_epoch(1, warmup_epochs=1)
    kept = model._drawn(16)
    assert all(len(entry["width"].unique()) == 1 for entry in kept if "width" in entry)
    one = [len(entry["mlp"].unique()) == 1 for entry in kept if "mlp" in entry]
    assert all(one) == (sampling == "single")


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for enable in (False, True):
        model = supernet().train()
        model.set_grad_checkpointing(enable)
        model.set_epoch(1, warmup_epochs=1)
        torch.manual_seed(0)
        model(IMAGES.repeat(2, 1, 1, 1)).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(*gradients)


def test_it_keeps_timms_contract():
    model = timm.create_model("vit_resnas", network_def=SMALL, img_size=56, drop_path_rate=0.2).eval()
    assert (model.num_classes, model.num_features, model.head_hidden_size, model.num_prefix_tokens) == (6, 32, 32, 1)
    assert model.pretrained_cfg["input_size"] == (3, 56, 56)
    tokens = model.forward_features(IMAGES)
    assert tokens.shape == (4, 1 + 4, 32)
    torch.testing.assert_close(model.forward_head(tokens), model(IMAGES))
    assert model.forward_head(tokens, pre_logits=True).shape == (4, 32)
    last, maps = model.forward_intermediates(IMAGES, norm=True)
    assert [tuple(map_.shape) for map_ in maps] == [(4, 24, 4, 4), (4, 32, 2, 2)]
    assert [(info["num_chs"], info["reduction"]) for info in model.feature_info] == [(24, 14), (32, 28)]
    torch.testing.assert_close(last, tokens)
    torch.testing.assert_close(maps[-1].flatten(2).transpose(1, 2), tokens[:, 1:])
    assert model.no_weight_decay() == {"tokens"}
    assert [block.drop_path1.drop_prob for block in model.blocks[1:3]] == pytest.approx([0.05, 0.1])
    assert model.get_classifier() is model.cls_head
    model.reset_classifier(3)
    assert model(IMAGES).shape == (4, 3)
    assert model.network_def[-1] == (2, 32, 3)
    model.reset_classifier(0)
    assert model(IMAGES).shape == (4, 32)


def test_outputs_of_two_tokens_and_of_patches():
    two = ViTResNAS(network_def=SMALL, img_size=56, distilled=True)
    assert two(IMAGES).shape == (4, 6)
    two.set_distilled_training()
    assert [tuple(logits.shape) for logits in two(IMAGES)] == [(4, 6), (4, 6)]
    for output, shape in (("seq", (4, 4, 6)), ("avg", (4, 6))):
        model = ViTResNAS(network_def=SMALL, img_size=56, patch_output=output)
        assert [tuple(logits.shape) for logits in model(IMAGES)] == [(4, 6), shape]
        assert model.eval()(IMAGES).shape == (4, 6)
        assert len(model.get_classifier()) == 2


def test_without_placeholders():
    part = (*SMALL[:2], (*SMALL[2][:3], 0), *SMALL[3:])
    assert without_placeholders(part) == (*SMALL[:2], *SMALL[3:])
    model = supernet().extract(part)
    assert list(model.blocks[1].parameters()) == []
    assert model.blocks[2].norm1.weight.shape == (24,)


def change(index, entry):
    return tuple(entry if place == index else own for place, own in enumerate(SMALL))


BLOCK = (1, (24, 4, 8), (24, 48), 1)


@pytest.mark.parametrize(
    ("network_def", "words"),
    [
        (change(1, (7, 24)), r"network_def\[1\] \(7, 24\): unknown block type 7"),
        (
            change(1, (1, (20, 4, 8), (24, 48), 1)),
            r"network_def\[1\] .*: attention takes 20 channels and the MLP 24",
        ),
        (
            change(2, (1, (24, 4, 8), (20, 48), 1)),
            r"network_def\[2\] .*: attention takes 24 channels and the MLP 20",
        ),
        (change(4, (3, 20, 32)), r"network_def\[4\] \(3, 20, 32\): it takes 20 channels, where 24 come"),
        (
            change(4, (3, 24, 16)),
            r"network_def\[4\] .*: a reduction cannot give fewer channels than",
        ),
        (change(7, (2, 24, 6)), r"network_def\[7\] \(2, 24, 6\): it takes 24 channels, where 32 come"),
        (change(0, BLOCK), r"network_def\[0\] .*: the first entry, and no other, is an embedding"),
        (change(7, BLOCK), r"network_def\[7\] .*: the last entry, and no other, is the head"),
        (
            change(1, (1, (24, 4), (24, 48), 1)),
            r"network_def\[1\] .*: it must have the form \(1, \(C, heads",
        ),
        (change(1, (1, (24, 0, 8), (24, 48), 1)), r"network_def\[1\] .*: it must have the form .*, of sizes above 0"),
        (
            (SMALL[0], (3, 24, 32), (3, 32, 32), (3, 32, 32), SMALL[-1]),
            r"network_def\[3\] .*: a grid of 1 x 1 patches",
        ),
        ("tiny", "a network_def lists an embedding"),
    ],
)
def test_definitions_that_cannot_be_are_refused(network_def, words):
    with pytest.raises(ModelError, match=f"^{words}"):
        read_network_def(network_def, img_size=56)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"img_size": 60}, "img_size 60 not divisible by the patch size, 14"),
        ({"num_classes": 5}, r"network_def\[7\] \(2, 32, 6\): the head is not for num_classes 5"),
        ({"patch_output": "sequence"}, "unknown patch_output 'sequence'"),
        ({"patch_output": "seq", "distilled": True}, "patch_output and distilled are two ways"),
        ({"sampling": "several"}, "unknown sampling 'several'"),
        ({"space": [None] * 3}, "a space has an entry for each of the 8 of network_def: got 3"),
        ({"space": [[20], *[None] * 7]}, r"space\[0\] begins with width 20, and network_def\[0\] \(4, 24\) has 24"),
        ({"space": [None, {"attn": [32, 20]}, *[None] * 6]}, r"space\[1\]: attn \(32, 20\) must be whole heads of 8"),
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments, words):
    with pytest.raises(ModelError, match=f"^{words}"):
        ViTResNASSuper(**{"network_def": SMALL, "img_size": 56, **arguments})


def test_what_is_no_part_of_a_super_network_is_refused():
    model = supernet()
    for part, words in (
        (change(1, (1, (24, 5, 8), (24, 48), 1)), r"network_def\[1\] .* is no part of the super-network's"),
        (change(1, (1, (24, 2, 16), (24, 48), 1)), r"network_def\[1\] .* is no part of the super-network's"),
        ((*SMALL[:1], *SMALL[2:]), "a subnetwork has an entry for each of the 8, absent blocks too: got 7"),
    ):
        with pytest.raises(ModelError, match=f"^{words}"):
            model.extract(part)
    with pytest.raises(SettingError, match="^images are 3 x 28 x 28 and the model takes 3 channels of 56 x 56 pixels"):
        model(torch.zeros(1, 3, 28, 28))


def test_spaces_as_the_reference_writes_them():
    written = [[24, 20], {"attn": [32, 16], "mlp": [48], "layer": None}, *[None] * 6]
    space = read_space(json.loads(json.dumps(written)), SMALL)
    assert space[:2] == (Choices(width=(24, 20)), Choices(attn=(32, 16), mlp=(48,)))
    assert read_space(space, SMALL) == space


def test_reference_weights():
    model = supernet(patch_output="seq")
    held = {"model": model.state_dict(), "epoch": 3}
    words = {"network_def": json.loads(json.dumps(SMALL)), "patch_size": 14}
    with pytest.warns(UserWarning, match=r"^the weights' patch_head, which serves training alone, is left out$"):
        loaded = load_reference("vitresnas", held, words)
    assert torch.equal(loaded(IMAGES), model(IMAGES))
    again = searchable(load_reference("vitresnas", held, {**words, "patch_output": True}), space=model.space)
    assert torch.equal(again(IMAGES, network_def=SMALL), model(IMAGES, network_def=SMALL))
    larger = load_reference("vitresnas", held, {**words, "img_size": 112, "patch_output": True})
    assert larger(torch.zeros(1, 3, 112, 112)).shape == (1, 6)
    assert torch.equal(larger.pos_embed[:, 0], model.pos_embed[:, 0])


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ({}, SettingError, "the weights do not tell how wide a head is: give network_def in config"),
        ({"network": 1}, SettingError, "config: unknown word 'network'. Did you mean 'network_def'?"),
        ({"network_def": SMALL, "patch_size": 16}, ModelError, "patch_size 16 is not supported: 14 is"),
        ({"network_def": change(1, (1, (24, 3, 8), (24, 48), 1))}, ModelError, "these weights are not those of the mo"),
    ],
)
def test_wrong_references_are_refused(words, error, message):
    with pytest.raises(error, match=f"^{message}"):
        load_reference("vitresnas", supernet().state_dict(), words)
    with pytest.raises(ModelError, match=r"^these are no ViT-ResNAS weights: tokens or pos_embed"):
        load_reference("vitresnas", {"x": torch.zeros(1)}, {"network_def": SMALL})


def test_our_own_weights_pass_through_the_layout(tmp_path):
    from safetensors.torch import save_file

    model = supernet()
    save_file(model.state_dict(), tmp_path / "own.safetensors")
    other = ViTResNAS(network_def=with_classes(SMALL, 3), img_size=56).eval()
    (note,) = load_weights(other, tmp_path / "own.safetensors")
    assert note == "the classifier is new: the file has one for 6 classes"
    assert torch.equal(other.forward_features(IMAGES), model.forward_features(IMAGES))


def test_there_are_no_pretrained_weights_to_fetch():
    with pytest.raises(ModelError, match=r"vit_resnas_tiny_224 has no pretrained weights to fetch"):
        create_model("vit_resnas_tiny_224", pretrained=True)


@pytest.mark.slow
def test_it_exports_for_any_batch():
    model = supernet().extract(SMALL)
    program = torch.export.export(model, (IMAGES,), dynamic_shapes=({0: torch.export.Dim("batch", max=64)},))
    torch.testing.assert_close(program.module()(IMAGES[:3]), model(IMAGES[:3]))


@pytest.mark.slow
def test_it_learns_the_digits():
    """Widths 32/64/96, six epochs at 56 px: the reference gets 99 %."""
    digits = load_digits()
    images = (torch.tensor(digits.images, dtype=torch.float32) / 8 - 1)[:, None].expand(-1, 3, -1, -1)
    images, labels = F.interpolate(images, size=56, mode="bilinear"), torch.tensor(digits.target)
    torch.manual_seed(0)
    order = torch.randperm(len(images))
    train, test = order[:1400], order[1400:]
    network_def = stages((32, 16, [(2, 64)] * 2), (64, 16, [(4, 128)]), (96, 16, [(6, 192)]))
    model = ViTResNAS(network_def=with_classes(network_def, 10), img_size=56)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=6 * 28)
    for _ in range(6):
        for batch in train[torch.randperm(len(train))].split(50):
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        right = (model.eval()(images[test]).argmax(1) == labels[test]).float().mean().item()
    assert right >= 0.95
