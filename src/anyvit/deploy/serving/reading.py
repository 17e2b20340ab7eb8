"""From encoded images to pixels, off the event loop unless that would take longer than reading them."""

from __future__ import annotations

import asyncio
import io
import time
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from anyvit.costs.device import available_cores
from anyvit.data.decode import KINDS, decode_opened, open_encoded
from anyvit.data.preprocessing import Preprocessing
from anyvit.deploy.serving import problems

SMALL_BYTES, SMALL_PIXELS = 8192, 128 * 128
"""Of an image that is read faster than it is handed to another thread and back."""


class Reader:
    """Reads images on threads of its own.

    Args:
        preprocessing: What is made of them.
        most_pixels: That an image may have; None: as many as Pillow takes.
    """

    def __init__(self, preprocessing: Preprocessing, most_pixels: int | None) -> None:
        self.preprocessing, self.most_pixels = preprocessing, most_pixels
        self._pool = ThreadPoolExecutor(available_cores(), "anyvit-read")

    async def pixels(self, image: bytes, until: float) -> bytes:
        """What the engine takes of an encoded image, row by row, S x S x 3.

        Raises:
            DataError: It cannot be read, or has too many pixels.
            Problem: Its time, that of `time.monotonic`, is over before it is read.
        """
        loop = asyncio.get_running_loop()
        if len(image) > SMALL_BYTES:  # even a header can take long
            return await loop.run_in_executor(self._pool, self._read, image, until)
        opened = open_encoded(image, most_pixels=self.most_pixels)
        if opened.width * opened.height > SMALL_PIXELS:
            return await loop.run_in_executor(self._pool, self._finish, opened, until)
        return self._finish(opened, until)

    def warm(self) -> None:
        """Read an image of each kind: decoders load when they are first used."""
        for kind in KINDS:
            content = io.BytesIO()
            Image.new("RGB", (9, 8)).save(content, kind)
            self._read(content.getvalue(), float("inf"))

    def close(self) -> None:
        """Begin nothing any more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _read(self, image: bytes, until: float) -> bytes:
        return self._finish(open_encoded(image, most_pixels=self.most_pixels), until)

    def _finish(self, opened: Image.Image, until: float) -> bytes:
        if time.monotonic() > until:
            raise problems.deadline_exceeded("the image waited too long to be read")
        return self.preprocessing.crop(decode_opened(opened)).tobytes()
