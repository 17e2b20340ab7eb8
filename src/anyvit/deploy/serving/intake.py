"""From what a client sends to encoded images and wishes: within bounds, and with an error for everything else."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from anyvit.costs.units import TIME, read_amount
from anyvit.deploy.serving.problems import Problem, bad_request, too_large
from anyvit.errors import SettingError

DEADLINE = "Anyvit-Deadline"
FIELDS = 10
"""Of a form, beside its images."""

LONGEST_BUDGET, LONGEST_DEADLINE = 500, 50
"""Characters. Reading a budget takes a time that grows with the square of them."""

LEAST_HELD = 256_000_000
"""Bytes that all requests together may hold, whatever one may: their pixels count too."""

KNOWN = "Send image/* or application/octet-stream (one image), multipart/form-data with parts named image, or JSON."


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may have.

    Attributes:
        body: Bytes.
        pixels: Of an image.
        images: How many.
        seconds: For sending it.
        held: Bytes of all requests together that have not been answered yet, and of what the engine takes of them.
    """

    body: int = 32_000_000
    pixels: int = 50_000_000
    images: int = 64
    seconds: float = 10.0
    held: int = LEAST_HELD


@dataclass(frozen=True, slots=True)
class Asked:
    """What a client asks.

    Attributes:
        names: What it knows the images by.
        images: Encoded.
        top_k: How many classes to name.
        budget: Answer with a candidate inside it.
        deadline: Seconds that the answer may take.
    """

    names: tuple[str, ...]
    images: tuple[bytes, ...]
    top_k: int = 1
    budget: str | None = None
    deadline: float | None = None


class Intake:
    """Reads requests.

    Args:
        limits: What they may have.
        image_bytes: Of an image as the engine takes it: however few bytes it comes in, so many wait with it.
    """

    def __init__(self, limits: Limits, image_bytes: int = 0) -> None:
        self.limits, self.image_bytes = limits, image_bytes
        self.held = 0

    @asynccontextmanager
    async def reading(self, request: Request) -> AsyncIterator[Asked]:
        """What is asked; its bytes count as held until the end of the `with`.

        Raises:
            Problem: It is malformed, too large, too slow, of an unknown kind, or there is no memory left for it.
            ClientDisconnect: The client has left.
        """
        reader = _Reader(self, request)
        try:
            asked = await self._read(reader, request)
            reader.hold(len(asked.images) * self.image_bytes)
            yield asked
        finally:
            self.held -= reader.held

    def take(self, size: int) -> None:
        """So many more bytes are held.

        Raises:
            Problem: That is more than there is memory for.
        """
        self.held += size
        if self.held > self.limits.held:
            words = "other requests hold all the memory there is for images"
            raise Problem(429, "overloaded", words, "Ask again in a second.", retry_after=1.0)

    def too_long(self) -> Problem:
        """For a body beyond the bounds."""
        return too_large(
            f"the request is larger than {self.limits.body / 1e6:g} MB",
            "Send fewer or smaller images; the server's --max-body says how much it takes.",
        )

    async def _read(self, reader: _Reader, request: Request) -> Asked:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        deadline = _deadline(request.headers.get(DEADLINE))
        try:
            async with asyncio.timeout(self.limits.seconds):
                names, images, fields = await self._parts(reader, kind)
        except TimeoutError:
            words = f"the request did not arrive within {self.limits.seconds:g} s"
            raise Problem(408, "slow_client", words, "Send smaller images, or over a faster connection.") from None
        wishes = {**fields, **request.query_params}
        if not images:
            raise bad_request("the request holds no image", KNOWN)
        if len(images) > self.limits.images:
            raise self._too_many()
        for name, image in zip(names, images, strict=True):
            if not image:
                raise bad_request(f"{name} is empty", "Send the bytes of an image file.")
        return Asked(tuple(names), tuple(images), _top_k(wishes.get("top_k")), _budget(wishes.get("budget")), deadline)

    async def _parts(self, reader: _Reader, kind: str) -> tuple[list[str], list[bytes], dict[str, Any]]:
        if kind.startswith("image/") or kind == "application/octet-stream":
            return ["image 0"], [await reader.body()], {}
        if kind == "application/json":
            return self._from_json(await reader.body())
        if kind == "multipart/form-data":
            return await self._from_form(reader)
        said = f"the content type {kind!r} is not read" if kind else "the request names no content type"
        raise Problem(415, "unsupported_media_type", said, KNOWN)

    def _from_json(self, body: bytes) -> tuple[list[str], list[bytes], dict[str, Any]]:
        if body.count(b",") > 2 * self.limits.images + LONGEST_BUDGET:  # objects by the million take long to read
            raise self._too_many()
        document = _document(body)
        unknown = set(document) - {"image", "images", "top_k", "budget"}
        if unknown:
            raise bad_request(f"unknown key {min(unknown)!r}", "Known: image, images, top_k, budget.")
        encoded = document.get("images", [document["image"]] if "image" in document else [])
        if "image" in document and "images" in document:
            raise bad_request("both image and images are given", "Keep one of the two.")
        if not isinstance(encoded, list):
            raise bad_request("images is no list", 'Send {"images": ["BASE64", "BASE64"]}.')
        if len(encoded) > self.limits.images:
            raise self._too_many()
        names = [f"image {place}" for place in range(len(encoded))]
        images = [_decoded(name, text) for name, text in zip(names, encoded, strict=True)]
        return names, images, {key: document[key] for key in ("top_k", "budget") if document.get(key) is not None}

    async def _from_form(self, reader: _Reader) -> tuple[list[str], list[bytes], dict[str, Any]]:
        limits = self.limits
        parser = _FormParser(reader.headers, reader.chunks(), max_files=limits.images, max_fields=FIELDS)
        try:
            form = await parser.parse()
        except MultiPartException as error:
            if "Too many files" in error.message:
                raise self._too_many() from error
            raise bad_request(f"the form cannot be read ({error.message})", KNOWN) from error
        except (ValueError, KeyError) as error:  # a header of it is malformed
            raise bad_request(f"the form cannot be read ({error})", KNOWN) from error
        async with _closing(form):
            if not parser.ended:
                raise bad_request("the form is cut off: its last boundary is missing", KNOWN)
            names, images, fields = list[str](), list[bytes](), dict[str, Any]()
            for key, value in form.multi_items():
                if isinstance(value, UploadFile) and key in ("image", "images"):
                    names.append(value.filename or f"image {len(names)}")
                    images.append(await value.read())
                elif isinstance(value, str) and key in ("top_k", "budget"):
                    fields[key] = value
                elif key in ("image", "images"):
                    raise bad_request(f"the part {key} is no file", "Give it a file name, like curl -F image=@cat.jpg.")
                else:
                    raise bad_request(
                        f"unknown part {key!r}", "Parts are files named image, and fields top_k and budget."
                    )
            return names, images, fields

    def _too_many(self) -> Problem:
        return too_large(
            f"the request holds more than {self.limits.images} images",
            "Send several requests; the server's --max-images says how many it takes in one.",
        )


