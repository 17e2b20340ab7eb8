"""The measurements of untrained networks: derivatives, their laws, and what they refuse."""

import math

import pytest
import torch
from torch import nn

from anyvit.errors import SettingError
from anyvit.models import create_model
from anyvit.models.asvit import AsViT
from anyvit.scaling.design.training_free import (
    Measurement,
    circle,
    condition,
    curve_of,
    features_of,
    length_distortion,
    measure,
    ntk,
    without_norms,
)

SHAPE = (3, 32, 32)


def asvit(*, linear=False):
    torch.manual_seed(0)
    model = AsViT(topology="4,2,2|2,1,2|2,1,2|2,1,2|16,16", img_size=32, num_classes=5).eval()
    if linear:
        for layer in model.layers:
            for block in layer.blocks:
                nn.init.zeros_(block.attn.proj.weight)
                nn.init.zeros_(block.mlp.fc2.weight)
    return model


def vit():
    torch.manual_seed(0)
    return create_model("shaped_vit", image_size=32, patch_size=8, depth=2, heads=2, head_dim=16).eval()


def images(count=4):
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(1))


def around(points=5, dtype=torch.float32):
    return circle(32, torch.Generator().manual_seed(2), dtype=dtype), torch.linspace(
        0, 2 * math.pi, points, dtype=dtype
    )


def test_the_circle_is_round():
    basis, _ = around()
    torch.testing.assert_close(basis.T @ basis, torch.eye(2))


@pytest.mark.parametrize("build", [asvit, vit])
def test_the_length_is_that_of_backward_derivatives(build):
    features, (basis, theta) = features_of(without_norms(build())), around()
    angles = theta.clone().requires_grad_()
    values = features((torch.stack([angles.cos(), angles.sin()], dim=1) @ basis.T).unflatten(1, SHAPE))
    columns = [torch.autograd.grad(values[:, d].sum(), angles, retain_graph=True)[0] for d in range(values.shape[1])]
    expected = torch.stack(columns, dim=1).norm(dim=1).sum()
    found = [length_distortion(features, basis, theta, SHAPE, chunk=chunk) for chunk in (1, 2, 5)]
    torch.testing.assert_close(torch.stack(found), expected.expand(3), rtol=1e-6, atol=0)


def test_the_length_of_a_linear_network_doubles_with_the_circle():
    features, (basis, theta) = features_of(without_norms(asvit(linear=True))), around()
    once, twice = (length_distortion(features, scale * basis, theta, SHAPE) for scale in (1, 2))
    torch.testing.assert_close(twice, 2 * once)
    assert once > 0


def test_second_derivatives_are_those_of_differences():
    model = without_norms(asvit().double())
    basis, theta = around(dtype=torch.float64)
    basis = 30 * basis  # far enough to bend

    def direction(angles):
        velocity = curve_of(features_of(model), basis, angles, SHAPE).velocity
        return velocity / velocity.norm(dim=1, keepdim=True)

    curve = curve_of(features_of(model), basis, theta, SHAPE, second=True)
    turned = (direction(theta + 1e-5) - direction(theta - 1e-5)).norm(dim=1) / 2e-5
    torch.testing.assert_close(curve.gauss_length(), turned.sum(), rtol=1e-6, atol=0)
    torch.testing.assert_close(curve.curvature(), (turned / curve.speed).sum(), rtol=1e-6, atol=0)
    assert not torch.isclose(curve.gauss_length(), curve.gauss_length(strict_reference=True))
    with pytest.raises(SettingError, match="without its second derivatives: ask for them with second=True"):
        curve_of(features_of(model), basis, theta, SHAPE).curvature()


def test_norms_are_left_out_of_a_copy():
    model = asvit()
    before = model.forward_features(images())
    bare = without_norms(model)
    assert not [name for name, module in bare.named_modules() if isinstance(module, nn.LayerNorm)]
    assert {p.data_ptr() for p in bare.parameters()} < {p.data_ptr() for p in model.parameters()}
    assert torch.equal(model.forward_features(images()), before)


@pytest.mark.parametrize("build", [asvit, vit])
def test_the_kernel_is_that_of_each_images_gradient(build):
    model = build().double()
    features, rows = features_of(model), []
    weights = [p for name, p in model.named_parameters() if "weight" in name]
    for image in images().double():
        found = torch.autograd.grad(features(image[None]).sum(), weights, allow_unused=True)
        rows.append(torch.cat([gradient.flatten() for gradient in found if gradient is not None]))
    expected = torch.stack(rows) @ torch.stack(rows).T
    kernel = ntk(model, features, images().double())
    torch.testing.assert_close(kernel, expected)
    assert torch.equal(kernel, kernel.T)
    assert condition(kernel) == pytest.approx(torch.linalg.cond(expected).item())
    assert condition(kernel) > 1


def test_a_kernel_in_pieces_is_the_same(monkeypatch):
    from anyvit.scaling.design import training_free

    model = asvit()
    whole = ntk(model, features_of(model), images())
    monkeypatch.setattr(training_free, "GRADIENTS_AT_ONCE", 1000)
    monkeypatch.setattr(training_free, "PIXELS_AT_ONCE", 32 * 32)
    torch.testing.assert_close(ntk(model, features_of(model), images()), whole, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_measured_is_refused():
    model = asvit()
    with pytest.raises(SettingError, match="needs images, two or more: got an empty batch"):
        ntk(model, features_of(model), images(0))
    with pytest.warns(UserWarning, match="of one image is always 1: give two or more"):
        assert condition(ntk(model, features_of(model), images(1))) == 1
    with pytest.raises(SettingError, match="a Linear has no forward_intermediates: it cannot be measured untrained"):
        features_of(nn.Linear(2, 2))
    with pytest.raises(SettingError, match="depends on no parameter that is called a weight"):
        ntk(model.requires_grad_(False), features_of(model), images())


def test_a_broken_kernel_is_the_worst():
    assert condition(torch.tensor([[2.0, 0.0], [0.0, 1.0]])) == 2
    assert condition(torch.zeros(2, 2)) == math.inf
    assert condition(torch.full((2, 2), math.nan)) == math.inf


def broken():
    model = asvit()
    nn.init.constant_(model.patch_embed.proj.weight, math.nan)
    return model


@pytest.mark.filterwarnings("error")
def test_a_measurement_follows_from_the_seed():
    build = lambda: AsViT(topology="4,2,2|2,1,2|2,1,2|2,1,2|16,16", img_size=32)  # noqa: E731
    torch.manual_seed(0)
    state = torch.get_rng_state()
    found = [measure(build, 32, images(), points=3, repeats=2, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    assert found[0] == found[1] != found[2]
    assert measure(build, 32, points=3, repeats=2) == Measurement(found[0].length)
    assert measure(broken, 32, images(), points=3, repeats=1) == Measurement(0.0, math.inf)
    assert Measurement.from_json(Measurement(0.0, math.inf).to_json()) == Measurement(0.0, math.inf)
    assert Measurement.from_json(found[0].to_json()) == found[0]
    assert Measurement.from_json(Measurement(1.0).to_json()) == Measurement(1.0)
