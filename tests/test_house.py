"""The rules of the house that no linter knows."""

from __future__ import annotations

import ast
import inspect
import json
import re
from pathlib import Path

import pytest
import timm

import anyvit
from anyvit import errors
from anyvit.models import VARIANTS

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
sources = pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT / "src/anyvit")))


@sources
def test_a_file_has_one_subject(file):
    """150 to 300 lines are usual, 500 the most; it opens with what it is about."""
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 500
    assert ast.get_docstring(ast.parse(text))
    assert not re.search(r"\b(TODO|FIXME|XXX|HACK)\b", text)


@sources
def test_functions_are_short(file):
    """A body is up to 60 lines; its docstring is not counted."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node):
            node.body = node.body[1:] or node.body
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.body[0].lineno < 60, node.name


@sources
def test_booleans_are_keyword_only(file):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and file.parent.name != "cli" and not node.name.startswith("__"):
            positional = node.args.args[-len(node.args.defaults) :] if node.args.defaults else []
            for argument, default in zip(positional, node.args.defaults, strict=True):
                is_switch = isinstance(default, ast.Constant) and isinstance(default.value, bool)
                assert not is_switch or argument.arg in GIVEN, f"{node.name}({argument.arg})"


GIVEN = {"pretrained", "pre_logits", "norm", "stop_early", "intermediates_only", "return_prefix_tokens", "enable"}
GIVEN |= {"coarse", "mode", "strict"}
"""Arguments whose place timm or PyTorch has given."""


def test_tests_mirror_the_sources():
    rooms = {path.name for path in (ROOT / "src/anyvit").iterdir() if (path / "__init__.py").exists()}
    assert rooms <= {path.name for path in (ROOT / "tests").iterdir()}


def test_the_tree_of_errors_is_the_one_drawn():
    drawn = dict(re.findall(r"(\w*(?:Error|Interrupted)) +(\d+)", errors.__doc__))
    known = {name: kind for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, Exception)}
    assert {name: str(kind.exit_code) for name, kind in known.items()} == drawn
    assert all(issubclass(kind, errors.AnyViTError) and inspect.getdoc(kind) for kind in known.values())


def test_a_missing_extra_says_how_to_install_it():
    error = errors.MissingExtraError("grpcio", "spread")
    assert str(error) == "grpcio is not installed. Install it with: pip install 'anyvit[spread]'"
    assert error.exit_code == 7


def test_our_names_never_hide_timms():
    for name in VARIANTS:
        assert timm.is_model(name)
        assert timm.models.model_entrypoint(name).__module__.startswith("anyvit.")
    others = [
        name for name in timm.list_models() if timm.models.model_entrypoint(name).__module__.startswith("anyvit.")
    ]
    assert all(
        name.startswith(
            ("hydravit_", "hsvit_", "repavit_", "repaswin_", "asvit", "elasticvit", "vit_resnas", "shaped_")
        )
        for name in others
    )


def test_the_version_is_the_packages():
    from importlib.metadata import version

    assert anyvit.__version__ == version("anyvit")


def test_what_goes_between_processes_is_json(finished):
    """No NaN, no type of Python alone: any reader of JSON takes `bundle.json`."""
    text = (finished.folder / "bundle.json").read_text(encoding="utf-8")
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in bundle.json"))