class _Reader:
    """The body of a request, as it comes, as long as it stays within the bounds."""

    def __init__(self, intake: Intake, request: Request) -> None:
        self.headers = request.headers
        self.held = 0
        self._intake, self._request = intake, request

    async def body(self) -> bytes:
        return b"".join([chunk async for chunk in self.chunks()])

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        most, told = self._intake.limits.body, self.headers.get("content-length", "")
        if told.isdecimal() and int(told) > most:
            raise self._intake.too_long()
        async for chunk in self._request.stream():
            if self.held + len(chunk) > most:
                raise self._intake.too_long()
            self.hold(len(chunk))
            yield chunk

    def hold(self, size: int) -> None:
        self.held += size
        self._intake.take(size)


class _FormParser(MultiPartParser):
    """Notes whether the form has come to its end. Files stay in memory, which is accounted for."""

    spool_max_size = 0
    ended = False

    def on_end(self) -> None:
        self.ended = True


class _closing:  # noqa: N801  (a context, read as a verb)
    """Removes the temporary files of a form at the end."""

    def __init__(self, form: Any) -> None:
        self._form = form

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *_: object) -> None:
        await self._form.close()


def _document(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        words = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise bad_request(f"the JSON cannot be read ({words})", 'Send {"image": "BASE64"}.') from error
    if not isinstance(document, dict):
        raise bad_request("the JSON is no object", 'Send {"image": "BASE64"}.')
    return document


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _decoded(name: str, text: object) -> bytes:
    if not isinstance(text, str):
        raise bad_request(f"{name} is no text", "Send the bytes of an image file in base64.")
    encoded = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise bad_request(f"{name} is no base64 ({error})", "Send the bytes of an image file in base64.") from error


def _top_k(value: object) -> int:
    if value is None:
        return 1
    whole = isinstance(value, int) and not isinstance(value, bool)
    digits = isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10
    if not (whole or digits) or int(value) < 1:  # type: ignore[call-overload]
        raise bad_request(f"top_k is {value!r}", "It is a whole number from 1 on.")
    return int(value)  # type: ignore[call-overload]


def _budget(value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        raise bad_request(f"budget is {value!r}", "It is a text, such as 'latency<=5ms'.")
    if value and len(value) > LONGEST_BUDGET:
        raise bad_request(f"budget has {len(value)} characters", f"It has {LONGEST_BUDGET} at most.")
    return value or None


def _deadline(text: str | None) -> float | None:
    if text is None:
        return None
    hint = f"Send it like {DEADLINE}: 30ms."
    if len(text) > LONGEST_DEADLINE:
        raise bad_request(f"{DEADLINE} has {len(text)} characters", hint)
    try:
        seconds = read_amount(text.strip(), TIME, "ms, s, us", name=DEADLINE)
    except SettingError as error:
        raise bad_request(str(error), hint) from error
    if not 0 < seconds < float("inf"):
        raise bad_request(f"{DEADLINE}: {text} is no time above 0", hint)
    return seconds
