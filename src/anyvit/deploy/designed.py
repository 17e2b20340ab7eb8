"""`design.json`: what a design has found, read back to be shown, compared, or trained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyvit.deploy.document import REMEDY, refuse_newer
from anyvit.errors import BundleError
from anyvit.scaling.design.finding import Designed
from anyvit.scaling.form import Form

DESIGN = "design.json"
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Design:
    """The answer of `anyvit design`, in its folder."""

    folder: Path
    document: Mapping[str, Any]

    @classmethod
    def load(cls, folder: str | Path) -> Design:
        """Read a folder that `anyvit design` has written.

        Raises:
            BundleError: It is none, it is damaged, or a newer AnyViT wrote it.
        """
        path = Path(folder) / DESIGN
        if not path.is_file():
            raise BundleError(f"{folder} is no design: it has no {DESIGN}. Name the folder that `anyvit design` wrote.")
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            refuse_newer(path, document["schema"], SCHEMA)
            Form.from_json(document["model"])
            document["ranking"], document["promise"]["bounds"]
        except (ValueError, KeyError, TypeError) as error:
            raise BundleError(f"{path} is damaged ({error!r}). {REMEDY}") from error
        return cls(Path(folder), document)

    @property
    def form(self) -> Form:
        """What builds the model that was chosen."""
        return Form.from_json(self.document["model"])

    @property
    def ranking(self) -> list[Designed]:
        """The best first; those outside the budget at the end."""
        return [Designed.from_json(data) for data in self.document["ranking"]]

    @property
    def relatives(self) -> list[Designed]:
        """Well-known models under the same budget."""
        return [Designed.from_json(data) for data in self.document["relatives"]]

    @property
    def chosen(self) -> Designed:
        return next(designed for designed in self.ranking if designed.name == self.document["chosen"])

    def to_json(self) -> dict[str, Any]:
        return dict(self.document)
