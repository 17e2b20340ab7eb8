"""BatchNorm's statistics taken anew."""

import pytest
import torch
from torch import nn

from anyvit.training.batch_norm import recalibrate


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))


def test_statistics_are_the_means_over_the_batches():
    network = model().train()
    batches = [torch.randn(8, 3, 2, 2) + shift for shift in (0, 1, 5)]
    recalibrate(network, batches)
    first = [network[0](images).transpose(0, 1).flatten(1) for images in batches]
    torch.testing.assert_close(network[1].running_mean, torch.stack([values.mean(1) for values in first]).mean(0))
    torch.testing.assert_close(network[1].running_var, torch.stack([values.var(1) for values in first]).mean(0))
    assert not any(module.training for module in network.modules())
    assert network[1].momentum == 0.1
    again = network[4].running_mean.clone()
    recalibrate(network, batches)
    assert torch.equal(network[4].running_mean, again)  # no dropout: the second norm sees the same


def test_frozen_norms_stay_and_without_norms_no_batch_is_taken():
    network = model()
    network[1].requires_grad_(False)
    recalibrate(network, [torch.randn(8, 3, 2, 2)])
    assert network[1].running_mean.eq(0).all()
    assert network[4].running_mean.ne(0).all()
    recalibrate(nn.Linear(2, 2), (pytest.fail("a batch was taken") for _ in range(1)))
