"""`digits`: the 1,797 handwritten digits of 8 x 8 pixels that come with scikit-learn. No download."""

from __future__ import annotations

import numpy as np

from anyvit.data.formats.format import Found, Labelled
from anyvit.data.images import ArrayImages


class Digits:
    """The embedded data set. A folder of the same name is opened as `./digits`."""

    name = "digits"
    summary = "digits: 1,797 handwritten digits of 8 x 8 pixels, embedded in scikit-learn"

    def opens(self, source: str) -> bool:
        return source == "digits"

    def read(self, source: str) -> Found:
        from sklearn.datasets import load_digits

        digits = load_digits()
        grey = np.round(digits.images * (255 / 16)).astype(np.uint8)  # the source counts ink from 0 to 16
        pixels = np.repeat(grey[..., None], 3, axis=-1)
        names = [f"digits[{index}]" for index in range(len(pixels))]
        labels = [str(label) for label in digits.target]
        return Found({"train": Labelled(ArrayImages(list(pixels), names), labels)}, mirrored=False)
