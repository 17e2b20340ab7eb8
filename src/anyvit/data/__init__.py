"""What a model sees: labelled images of any format, opened, checked and split; batches of them.

Public: `open_data`, `open_test`, `open_images`; the registry `FORMATS`; and the types below. Preprocessing,
augmentation and loading bring PyTorch and are imported from their files.
"""

from __future__ import annotations

from anyvit.data.dataset import DataSet, Split
from anyvit.data.formats import FORMATS
from anyvit.data.formats.format import Format
from anyvit.data.images import Images
from anyvit.data.opening import open_data, open_test
from anyvit.data.prediction import open_images

__all__ = ["FORMATS", "DataSet", "Format", "Images", "Split", "open_data", "open_images", "open_test"]
