"""The masked layer norm: over the channels that are on it is an ordinary one, and it is so in half precision too."""

import torch
from torch import nn

from anyvit.models.layers.masked import masked_layer_norm


def norm_of(channels):
    norm = nn.LayerNorm(channels, 1e-6).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def test_it_is_the_norm_of_the_channels_that_are_on():
    torch.manual_seed(0)
    norm, smaller = norm_of(12).float(), nn.LayerNorm(7, 1e-6)
    smaller.load_state_dict({name: tensor[:7] for name, tensor in norm.state_dict().items()})
    mask = (torch.arange(12) < 7).expand(3, 1, 12)
    x = torch.randn(3, 5, 12) * mask
    y = masked_layer_norm(x, norm, mask)
    torch.testing.assert_close(y[..., :7], smaller(x[..., :7]))
    assert not y[..., 7:].any()
    torch.testing.assert_close(masked_layer_norm(x, norm, torch.ones_like(mask)), norm(x))
    assert torch.equal(masked_layer_norm(x, norm), norm(x))


def test_the_gradient_is_that_of_the_norm_of_the_channels_that_are_on():
    torch.manual_seed(0)
    norm, smaller = norm_of(6).float(), nn.LayerNorm(4, 1e-6)
    smaller.load_state_dict({name: tensor[:4] for name, tensor in norm.state_dict().items()})
    mask = (torch.arange(6) < 4).expand(2, 1, 6)
    x, slope = (torch.randn(2, 3, 6) * mask).requires_grad_(), torch.randn(2, 3, 6)
    (gradient,) = torch.autograd.grad(masked_layer_norm(x, norm, mask), x, slope)
    part = x.detach()[..., :4].requires_grad_()
    (expected,) = torch.autograd.grad(smaller(part), part, slope[..., :4])
    torch.testing.assert_close(gradient[..., :4], expected)


def test_large_means_are_no_trouble_under_autocast():
    norm, mask = nn.LayerNorm(8), torch.ones(1, 1, 8, dtype=torch.bool)
    x = (100 + torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(0)) / 100).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = masked_layer_norm(x, norm, mask)
    assert y.dtype == torch.float32
    assert y.isfinite().all()
    constant = masked_layer_norm(torch.full((1, 1, 8), 3001.7), norm, mask)  # whose variance comes out below 0
    assert constant.isfinite().all()
