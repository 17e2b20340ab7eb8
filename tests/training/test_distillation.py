"""A model taught by another one: the loss, and that the teacher stays as it is and outside."""

import copy
import dataclasses

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch.nn import functional as F

from anyvit.errors import SettingError
from anyvit.training.checkpoint import read_checkpoint
from anyvit.training.objectives import Classification, Distillation
from anyvit.training.recipes import RECIPES
from anyvit.training.trainer import train

IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TARGETS = torch.softmax(torch.randn(6, 4, generator=torch.Generator().manual_seed(1)), 1)
RECIPE = dataclasses.replace(RECIPES["scratch-tiny"], batch_size=16)


def plain(width=24):
    torch.manual_seed(width)
    return VisionTransformer(img_size=8, patch_size=4, embed_dim=width, depth=1, num_heads=2, num_classes=4)


def test_the_loss_is_timms():
    timms = pytest.importorskip("timm.task")
    student, teacher = plain(), plain(32)
    student.pretrained_cfg = teacher.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3}

    def soft_cross_entropy(logits, targets):
        return F.cross_entropy(logits, targets)

    task = timms.LogitDistillationTask(
        student, copy.deepcopy(teacher), soft_cross_entropy, task_loss_weight=0.3, temperature=3.0, verbose=False
    )
    loss, figures = Distillation(teacher, hard=0.3, temperature=3.0).loss(student, IMAGES, TARGETS, step=0)
    expected = task(IMAGES, TARGETS)
    torch.testing.assert_close(loss, expected["loss"])
    assert figures["distance"] == pytest.approx(expected["kd_loss"].item(), rel=1e-4)


def test_a_teacher_agrees_with_itself_and_labels_alone_are_classification():
    teacher = plain()
    loss, _ = Distillation(teacher, hard=0).loss(teacher, IMAGES, TARGETS, step=0)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    loss, _ = Distillation(plain(32), hard=1).loss(teacher, IMAGES, TARGETS, step=0)
    assert torch.equal(loss, Classification().loss(teacher, IMAGES, TARGETS, step=0)[0])


def test_the_teacher_answers_in_evaluation_mode_and_is_left_as_it_is():
    teacher = VisionTransformer(
        img_size=8, patch_size=4, embed_dim=24, depth=1, num_heads=2, num_classes=4, proj_drop_rate=0.5
    ).train()
    objective, student = Distillation(teacher), plain()
    first, second = (objective.loss(student, IMAGES, TARGETS, step=0)[0] for _ in range(2))
    assert torch.equal(first, second)
    first.backward()
    assert teacher.training
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_training_keeps_nothing_of_the_teacher_and_knows_it_again(data, preprocessing, tmp_path):
    student, teacher = plain(), plain(32)
    run = {"recipe": RECIPE, "preprocessing": preprocessing, "folder": tmp_path, "epochs": 1, "workers": 0}
    training = train(student, data, objective=Distillation(teacher), **run)
    assert {"loss", "accuracy", "distance"} <= training.history[-1].keys()
    names = read_checkpoint(tmp_path)["state_dict"].keys()
    own = student.state_dict().keys()
    assert set(names) == {prefix + name for prefix in ("model.", "ema.module.") for name in own}
    again = train(student, data, objective=Distillation(copy.deepcopy(teacher)), **run)
    assert again.steps == training.steps
    with torch.no_grad():
        teacher.head.bias[0] += 1
    with pytest.raises(SettingError, match="holds a training with objective"):
        train(student, data, objective=Distillation(teacher), **run)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hard": 1.5}, r"^hard, the share of the labels in the loss, must be from 0 to 1: got 1\.5"),
        ({"temperature": 0}, r"^temperature must be above 0: got 0"),
    ],
)
def test_options_are_checked(options, words):
    with pytest.raises(SettingError, match=words):
        Distillation(plain(), **options)
