"""Deal the classes of a data set to groups, one a sub-model, of sizes that differ by one at most."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from anyvit.errors import SettingError

Groups = tuple[tuple[int, ...], ...]
"""By group, its classes in ascending order."""


def deal_classes(num_classes: int, num_groups: int, *, seed: int | None = None) -> Groups:
    """Neighbouring classes together, the first groups one class larger where it does not come out even.

    Args:
        num_classes: C.
        num_groups: From 1 to C.
        seed: With one, the classes are shuffled first.

    Raises:
        SettingError: Fewer than one group, or more groups than classes.
    """
    if not 1 <= num_groups <= num_classes:
        raise SettingError(
            f"{num_classes} classes cannot be dealt to {num_groups} groups: each needs a class of its own. "
            f"Choose 1 to {num_classes} groups."
        )
    order = list(range(num_classes))
    if seed is not None:
        random.Random(seed).shuffle(order)
    least, larger = divmod(num_classes, num_groups)
    ends = [group * least + min(group, larger) for group in range(num_groups + 1)]
    return tuple(tuple(sorted(order[ends[group] : ends[group + 1]])) for group in range(num_groups))


def named_groups(groups: Sequence[Sequence[str]], classes: Sequence[str]) -> Groups:
    """Groups given by the names of their classes.

    Raises:
        SettingError: An empty group, an unknown class, or a class that is in no group or in two.
    """
    names = [name for group in groups for name in group]
    for number, group in enumerate(groups):
        if not group:
            raise SettingError(f"group {number} has no classes: leave it out, or give it some.")
    unknown = sorted(set(names) - set(classes))
    twice = [name for name, count in Counter(names).items() if count > 1]
    missing = [name for name in classes if name not in names]
    for wrong, words in ((unknown, "unknown"), (twice, "in more than one group"), (missing, "in no group")):
        if wrong:
            raise SettingError(f"classes {words}: {', '.join(wrong)}. Each class belongs to exactly one group.")
    place = {name: index for index, name in enumerate(classes)}
    return tuple(tuple(sorted(place[name] for name in group)) for group in groups)
