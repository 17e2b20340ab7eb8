"""Groups of an HSViT trained in several processes: each holds a part, and all compute what one process would.

With the trunk on the "boards", every process of a row has trunk and head and sees the same images; class tokens go to
all. With the trunk on the "hub", the first process of a row has them alone: it sends tokens and gets class tokens.
Parameters that a row shares have a part of their gradient in each process, to be summed; rows, which see different
images, average theirs. `part` remains an ordinary HSViT: nothing in `models/` knows of processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh

from anyvit.errors import ModelError
from anyvit.models.hsvit import HSViT, rows_per_group
from anyvit.scaling.spread.batch_norm import share_batch_norms
from anyvit.scaling.spread.collectives import collect_groups, deal_tokens, gather_groups
from anyvit.scaling.spread.mesh import deal

_TRUNK, _HEAD = ("trunk", "embed"), ("norm", "head")


def why_not_spread(model: nn.Module) -> str | None:
    """The reason why `model` cannot be spread over processes, or None."""
    if not isinstance(model, HSViT):
        return f"only an HSViT has groups to spread over processes, a {type(model).__name__} has none"
    return None if model.num_groups else "without attention (num_groups 0) there are no groups to spread over processes"


def parallelize(model: nn.Module, mesh: DeviceMesh, *, trunk: str = "boards") -> SpreadHSViT:
    """This process's part of `model`, which answers and learns as the whole does.

    Args:
        model: The whole HSViT, alike in every process. It is left as it is.
        mesh: Rows (each with its share of a batch) by the processes of a row.
        trunk: "boards" or "hub", as `Layout` has it.

    Raises:
        ModelError: It is no HSViT.
        SettingError: There are more processes in a row than groups.
    """
    if reason := why_not_spread(model):
        raise ModelError(reason)
    assert isinstance(model, HSViT)
    return SpreadHSViT(model, mesh.get_group(0), mesh.get_group(1), trunk)


class SpreadHSViT(nn.Module):
    """A part of an HSViT among its like. See `parallelize`.

    Attributes:
        part: What this process holds: an HSViT of its groups.
        data_rank: Which row it belongs to.
        data_size: How many rows there are.
    """

    def __init__(self, whole: HSViT, column: ProcessGroup, row: ProcessGroup, trunk: str) -> None:
        super().__init__()
        self.row, self.column, self.trunk = row, column, trunk
        self.data_rank, self.data_size = column.rank(), column.size()
        self.place = row.rank()
        self.groups = whole.groups
        self.deal = deal(len(whole.groups), row.size())
        self.sizes = [len(groups) for groups in self.deal]
        self.part = whole.part([whole.groups[place] for place in self.deal[self.place]])
        self._rows_per_group = rows_per_group(whole)
        if trunk == "hub":
            self._rows_per_group = {
                name: rows for name, rows in self._rows_per_group.items() if name.startswith("attention.")
            }
            self._keep_own(whole)
        if self.data_size > 1:
            share_batch_norms(self.part, column)

    def _keep_own(self, whole: HSViT) -> None:
        """The hub has the whole trunk, and the others none at all."""
        if self.place == 0:
            self.part.trunk = whole.part(whole.groups).trunk
            return
        for name in (*_TRUNK, *_HEAD):
            setattr(self.part, name, nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the whole model; with the trunk on the hub, zeros in the other processes."""
        return self._with_hub(x) if self.trunk == "hub" else self._among_boards(x)

    def _among_boards(self, x: Tensor) -> Tensor:
        part = self.part
        votes = part.draw_votes(len(x), self.groups)  # alike in the whole row
        self._draw_apart()
        class_tokens = gather_groups(part.forward_features(x), self.sizes, self.row)
        return part.forward_head(class_tokens, weights=votes)

    def _with_hub(self, x: Tensor) -> Tensor:
        part, is_hub = self.part, self.place == 0
        votes = part.draw_votes(len(x), self.groups) if is_hub else None
        self._draw_apart()
        shape = len(x), part.tokens_per_group, part.embed_dim
        tokens = part.tokens(x) if is_hub else None
        dealt = deal_tokens(tokens, shape, self.sizes, self.row, part.attention.get_parameter("cls_token").device)
        class_tokens = collect_groups(part.attend(dealt), self.sizes, self.row)
        if is_hub:
            return part.forward_head(class_tokens, weights=votes)
        return class_tokens.sum((1, 2))[:, None].expand(-1, part.num_classes)

    def _draw_apart(self) -> None:
        """The processes of a row have begun with one seed; their groups are not to drop the same tokens."""
        if self.part.training and self.place:
            torch.manual_seed(torch.initial_seed() + self.place)

    @torch.no_grad()
    def clip_gradients(self, limit: float) -> Tensor:
        """Make the gradients those of the whole batch and scale them to a norm of at most `limit`, all in all.

        Returns:
            The norm of the whole gradient before, each group counted once.
        """
        gradients = {name: p.grad for name, p in self.part.named_parameters() if p.grad is not None}
        shared = [gradient for name, gradient in gradients.items() if name not in self._rows_per_group]
        own = [gradient for name, gradient in gradients.items() if name in self._rows_per_group]
        if self.trunk == "boards":
            head = [gradients[name] for name in gradients if name.split(".")[0] in _HEAD]
            torch._foreach_div_(head, self.row.size())  # which every process has computed whole
            _add_up(shared, self.row)
        if self.data_size > 1:
            _add_up([*shared, *own], self.column)
            torch._foreach_div_([*shared, *own], self.data_size)
        counted = own if self.place else [*own, *shared]
        norm = nn.utils.get_total_norm(counted).square()
        dist.all_reduce(norm, group=self.row)
        norm.sqrt_()
        nn.utils.clip_grads_with_norm_(self.part.parameters(), limit, norm)
        return norm

    def average(self, figures: Mapping[str, float]) -> dict[str, float]:
        """Figures of the whole batch: their mean over the rows, as the first process of each has them."""
        values = torch.tensor(list(figures.values()), dtype=torch.float64)
        total = values / self.data_size if self.place == 0 else torch.zeros_like(values)
        dist.all_reduce(total)
        return dict(zip(figures, total.tolist(), strict=True))

    def gather(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of the whole, on the CPU of the very first process; nothing elsewhere.

        Args:
            state: Tensors of the part by the names of its parameters and buffers.
        """
        if self.data_rank:
            return {}
        own = {name: tensor.cpu() for name, tensor in state.items() if self._is_dealt(name, tensor)}
        pieces = self._pieces(own)
        if self.place:
            return {}
        return {
            name: torch.cat([piece[name] for piece in pieces]) if name in own else tensor.cpu()
            for name, tensor in state.items()
        }

    def cut(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The part's tensors of those of the whole: what `gather` has put together."""
        groups = self.deal[self.place]
        cut = {}
        for name in self.part.state_dict():
            if (tensor := state.get(name)) is not None:
                rows = self._rows_per_group.get(name, 0)
                cut[name] = tensor[groups.start * rows : groups.stop * rows] if self._is_dealt(name, tensor) else tensor
        return cut

    def _is_dealt(self, name: str, tensor: Tensor) -> bool:
        return name in self._rows_per_group and tensor.ndim > 0  # an optimizer counts its steps for each parameter

    def _pieces(self, own: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """What each process of the row has in `own`, on its first process."""
        if not own:
            return []
        ranks = dist.get_process_group_ranks(self.row)
        flat = torch.cat([tensor.flatten() for tensor in own.values()])
        if self.place:
            dist.send(flat, ranks[0])
            return []
        pieces = [dict(own)]
        for rank, groups in list(zip(ranks, self.sizes, strict=True))[1:]:
            theirs = torch.empty(len(flat) // self.sizes[0] * groups, dtype=flat.dtype)
            dist.recv(theirs, rank)
            shapes = [(len(each) // self.sizes[0] * groups, *each.shape[1:]) for each in own.values()]
            split = theirs.split([torch.Size(shape).numel() for shape in shapes])
            pieces.append({name: t.view(shape) for name, t, shape in zip(own, split, shapes, strict=True)})
        return pieces


def _add_up(tensors: Sequence[Tensor], group: ProcessGroup) -> None:
    """Make each tensor its sum over the processes of `group`, in one message."""
    if not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat, group=group)
    for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))
