import random

import pytest
import timm
import torch
from safetensors.torch import save
from torch import nn

from anyvit.costs.counts import Specification, count_macs, count_params, vit_macs, vit_params, weights_size
from anyvit.errors import ModelError, SettingError

DEIT = {"tiny": (5_717_416, 1_253_683_200), "small": (22_050_664, 4_598_882_304), "base": (86_567_656, 17_563_828_224)}
HEADS = {"tiny": 3, "small": 6, "base": 12}


def build(spec):
    return timm.models.VisionTransformer(
        img_size=spec.image_size,
        patch_size=spec.patch_size,
        embed_dim=spec.embed_dim,
        depth=spec.depth,
        num_heads=spec.heads,
        mlp_ratio=spec.mlp_ratio,
        num_classes=spec.num_classes,
        in_chans=spec.in_chans,
    )


def random_spec(seed):
    draw = random.Random(seed)
    patch_size = draw.choice([2, 4, 7, 8, 16])
    return Specification(
        image_size=patch_size * draw.randint(1, 9),
        patch_size=patch_size,
        depth=draw.randint(1, 4),
        heads=draw.randint(1, 4),
        head_dim=draw.choice([8, 12, 24, 40]),
        mlp_ratio=draw.choice([0.5, 1.3, 2.5, 4.0]),
        num_classes=draw.choice([1, 2, 10, 1000]),
        in_chans=draw.choice([1, 3]),
    )


@pytest.mark.parametrize("size", DEIT)
def test_deit(size):
    params, macs = DEIT[size]
    spec = Specification(224, 16, 12, HEADS[size], 64)
    assert (vit_params(spec), vit_macs(spec)) == (params, macs)
    with torch.device("meta"):
        model = timm.create_model(f"deit_{size}_patch16_224")
    assert (count_params(model), count_macs(model, 224)) == (params, macs)


@pytest.mark.parametrize("seed", range(20))
def test_closed_forms_are_exact(seed):
    spec = random_spec(seed)
    model = build(spec)
    assert vit_params(spec) == count_params(model)
    assert vit_macs(spec) == count_macs(model, spec.image_size, spec.in_chans)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((224, 15, 12, 3, 64), "image size 224 not divisible by patch size 15"),
        ((224, 16, 0, 3, 64), "depth 0 must be above 0"),
        ((224, 16, 12, 3, 64, float("nan")), "mlp_ratio nan must be above 0"),
    ],
)
def test_specifications_that_no_model_has(values, words):
    with pytest.raises(SettingError, match=words):
        Specification(*values)


@pytest.fixture
def tiny():
    return build(Specification(16, 4, 2, 2, 8, num_classes=5))


def test_counting_changes_nothing(tiny):
    tiny.train()
    before = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
    parameters = [id(parameter) for parameter in tiny.parameters()]
    math, flash = torch.backends.cuda.math_sdp_enabled(), torch.backends.cuda.flash_sdp_enabled()
    count_macs(tiny, 16)
    assert tiny.training
    assert [id(parameter) for parameter in tiny.parameters()] == parameters
    assert all(module.fused_attn for module in tiny.modules() if hasattr(module, "fused_attn"))
    assert (torch.backends.cuda.math_sdp_enabled(), torch.backends.cuda.flash_sdp_enabled()) == (math, flash)
    torch.testing.assert_close(dict(tiny.state_dict()), before, rtol=0, atol=0)


def test_state_is_restored_when_counting_fails(tiny):
    math = torch.backends.cuda.math_sdp_enabled()
    with pytest.raises(ModelError, match=r"cannot count the MACs of VisionTransformer at 3 x 20 x 20: .*20"):
        count_macs(tiny, 20)
    assert torch.backends.cuda.math_sdp_enabled() == math


class Narrow(nn.Module):
    """A parameter that is a view of a larger one, and a plain tensor that is no leaf."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(base.weight[:4, :12])
        self.base = base.weight.view(-1)  # autograd would refuse to copy it

    def forward(self, images):
        return images.flatten(1) @ self.weight.T + self.base[:4]


def test_views_count_as_what_they_show():
    model = Narrow(nn.Linear(48, 8))
    assert count_params(model) == 4 * 12
    assert count_macs(model, 2) == 4 * 12
    assert weights_size(model) == 4 * 4 * 12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_attention_is_counted(dtype):
    layer = nn.TransformerEncoderLayer(4, 2, 16, batch_first=True)
    model = nn.Sequential(nn.Conv2d(3, 8, 2, 2), nn.Flatten(2), layer).to(dtype)  # 8 channels of 4 pixels are tokens
    T, D, M = 8, 4, 16
    assert count_macs(model, 4) == 4 * 8 * 12 + 4 * T * D * D + 2 * T * T * D + 2 * T * D * M


def test_tied_weights_count_once(tiny):
    tied = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    tied[1].weight = tied[0].weight
    assert count_params(tied) == 16
    assert weights_size(tied) == 64


def test_size_is_that_of_the_file(tiny):
    for model in (tiny, tiny.to(torch.bfloat16)):
        state = model.state_dict()
        assert 0 < len(save(state)) - weights_size(model) < 200 * len(state)
