import dataclasses

import pytest
import torch
from torch.nn import functional as F

from anyvit.training.recipes import RECIPES
from anyvit.training.regularization import SoftTargets, set_stochastic_depth

PLAIN = dataclasses.replace(RECIPES["scratch-small"], smoothing=0, mixing=0)
IMAGES = torch.randn(4, 3, 8, 8)
LABELS = torch.tensor([0, 1, 2, 2])


def test_labels_are_smoothed_and_weighted():
    images, targets = SoftTargets(dataclasses.replace(PLAIN, smoothing=0.3), 3)(IMAGES, LABELS)
    assert images is IMAGES
    torch.testing.assert_close(targets[0], torch.tensor([0.8, 0.1, 0.1]))
    weights, logits = torch.tensor([2.0, 1.0, 0.5]), torch.randn(4, 3)
    _, targets = SoftTargets(PLAIN, 3, weights.numpy())(IMAGES, LABELS)
    expected = (F.cross_entropy(logits, LABELS, reduction="none") * weights[LABELS]).mean()
    torch.testing.assert_close(F.cross_entropy(logits, targets), expected)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixing_is_seeded_and_mixes_labels_like_images(kind):
    off = {"mixup": 0.0, "cutmix": 0.0}
    mixed = SoftTargets(dataclasses.replace(PLAIN, mixing=1, **{**off, kind: 1.0}), 3)
    torch.manual_seed(1)
    images, targets = mixed(IMAGES, LABELS)
    torch.manual_seed(1)
    again, _ = mixed(IMAGES, LABELS)
    assert torch.equal(images, again)
    assert not torch.equal(images, IMAGES)
    torch.testing.assert_close(targets.sum(1), torch.ones(4))
    assert not torch.equal(targets, F.one_hot(LABELS, 3).float())


def test_stochastic_depth_rises_and_rests_in_eval(model):
    set_stochastic_depth(model, 0.5)
    assert [getattr(block.drop_path1, "drop_prob", 0) for block in model.blocks] == [0, 0.5]
    for heads in (1, 3):
        outputs = [model.train()(IMAGES, heads=heads) for _ in range(8)]
        assert any(not torch.equal(outputs[0], other) for other in outputs)
        assert torch.equal(model.eval()(IMAGES, heads=heads), model(IMAGES, heads=heads))
    set_stochastic_depth(model, 0)
    assert torch.equal(model.train()(IMAGES), model(IMAGES))
