"""Losing half of the tokens costs a trained model little, untuned and tuned."""

import pytest
import torch
from sklearn.datasets import load_digits
from timm.models.vision_transformer import VisionTransformer
from torch.nn import functional as F

from anyvit.models.layers.evit import evit
from anyvit.models.layers.tome import tome


def train(model, images, labels, *, epochs, peak):
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.05)
    steps = epochs * (len(images) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps)
    model.train()
    for _ in range(steps):
        batch = torch.randint(len(images), (64,))
        optimizer.zero_grad()
        noisy = images[batch] + 0.3 * torch.randn(64, *images.shape[1:])
        F.cross_entropy(model(noisy), labels[batch]).backward()
        optimizer.step()
        schedule.step()
    model.eval()


@pytest.mark.slow
def test_half_the_tokens_of_a_model_that_reads_digits():
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    labels = torch.tensor(digits.target)
    torch.manual_seed(0)
    order = torch.randperm(len(images))
    learn, test = order[:1437], order[1437:]
    model = VisionTransformer(img_size=8, patch_size=2, in_chans=1, embed_dim=48, depth=4, num_heads=4, num_classes=10)

    def accuracy(network):
        with torch.no_grad():
            return (network(images[test]).argmax(1) == labels[test]).float().mean().item()

    train(model, images[learn], labels[learn], epochs=30, peak=2e-3)
    dense = accuracy(model)
    merged = [accuracy(tome(model, r)) for r in (1, 2)]
    half = evit(model, 0.5, at=[2])
    untuned = accuracy(half)
    train(half, images[learn], labels[learn], epochs=3, peak=2e-4)
    tuned = accuracy(half)
    assert dense > 0.93, dense
    assert dense - untuned < 0.03, (dense, untuned)
    assert dense - tuned < 0.03, (dense, tuned)
    assert dense - merged[1] < 0.04, (dense, merged)
