"""Training of ElasticViT's super-network, whose subnetworks range over a factor of 80 in cost (arXiv 2303.09730).

Paper:    Tang, Zhang, Cui, et al., ICCV 2023
Differs:  gradients are clipped by their norm, as the trainer does it, not by that of each weight (AGC); subnetworks are
          scored on the batch as it is learned, mixed or not, and in one process; without a teacher the labels are
          learned; tuples are drawn when they are needed, from no table; in the space above a bank's least network
          kernels are bounded by its kernels, where the reference goes by its ratios
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyvit.errors import ModelError, SettingError
from anyvit.models.elasticvit_super import ElasticSuperViT
from anyvit.training.alpha_divergence import adaptive_divergence, sharpened
from anyvit.training.objectives.banks import PUBLISHED_BANKS, Banks, BankWalk, Memory, choose
from anyvit.training.objectives.classification import accuracy
from anyvit.training.objectives.teacher import Teacher

SLOTS = 3
"""Subnetworks of a bank that a step trains, beside the least one, which they teach."""


@dataclass(frozen=True)
class ComplexityAware:
    """Three subnetworks of about the same cost, and the least one of that level, which learns from them.

    What is drawn follows from the seed, the step and what is remembered of the banks. That memory is begun anew at the
    first step and lies in the checkpoints, so that a resumed run goes on with it.

    Args:
        steps_per_epoch: Steps in an epoch.
        banks: Levels of cost that the super-network is trained at.
        teachers: Of models that answer the same images. Of several, the mean of their sharpened answers is all that is
            learned; of one, its answer and the labels, half each; without any, the labels.
        seed: Of the walk over the banks and of what is drawn.

    Raises:
        SettingError: An epoch without steps.
    """

    name: ClassVar[str] = "complexity-aware"
    steps_per_epoch: int
    banks: Banks = PUBLISHED_BANKS
    teachers: tuple[Teacher, ...] = ()
    seed: int = 0
    _walk: BankWalk = field(init=False, repr=False, compare=False)
    _memories: list[Memory] = field(init=False, repr=False, compare=False, default_factory=list)

    def __post_init__(self) -> None:
        if self.steps_per_epoch < 1:
            raise SettingError(f"an epoch has at least one step: got {self.steps_per_epoch}")
        object.__setattr__(self, "_walk", BankWalk(len(self.banks.targets), self.seed))
        self._forget()

    def loss(self, model: nn.Module, images: Tensor, targets: Tensor, *, step: int) -> tuple[Tensor, dict[str, float]]:
        net = _super_network(model, self.banks)
        epoch, bank = step // self.steps_per_epoch, self._walk.after(step + 1 + step // self.steps_per_epoch)
        if step == 0:
            self._forget()
        self._score_again(net, images, targets, step, bank)
        taught = [teacher(images) for teacher in self.teachers]
        losses, answers = [], []
        for slot in range(SLOTS):
            chance = random.Random(f"{self.seed}/{step}/{slot}")
            arch, fresh = choose(self.banks, self._memories, bank, epoch, chance)
            net.set_arch(arch)
            logits = net(images)
            losses.append(_learned(logits, targets, taught))
            answers.append(logits.detach())
            if fresh:
                self._memories[bank].offer(arch, -F.cross_entropy(answers[-1], targets).item())
        net.set_arch(self.banks.least(self.banks.targets[bank]))
        answer = torch.stack([own.softmax(1) for own in answers]).mean(0)
        losses.append(adaptive_divergence(net(images), answer))
        figures = {"accuracy": accuracy(answer, targets), "bank": float(bank), "distance": losses[-1].item()}
        return torch.stack(losses).sum(), figures

    def state_dict(self) -> dict[str, Any]:
        """What steps have left here, as plain data: a checkpoint keeps it."""
        return {"memories": [memory.state() for memory in self._memories]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what `state_dict` gave."""
        for memory, known in zip(self._memories, state["memories"], strict=True):
            memory.restore(known)

    def _forget(self) -> None:
        assert self.banks.capacities is not None
        self._memories[:] = [Memory(capacity) for capacity in self.banks.capacities]

    @torch.no_grad()
    def _score_again(self, net: ElasticSuperViT, images: Tensor, targets: Tensor, step: int, bank: int) -> None:
        """Weights change: all banks at the start of an epoch, the one that is visited at each of its quarters."""
        place = step % self.steps_per_epoch
        quarters = {self.steps_per_epoch * quarter // 4 for quarter in (1, 2, 3)}
        chosen = range(len(self._memories)) if place == 0 else [bank] if place in quarters else []
        for number in chosen:
            memory = self._memories[number]
            for arch in list(memory.scores):
                net.set_arch(arch)
                memory.scores[arch] = -F.cross_entropy(net(images), targets).item()


def _learned(logits: Tensor, targets: Tensor, taught: Sequence[Tensor]) -> Tensor:
    if not taught:
        return F.cross_entropy(logits, targets)
    if len(taught) == 1:
        return 0.5 * F.cross_entropy(logits, targets) + 0.5 * F.cross_entropy(logits, taught[0].softmax(1))
    return F.cross_entropy(logits, sharpened(taught))


def _super_network(model: nn.Module, banks: Banks) -> ElasticSuperViT:
    if not isinstance(model, ElasticSuperViT):
        raise ModelError(f"a {type(model).__name__} has no subnetworks to draw: train an ElasticViT super-network")
    if model.space != banks.space:
        raise ModelError("the banks are of another space than the super-network's: give them its own")
    return model
