"""What a training asks of a model that is spread over several processes, and its state put together and cut again.

A checkpoint holds the whole model, whatever the number of processes: a run may go on in another number, or in one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from anyvit.training.ranks import rank, shared

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

PREFIXES = ("model.", "ema.module.")
"""Where the state of a learner holds that of a model."""


class Parallel(Protocol):
    """A module that answers as the whole model does, in each process that holds a part of it.

    Attributes:
        part: What this process holds: a module whose names are the whole's.
        data_rank: The row of processes that it belongs to.
        data_size: How many rows there are; each sees its share of a batch.
    """

    part: nn.Module
    data_rank: int
    data_size: int

    def clip_gradients(self, limit: float) -> Tensor:
        """Make the gradients those of the whole batch, clip the norm of all together, and give what it was."""

    def average(self, figures: Mapping[str, float]) -> dict[str, float]:
        """Figures of a batch, over all processes."""

    def gather(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The whole's tensors on the first process, of the part's; nothing elsewhere."""

    def cut(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The part's tensors, of the whole's."""


Parallelize = Callable[[nn.Module, "DeviceMesh"], Any]
"""Makes a `Parallel` module of a whole model, on a mesh of rows by the processes of a row."""


class Alone:
    """One process, with the whole model.

    Attributes:
        module: What answers in this process, as the whole model.
        data_rank: Which share of each batch it sees, of `data_size`.
        data_size: How many shares there are.
    """

    data_rank, data_size = 0, 1

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._parameters = list(module.parameters())

    def clip_gradients(self, limit: float) -> Tensor:
        """See `Parallel`."""
        return nn.utils.clip_grad_norm_(self._parameters, limit)

    def average(self, figures: Mapping[str, float]) -> dict[str, float]:
        """See `Parallel`."""
        return dict(figures)

    def averaged(self, average: nn.Module) -> nn.Module:
        """The whole averaged model, of what this process has of it."""
        return average

    def averaged_everywhere(self, average: nn.Module) -> nn.Module:
        """The same, in every process."""
        return average


class Spread(Alone):
    """One process of several, with a part of the model: between its state and that of the whole.

    Args:
        module: A `Parallel` module of the model.
        whole: Such a model, to hold the average of the whole.
        names: Its parameters in the order of their optimizer.
    """

    def __init__(self, module: Any, whole: nn.Module, names: Sequence[str]) -> None:
        super().__init__(module)
        self.names = names
        self.parallel: Parallel = module
        self.data_rank, self.data_size = module.data_rank, module.data_size
        self._whole = whole.to("meta") if rank() else whole

    def clip_gradients(self, limit: float) -> Tensor:
        return self.parallel.clip_gradients(limit)

    def average(self, figures: Mapping[str, float]) -> dict[str, float]:
        return self.parallel.average(figures)

    def gather_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state of a learner that has the whole model; on the first process alone."""
        whole: dict[str, Tensor] = {}
        for prefix in PREFIXES:
            gathered = self.parallel.gather(_under(prefix, state))
            whole |= {prefix + name: tensor for name, tensor in gathered.items()}
        return whole

    def cut_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state of this learner, of that of one that has the whole model."""
        own: dict[str, Tensor] = {}
        for prefix in PREFIXES:
            own |= {prefix + name: tensor for name, tensor in self.parallel.cut(_under(prefix, state)).items()}
        return own

    def gather_optimizer(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The state of an optimizer of the whole model; on the first process alone, which has all names."""
        names, state = names_in_order(optimizer, self.parallel.part), optimizer.state_dict()
        gathered = {slot: self.parallel.gather(tensors) for slot, tensors in _slots(names, state).items()}
        return {**state, "state": _numbered(names, gathered)}

    def cut_optimizer(self, optimizer: torch.optim.Optimizer, whole: Mapping[str, Any]) -> dict[str, Any]:
        """The state for `optimizer`, of that of an optimizer of the whole model."""
        cut = {slot: self.parallel.cut(tensors) for slot, tensors in _slots(self.names, whole).items()}
        return {**optimizer.state_dict(), "state": _numbered(names_in_order(optimizer, self.parallel.part), cut)}

    def averaged(self, average: nn.Module) -> nn.Module:
        """The whole averaged model, in the first process alone."""
        if gathered := self.parallel.gather(average.state_dict()):
            self._whole.load_state_dict(gathered)
            self._whole.to(next(average.parameters()).device)
        return self._whole

    def averaged_everywhere(self, average: nn.Module) -> nn.Module:
        averaged = self.averaged(average)
        state = shared(lambda: averaged.cpu().state_dict())
        averaged.load_state_dict(state, assign=True)
        return averaged


def names_in_order(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[str]:
    """The names of the parameters of `model` as `optimizer` numbers them."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def _under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _slots(names: Sequence[str], state: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """What an optimizer keeps, by what it is and by the name of its parameter."""
    slots: dict[str, dict[str, Tensor]] = {}
    for number, kept in state["state"].items():
        for slot, tensor in kept.items():
            slots.setdefault(slot, {})[names[number]] = tensor
    return slots


def _numbered(names: Sequence[str], slots: Mapping[str, Mapping[str, Tensor]]) -> dict[int, dict[str, Tensor]]:
    return {
        number: {slot: tensors[name] for slot, tensors in slots.items() if name in tensors}
        for number, name in enumerate(names)
        if any(name in tensors for tensors in slots.values())
    }
