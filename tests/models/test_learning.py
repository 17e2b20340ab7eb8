"""What the first heads learn is useful on its own."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

from anyvit.models import HydraViT
from anyvit.training.objectives.sampler import HeadSampler

STEPS = 400


@pytest.mark.slow
def test_every_subnetwork_learns_digits():
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    labels = torch.tensor(digits.target)
    torch.manual_seed(0)
    order = torch.randperm(len(images))
    train, test = order[:1400], order[1400:]
    model = HydraViT(img_size=8, patch_size=2, in_chans=1, embed_dim=48, depth=3, num_heads=6, num_classes=10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=STEPS)
    sampler = HeadSampler(range(1, 7))
    for step in range(STEPS):
        batch = train[torch.randint(len(train), (64,))]
        loss = F.cross_entropy(model(images[batch], heads=sampler.draw(step)), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        right = {k: (model(images[test], heads=k).argmax(1) == labels[test]).float().mean().item() for k in range(1, 7)}
    assert min(right[heads] for heads in range(3, 7)) > 0.65, right
    assert right[6] > right[1] + 0.2, right
