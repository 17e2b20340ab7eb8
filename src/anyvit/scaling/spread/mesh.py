"""Which process of a training holds which groups of an HSViT.

They form a grid. The processes of a row share the groups of one model; the rows share the images of each batch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

from anyvit.errors import SettingError

TRUNKS = ("boards", "hub")
_LAYOUT = re.compile(r"groups(?::(?P<trunk>\w+))?(?:,data=(?P<rows>\d+))?")


@dataclass(frozen=True, slots=True)
class Layout:
    """How a training is spread.

    Attributes:
        trunk: "boards": every process has the trunk and the head. "hub": the first of each row has them for all.
        rows: Models side by side, each on its share of a batch.
    """

    trunk: str = "boards"
    rows: int = 1

    @classmethod
    def parse(cls, text: str) -> Layout:
        """The layout that `text` names: `groups`, `groups:hub`, `groups,data=2`, `groups:hub,data=2`.

        Raises:
            SettingError: It names none.
        """
        match = _LAYOUT.fullmatch(text.replace(" ", ""))
        trunk, rows = (match["trunk"] or TRUNKS[0], int(match["rows"] or 1)) if match else ("", 0)
        if trunk not in TRUNKS or rows < 1:
            raise SettingError(
                f"cannot read spread {text!r}. Write groups, groups:hub for a trunk in one process alone, "
                "or groups,data=2 for two models that share each batch."
            )
        return cls(trunk, rows)

    def columns(self, processes: int) -> int:
        """The processes of a row, of so many in all.

        Raises:
            SettingError: They make no whole rows.
        """
        if processes % self.rows:
            raise SettingError(
                f"{processes} processes cannot form {self.rows} equal rows (data={self.rows}): start a multiple of it."
            )
        return processes // self.rows


def deal(num_groups: int, processes: int) -> list[range]:
    """The groups of each process of a row, in order; the first ones, which have more else to do, take fewer.

    Raises:
        SettingError: There are more processes than groups.
    """
    if processes > num_groups:
        raise SettingError(
            f"{num_groups} groups cannot be spread over {processes} processes: start at most {num_groups} for a model, "
            "and share batches among models with data=2 or more."
        )
    bounds = [place * num_groups // processes for place in range(processes + 1)]
    return [range(first, last) for first, last in pairwise(bounds)]
