"""A cascade in any format: a folder with two models, each whole by itself, the rule between them, and a program."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor, nn

from anyvit.deploy.formats.format import Format, Texts
from anyvit.deploy.standalone import RULE
from anyvit.scaling.cascade import CascadeRunner


class CascadeModel(nn.Module):
    """Two models of probabilities that answer as a cascade."""

    def __init__(self, small: nn.Module, large: nn.Module, threshold: float) -> None:
        super().__init__()
        self.small, self.large, self.threshold = small, large, threshold

    def forward(self, images: Tensor) -> Tensor:
        return CascadeRunner(self.small, self.large, self.threshold)(images)


class TwoFiles:
    """Writes the models of a cascade one by one, because a branch on the data is lost in export."""

    model = RULE
    how_to_read = "cat {target}/predict.py"

    def __init__(self, part: Format) -> None:
        self.part, self.name, self.target = part, part.name, f"{part.name}-cascade"

    def write(self, model: nn.Module, example: Tensor, texts: Texts, target: Path) -> None:
        assert isinstance(model, CascadeModel)
        suffix = Path(self.part.target).suffix
        target.mkdir()
        for name, part in (("small", model.small), ("large", model.large)):
            self.part.write(part, example, texts, target / f"{name}{suffix}")
        rule = {
            "models": [str(Path(f"{name}{suffix}", self.part.model).as_posix()) for name in ("small", "large")],
            "threshold": model.threshold,
            "labels": json.loads(texts.labels),
            "preprocessing": json.loads(texts.preprocessing),
        }
        readme = (
            f"{texts.readme}Two models: {rule['models'][0]} answers first; where its largest probability is below "
            f"{model.threshold}, the answer of {rule['models'][1]} counts instead. {RULE} holds this rule.\n"
        )
        (target / RULE).write_text(json.dumps(rule, indent=2), encoding="utf-8")
        (target / "predict.py").write_text(texts.script, encoding="utf-8")
        (target / "README.md").write_text(readme, encoding="utf-8")
