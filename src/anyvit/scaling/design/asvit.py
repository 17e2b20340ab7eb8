"""The search for a topology without training (As-ViT, arXiv 2202.11921, section 3.2): REINFORCE on two measurements.

A policy draws a topology, its untrained network is measured, and what changed since the network before is the reward.
What a search has measured is all there is to keep: from the seed and that, the policy follows again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from anyvit.errors import SettingError
from anyvit.models.asvit_topology import StageShape, Topology
from anyvit.protocols import Event, Progress, silent
from anyvit.scaling.design.training_free import Measurement

Choices = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Space:
    """The topologies of one block a stage that a search chooses from; as published, 4,556,250.

    Every choice of window splits divides the grids of any image size that is a multiple of 32.

    Args:
        kernels: Of each stage.
        splits: Of each stage but the last, whose attention is global.
        expansions: Of each stage.
        heads: Of the last stage.
        hidden: Channels of the first stage; no choice.
    """

    kernels: tuple[Choices, ...] = ((4, 5, 6, 7, 8), *((2, 3, 4),) * 3)
    splits: tuple[Choices, ...] = ((2, 4, 8), (1, 2, 4), (1, 2))
    expansions: tuple[Choices, ...] = ((2, 3, 4, 5, 6),) * 4
    heads: Choices = (16, 32, 64)
    hidden: int = 32

    @property
    def dimensions(self) -> tuple[Choices, ...]:
        """What is chosen, in the order of the actions."""
        return (*self.kernels, *self.splits, *self.expansions, self.heads)

    def __len__(self) -> int:
        return math.prod(len(choices) for choices in self.dimensions)

    def topology(self, actions: Sequence[int]) -> Topology:
        """The one that these places in the dimensions stand for."""
        values = [choices[action] for choices, action in zip(self.dimensions, actions, strict=True)]
        kernels, splits, expansions = values[:4], [*values[4:7], 1], values[7:11]
        first, second, third, fourth = map(StageShape, kernels, splits, expansions)
        return Topology((first, second, third, fourth), values[11], self.hidden)


class Policy:
    """An independent categorical distribution a dimension, which moves towards what is rewarded.

    Args:
        sizes: Choices in each dimension.
        logits: Where it starts, one dimension behind the other (sum of `sizes`,).
        lr: Of Adam.
        momentum: Of the baseline, a moving average of the rewards.
    """

    def __init__(self, sizes: Sequence[int], logits: Tensor, *, lr: float = 0.08, momentum: float = 0.9) -> None:
        self.sizes = list(sizes)
        self.logits = nn.Parameter(logits.clone())
        self.momentum = momentum
        self._optimizer = torch.optim.Adam([self.logits], lr=lr)
        self._sum = self._weight = 0.0

    @property
    def baseline(self) -> float:
        """The average reward so far."""
        return self._sum / self._weight

    def draw(self, generator: torch.Generator) -> tuple[int, ...]:
        """A random choice in each dimension."""
        parts = self.logits.detach().split(self.sizes)
        return tuple(int(torch.multinomial(part.softmax(0), 1, generator=generator)) for part in parts)

    def best(self) -> tuple[int, ...]:
        """The likeliest choice in each dimension."""
        return tuple(int(part.argmax()) for part in self.logits.detach().split(self.sizes))

    def log_prob(self, actions: Sequence[int]) -> Tensor:
        """Of the choices, a scalar."""
        parts = zip(self.logits.split(self.sizes), actions, strict=True)
        return torch.stack([part.log_softmax(0)[action] for part, action in parts]).sum()

    def update(self, actions: Sequence[int], reward: float) -> None:
        """Learn from a reward. The baseline has it in already when it is used."""
        self._sum = self.momentum * self._sum + (1 - self.momentum) * reward
        self._weight = self.momentum * self._weight + (1 - self.momentum)
        loss = -self.log_prob(actions) * (reward - self.baseline)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()


def last_reward(history: Sequence[Measurement], *, memory: int = 20) -> float:
    """The reward of the last network: how much better it is than the one before, in units of the recent range.

    A network whose measurement failed counts as the worst that has been measured, in hindsight too.

    Args:
        history: All networks so far, in order.
        memory: How many last ones make up the range.
    """
    if len(history) < 2:
        return 0.0
    conditions = [m.condition for m in history if m.condition is not None]
    lengths = [m.length or math.nan for m in history]
    return _change(lengths, memory, worst=min) - (_change(conditions, memory, worst=max) if conditions else 0.0)


def _change(values: Sequence[float], memory: int, *, worst: Callable[[Iterable[float]], float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return 0.0
    filled = [value if math.isfinite(value) else worst(known) for value in values]
    recent = filled[-memory:]
    return (filled[-1] - filled[-2]) / (max(recent) - min(recent) + 1e-6)


@dataclass(frozen=True, slots=True)
class Step:
    """A network that was drawn and measured, and the reward for it."""

    actions: tuple[int, ...]
    topology: Topology
    measurement: Measurement
    reward: float


@dataclass
class Search:
    """All steps of a search, and what it answers so far: the likeliest topology, which need not have been measured."""

    steps: list[Step] = field(default_factory=list)
    answer: Topology | None = None

    def to_json(self) -> dict[str, Any]:
        """All that is needed to go on; None stands for a measurement that failed."""
        steps = [
            {
                "actions": list(step.actions),
                "topology": step.topology.to_string(),
                "reward": step.reward,
                "measurement": step.measurement.to_json(),
            }
            for step in self.steps
        ]
        return {"answer": self.answer and self.answer.to_string(), "steps": steps}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Search:
        steps = [
            Step(
                tuple(step["actions"]),
                Topology.parse(step["topology"]),
                Measurement.from_json(step["measurement"]),
                step["reward"],
            )
            for step in data["steps"]
        ]
        return cls(steps, Topology.parse(data["answer"]) if data["answer"] else None)


def search(
    space: Space,
    measure: Callable[[Topology], Measurement],
    *,
    steps: int = 500,
    seed: int = 0,
    known: Search | None = None,
    kept: Callable[[Search], None] = lambda found: None,
    progress: Progress = silent,
) -> Search:
    """Search a space for the topology that promises most untrained.

    Args:
        space: What is chosen from.
        measure: Of an untrained network. Dear; the same topology may come again.
        steps: Networks to measure, those of `known` included.
        seed: All draws follow from it.
        known: An interrupted search of the same space and seed, to go on with.
        kept: Called after each step with all that is known, to be written.
        progress: Told how far it is.

    Raises:
        SettingError: `known` is of another space or seed.
    """
    sizes = [len(choices) for choices in space.dimensions]
    policy = Policy(sizes, 1e-3 * torch.randn(sum(sizes), generator=_generator(seed)))
    found = Search()
    for place in range(steps):
        actions = policy.draw(_generator(seed, place))
        topology = space.topology(actions)
        if known is not None and place < len(known.steps):
            step = known.steps[place]
            if (step.actions, step.topology) != (actions, topology):
                raise SettingError(
                    f"the search to go on with is another one: its step {place} drew {step.topology.to_string()}, and "
                    f"this space and seed draw {topology.to_string()}. Give the same space and seed, or start anew."
                )
            measurement = step.measurement
        else:
            progress(Event("search", topology.to_string(), place / steps))
            measurement = measure(topology)
        reward = last_reward([*(each.measurement for each in found.steps), measurement])
        policy.update(actions, reward)
        found.steps.append(Step(actions, topology, measurement, reward))
        found.answer = space.topology(policy.best())
        if known is None or place >= len(known.steps):
            kept(found)
    return found


def _generator(*seeds: int) -> torch.Generator:
    return torch.Generator().manual_seed(int(np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0]))
