"""ElasticViT: published sizes, every subnetwork is the network that it says, and wrong architectures are refused."""

import json
import random

import onnxruntime
import pytest
import timm
import torch

from anyvit.costs.counts import count_macs, count_params
from anyvit.deploy.reference import load_reference
from anyvit.errors import ModelError, SettingError
from anyvit.models import create_model
from anyvit.models.elasticvit import ElasticViT
from anyvit.models.elasticvit_macs import macs
from anyvit.models.elasticvit_space import MINIMUMS, NAMED, PUBLISHED, Arch, Space, Stage
from anyvit.models.elasticvit_super import ElasticSuperViT

TINY = Space(
    resolutions=(32, 44),  # the second has maps of odd sides
    stages=(
        Stage("conv", 1, False, (8, 16), (1, 2), (1,), (3, 5)),
        Stage("conv", 2, False, (8, 16), (1, 2), (3, 4), (3, 5)),
        Stage("conv", 2, True, (16, 24), (1, 2), (3, 4), (3, 5)),
        Stage("attention", 2, True, (16, 24), (1, 2), (2, 3), (2, 3)),
        Stage("attention", 1, True, (24, 32), (1, 2), (2, 3), (2, 3)),
    ),
    head_dim=8,
    head_multiplier=2,
    head_width=20,
)
PUBLISHED_SIZES = {  # million MACs by the authors' estimate, million parameters
    "t1_128": (62.915, 8.906),
    "t2_160": (119.980, 9.300),
    "s1_192": (217.642, 10.837),
    "s2_224": (318.528, 10.232),
    "m_224": (415.581, 12.017),
    "l1_256": (517.108, 12.765),
    "l1_5_256": (618.781, 14.706),
    "l2_256": (704.111, 14.901),
    "l3_256": (815.399, 15.345),
}


