"""Token mixup: what is pasted and what its tokens are called, and the loss of a model that answers for patches."""

import math

import pytest
import torch
from torch.nn import functional as F

from anyvit.errors import ModelError
from anyvit.models.vit_resnas import ViTResNAS
from anyvit.models.vit_resnas_layout import with_classes
from anyvit.models.vit_resnas_space import stages
from anyvit.training.objectives import TokenMixup
from anyvit.training.token_mixup import Draws, draw, mix

NETWORK = with_classes(stages((16, 8, [(2, 32)]), (24, 8, [(2, 32)])), 4)
IMAGES = torch.randn(6, 3, 56, 56, generator=torch.Generator().manual_seed(0))
TARGETS = F.one_hot(torch.arange(6) % 4, 4).float()


def test_each_token_has_the_label_of_the_image_it_came_from():
    labels, images = F.one_hot(torch.arange(4)).float(), torch.arange(4.0)[:, None, None, None].expand(-1, 1, 8, 8)
    draws = Draws((1, 0, 2, 3), torch.tensor([1, 0]), 0.75, torch.tensor([1, 0]))
    mixed, targets, of_tokens = mix(images, labels, 4, draws)
    shown = mixed[:2, 0, ::2, ::2].long()  # a pixel of each token
    assert shown[0].tolist() == [[0, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]]
    assert torch.equal(of_tokens[:2].argmax(2).view(2, 4, 4), shown)
    torch.testing.assert_close(targets[:2], of_tokens[:2].mean(1))
    torch.testing.assert_close(mixed[2:, 0, 0, 0], torch.tensor([2.25, 2.75]))
    torch.testing.assert_close(targets[2:], torch.tensor([[0, 0, 0.75, 0.25], [0, 0, 0.25, 0.75]]))
    torch.testing.assert_close(of_tokens[2:], targets[2:, None].expand(-1, 16, -1))
    assert images[0].max() == 0  # what is given is left as it is


def test_boxes_lie_inside_the_grid():
    torch.manual_seed(0)
    boxes = [draw(6, 4).box for _ in range(300)]
    assert all(0 <= top <= 4 - height and 0 <= left <= 4 - width for top, left, height, width in boxes)
    areas = {height * width for _, _, height, width in boxes}
    assert min(areas) == 0
    assert max(areas) >= 12
    assert sorted(draw(7, 4).blended.tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("output", ["seq", "avg"])
def test_the_loss_is_that_of_the_image_and_of_its_patches(output):
    torch.manual_seed(0)
    model = ViTResNAS(network_def=NETWORK, img_size=56, patch_output=output)
    torch.manual_seed(1)
    loss, figures = TokenMixup().loss(model, IMAGES, TARGETS, step=0)
    torch.manual_seed(1)
    images, targets, of_tokens = mix(IMAGES, TARGETS, 2, draw(6, 2))
    logits, patches = model(images)
    of_patches = F.cross_entropy(patches.reshape(-1, 4), (of_tokens if output == "seq" else targets).reshape(-1, 4))
    torch.testing.assert_close(loss, F.cross_entropy(logits, targets) + of_patches)
    assert figures["patches"] == pytest.approx(of_patches.item())
    assert loss.item() == pytest.approx(2 * math.log(4), abs=0.1)  # untrained
    loss.backward()
    assert model.patch_head.weight.grad.abs().sum() > 0


def test_a_model_without_patch_output_is_refused():
    with pytest.raises(ModelError, match=r"^token mixup needs a model with patch_output, not ViTResNAS without it"):
        TokenMixup().loss(ViTResNAS(network_def=NETWORK, img_size=56), IMAGES, TARGETS, step=0)
