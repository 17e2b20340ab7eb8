"""How a model gets smaller. A new lever is a new file and one line in `LEVERS`."""

from __future__ import annotations

from anyvit.errors import SettingError, unknown
from anyvit.protocols import Lever
from anyvit.scaling.shrink.base import BaseLever
from anyvit.scaling.shrink.groups import Groups
from anyvit.scaling.shrink.heads import StackedHeads
from anyvit.scaling.shrink.prune import Prune
from anyvit.scaling.shrink.reparameterize import Reparameterize
from anyvit.scaling.shrink.scales import Scales
from anyvit.scaling.shrink.tokens import TokenReduction

__all__ = ["LEVERS", "BaseLever", "lever_named"]

LEVERS: tuple[Lever, ...] = (StackedHeads(), Groups(), Prune(), Reparameterize(), TokenReduction(), Scales())


def lever_named(name: str) -> Lever:
    """The lever of that name.

    Raises:
        SettingError: There is none.
    """
    for lever in LEVERS:
        if lever.name == name:
            return lever
    raise SettingError(unknown("lever", name, (lever.name for lever in LEVERS)))
