"""How a model gets smaller. A new lever is a new file and one line in `LEVERS`."""

from __future__ import annotations

from anyvit.errors import SettingError, unknown
from anyvit.protocols import Lever
from anyvit.scaling.shrink.base import BaseLever
from anyvit.scaling.shrink.groups import Groups
from anyvit.scaling.shrink.heads import StackedHeads

__all__ = ["LEVERS", "BaseLever", "lever_named"]

LEVERS: tuple[Lever, ...] = (StackedHeads(), Groups())


def lever_named(name: str) -> Lever:
    """The lever of that name.

    Raises:
        SettingError: There is none.
    """
    for lever in LEVERS:
        if lever.name == name:
            return lever
    raise SettingError(unknown("lever", name, (lever.name for lever in LEVERS)))
