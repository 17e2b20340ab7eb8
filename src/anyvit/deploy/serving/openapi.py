"""What `/openapi.json` says of the requests and answers that FastAPI cannot read off the code."""

from __future__ import annotations

from typing import Any

from anyvit.deploy.serving.intake import DEADLINE, LONGEST_BUDGET

_PROBLEM = {
    "type": "object",
    "required": ["type", "message", "hint"],
    "properties": {
        "type": {"type": "string", "description": "A word that programs compare."},
        "message": {"type": "string", "description": "What is wrong, with the value."},
        "hint": {"type": "string", "description": "What to do about it."},
    },
}


_RETRY_AFTER = {
    "Retry-After": {"description": "Seconds after which to ask again.", "schema": {"type": "integer", "minimum": 1}}
}


def _problem(description: str, headers: dict[str, Any] | None = None) -> dict[str, Any]:
    content = {"application/json": {"schema": _PROBLEM}}
    return {"description": description, "content": content, **({"headers": headers} if headers else {})}


ERRORS: dict[int | str, dict[str, Any]] = {
    400: _problem("Malformed: `bad_request`"),
    408: _problem("The request came too slowly: `slow_client`"),
    413: _problem("Too many bytes, pixels or images: `too_large`"),
    415: _problem("A content type that is not read: `unsupported_media_type`"),
    422: _problem("No image can be read: `unreadable_image`; no candidate is inside the budget: `budget_not_met`"),
    429: _problem("More comes than can be answered in time: `overloaded`", _RETRY_AFTER),
    500: _problem("The engine failed: `engine_failed`; anything unforeseen: `internal`"),
    503: _problem("Not ready: `not_ready`", _RETRY_AFTER),
    504: _problem("The answer would come too late, and was not computed: `deadline_exceeded`"),
}

_TEXT, _NUMBER = {"type": "string"}, {"type": "number"}


def _or_null(kind: str) -> dict[str, Any]:
    return {"type": [kind, "null"]}


_PREDICTION = {
    "type": "object",
    "properties": {
        "name": _TEXT,
        "label": _or_null("string"),
        "probability": _or_null("number"),
        "top": {"type": "array", "items": {"type": "array", "prefixItems": [_TEXT, _NUMBER]}},
        "error": _or_null("string"),
        "candidate": _or_null("string"),
        "accuracy": _or_null("number"),
        "waited_ms": _or_null("number"),
        "computed_ms": _or_null("number"),
    },
}
_ANSWER = {
    "type": "object",
    "properties": {"predictions": {"type": "array", "items": _PREDICTION}, "total_ms": _NUMBER},
}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_WISHES = {
    "top_k": {"type": "integer", "minimum": 1, "default": 1},
    "budget": {"type": "string", "maxLength": LONGEST_BUDGET},
}
_BASE64 = {"type": "string", "format": "byte"}


def _parameter(where: str, name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": where, "required": False, "description": description, "schema": schema}


PREDICT: dict[str, Any] = {
    "parameters": [
        _parameter("query", "top_k", "How many classes to name, from 1.", _WISHES["top_k"]),
        _parameter(
            "query", "budget", "Answer with a candidate inside it, `latency<=5ms, accuracy>=0.9`.", _WISHES["budget"]
        ),
        _parameter(
            "header", DEADLINE, "How long the answer may take, `30ms`. By default the server's objective.", _TEXT
        ),
    ],
    "requestBody": {
        "required": True,
        "content": {
            "application/octet-stream": _BINARY,
            "image/*": _BINARY,
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"image": {"type": "array", "items": _BINARY["schema"]}, **_WISHES},
                    "required": ["image"],
                }
            },
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {"image": _BASE64, "images": {"type": "array", "items": _BASE64}, **_WISHES},
                }
            },
        },
    },
    "responses": {
        "200": {"description": "An answer for each image", "content": {"application/json": {"schema": _ANSWER}}}
    },
}