def scrambled(model):
    """Random weights and statistics everywhere, so that no cut goes unnoticed."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                values = torch.rand(tensor.shape, generator=generator) * 0.5
                tensor.copy_(values + 0.5 if "running_var" in name or "norm" in name else values - 0.25)
    return model.eval()


@pytest.fixture(scope="module")
def supernet():
    return scrambled(ElasticSuperViT(space=TINY, num_classes=5))


def archs(count, seed=0):
    chance = random.Random(seed)
    return [TINY.draw(chance) for _ in range(count)]


@pytest.mark.parametrize("name", PUBLISHED_SIZES)
def test_variants_have_the_published_sizes(name):
    with torch.device("meta"):
        model = create_model(f"elasticvit_{name}")
    estimate = macs(model.arch, strict_reference=True)
    assert (round(estimate / 1e6, 3), round(count_params(model) / 1e6, 3)) == PUBLISHED_SIZES[name]
    assert count_macs(model, model.arch.res) == macs(model.arch)
    assert model.pretrained_cfg["input_size"] == (3, model.arch.res, model.arch.res)


def test_the_published_super_network():
    with torch.device("meta"):
        assert count_params(create_model("elasticvit_super_256")) == 40_488_174
    ends = [macs(arch, strict_reference=True) for arch in (PUBLISHED.smallest, PUBLISHED.largest)]
    assert ends == [37_365_024, 3_191_458_816]
    assert all(PUBLISHED.checked(arch) == arch for arch in (*NAMED.values(), *MINIMUMS.values()))


def test_the_true_count_is_what_is_computed():
    for arch in archs(6):
        model = ElasticViT(arch=arch, space=TINY, num_classes=5, in_chans=1)
        assert count_macs(model, arch.res, in_chans=1) == macs(arch, TINY, 5, in_chans=1)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_an_extracted_network_is_the_subnetwork(dtype, limit):
    model = scrambled(ElasticSuperViT(space=TINY, num_classes=5)).to(dtype)
    for number, arch in enumerate(archs(20)):
        images = torch.randn(2, 3, 32 + number % 2, 32 + number % 2, dtype=dtype)
        model.set_arch(arch)
        plain = model.extract()
        assert plain.arch == model.active == arch
        assert not any(type(module).__module__.endswith("elasticvit_super") for module in plain.modules())
        answer = model(images)
        torch.testing.assert_close(plain(images), answer, rtol=limit, atol=limit)
        torch.testing.assert_close(model.train()(images), plain.train()(images), rtol=limit, atol=limit)
        model.eval()


def test_the_largest_is_the_network_without_slicing_to_the_bit(supernet):
    images = torch.randn(2, 3, 44, 44)
    supernet.set_arch(TINY.largest)
    assert torch.equal(supernet(images), supernet.extract()(images))


def test_architectures_leave_no_trace_and_survive_json(supernet):
    images, (first, second) = torch.randn(2, 3, 32, 32), archs(2)
    answers = []
    for arch in (first, second, json.loads(json.dumps(first))):
        supernet.set_arch(arch)
        answers.append(supernet(images))
    assert torch.equal(answers[0], answers[2])
    assert not torch.allclose(answers[0], answers[1])
    assert supernet.active == first
    space = json.loads(json.dumps(TINY.to_json()))
    assert Space.of(space) == TINY
    rebuilt = create_model("elasticvit", arch=json.loads(json.dumps(first)), space=space, num_classes=5).eval()
    rebuilt.load_state_dict(supernet.extract(first).state_dict())
    assert torch.equal(rebuilt(images), answers[0])
    assert create_model("elasticvit_super", space=space).space == TINY


def test_only_the_active_part_learns_and_its_statistics_move():
    model = ElasticSuperViT(space=TINY, num_classes=5)
    model.set_arch(TINY.smallest)
    model(torch.randn(4, 3, 32, 32)).square().sum().backward()
    gradient = model.stages[1].blocks[0].project.weight.grad
    assert gradient[:16, :24].any()
    assert not gradient[16:].any()
    assert not gradient[:, 24:].any()
    assert model.stages[1].blocks[1].project.weight.grad is None
    mean = model.stem.norm.running_mean
    assert mean[:8].all()
    assert not mean[8:].any()


def test_timms_contract():
    model = scrambled(create_model("elasticvit", arch=TINY.largest, space=TINY, num_classes=5))
    images = torch.randn(2, 3, 44, 44)
    maps, taken = model.forward_intermediates(images, 2)
    assert torch.equal(model.forward_head(maps), model(images))
    assert model.forward_head(maps, pre_logits=True).shape == (2, model.head_hidden_size)
    assert [m.shape[1] for m in taken] == [info["num_chs"] for info in model.feature_info][-2:]
    sides = [m.shape[-1] for m in model.forward_intermediates(images, intermediates_only=True)]
    assert sides == [22, 11, 6, 3, 3]
    features = timm.create_model("elasticvit", arch=TINY.largest, space=TINY, features_only=True, out_indices=(1, 2))
    assert len(features(images)) == 2
    model.set_grad_checkpointing()
    model.train()(images).sum().backward()
    assert model.stages[3].blocks[0].fc1.weight.grad.any()
    left = model.no_weight_decay()
    assert {"stem.conv.weight", "stages.2.reduction.expand.weight"} <= left
    assert not [name for name in left if ".attn." in name or name.startswith(("head", "classifier"))]
    model.reset_classifier(0)
    assert model(images).shape == (2, 20)
    elastic = ElasticSuperViT(space=TINY)
    elastic.reset_classifier(3)
    assert elastic.extract(TINY.smallest)(images).shape == (2, 3)
    with pytest.raises(ModelError, match="its active network changes in a step"):
        elastic.set_grad_checkpointing()


def changed(**fields):
    return TINY.smallest._replace(**fields)


@pytest.mark.parametrize(
    ("arch", "words"),
    [
        (changed(kernel=(3, 3)), "expected 3 kernel entries, got 2"),
        (changed(v_scale=(2,)), "expected 2 v_scale entries, got 1"),
        (changed(channels=(8, 8, 16, 16)), "expected 5 channels entries, got 4"),
        (changed(res=40), "res 40 is not one of 32, 44"),
        (changed(channels=(8, 8, 20, 24, 24)), "channels 20 of stage 2 is not one of 16, 24"),
        (changed(channels=(8, 8, 24, 16, 24)), "channels must not fall: stage 3 has 16 after 24"),
        (changed(window=(1, 2)), "window must be 1: got 2"),
        (changed(qk_scale=(1, 2)), "qk_scale must be 1: got 2"),
        (changed(kernel=(3, 7, 3)), "kernel 7 of stage 1 is not one of 3, 5"),
        (changed(depths=(1, 1, 1, 1, 0), **{name: getattr(TINY.smallest, name)[:1] for name in Arch._fields[5:]}),
         "depths 0 of stage 4 is not one of 1, 2"),
        (TINY.smallest[:9], "an architecture has the fields res, channels, "),
        ((32, *[1] * 9), "an architecture is a number and nine lists"),
    ],
)  # fmt: skip
def test_wrong_architectures_are_refused(supernet, arch, words):
    with pytest.raises(SettingError, match=f"^{words}"):
        supernet.set_arch(arch)


def test_spaces_that_leave_no_option_are_refused():
    first, second, *rest = TINY.stages
    narrow = Stage("conv", 2, False, (8,), (1,), (3,), (3,))
    with pytest.raises(SettingError, match="stage 1 has at most 8 where the stage before may have 16: no choice"):
        Space((32,), (first, narrow, *rest), 8)
    with pytest.raises(SettingError, match="stage 0 has nothing to choose from in channels"):
        TINY.above(TINY.largest._replace(channels=(24, 24, 24, 24, 32)))
    with pytest.raises(SettingError, match="stages are of kind conv, then of kind attention"):
        Space((32,), (first, second), 8)
    with pytest.raises(SettingError, match="must be multiples of head_dim 16"):
        Space((32,), TINY.stages)
    with pytest.raises(SettingError, match="resolutions must be even"):
        Space((33,), TINY.stages, 8)
    with pytest.raises(SettingError, match="a space of networks has resolutions and stages: 'stages'"):
        Space.of({"resolutions": [32]})


def test_draws_lie_in_the_space_and_above_its_least():
    chance, least = random.Random(1), TINY.largest._replace(res=32)
    for arch in (TINY.draw(chance) for _ in range(50)):
        assert TINY.checked(arch) == arch
        assert TINY.expand(TINY.outline(arch)) == arch
    assert {TINY.above(least).draw(chance)._replace(res=44) for _ in range(10)} == {TINY.largest}
    assert {TINY.above(least).draw(chance).res for _ in range(20)} == {32, 44}


def test_reference_words_that_are_not_understood():
    with pytest.raises(SettingError, match="config: unknown word 'norms'. Did you mean 'norm'"):
        load_reference("elasticvit", {"classifer.bias": torch.zeros(3)}, {"norms": "LN"})
    with pytest.raises(SettingError, match="norm 'BN' is not supported: 'LN' is"):
        load_reference("elasticvit", {"classifer.bias": torch.zeros(3)}, {"norm": "BN"})
    with pytest.raises(SettingError, match="the weights' shapes do not tell stage, max_channels"):
        load_reference("elasticvit", {"classifer.bias": torch.zeros(3)}, {"norm": "LN"})
    with pytest.raises(ModelError, match="classifer.bias is missing"):
        load_reference("elasticvit", {"head.bias": torch.zeros(3)})
    with pytest.raises(ModelError, match="elasticvit needs arch"):
        create_model("elasticvit")


@pytest.mark.slow
def test_an_extracted_network_exports_to_onnx(supernet, tmp_path):
    plain, images = supernet.extract(TINY.smallest), torch.randn(2, 3, 32, 32)
    torch.onnx.export(plain, (images,), tmp_path / "plain.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "plain.onnx", providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    torch.testing.assert_close(torch.from_numpy(answer), plain(images), rtol=1e-4, atol=1e-4)
