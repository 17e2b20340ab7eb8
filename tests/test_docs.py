"""Every fenced snippet of the documentation runs, page by page, in a folder of its own.

`python` blocks share one namespace a page; `bash` blocks hold commands of AnyViT, one a line; a `text` block is what
the block above it has printed. `console` blocks are for terminals of several processes or machines and do not run.
"""

from __future__ import annotations

import re
import shlex
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
from typer.testing import CliRunner

from anyvit import backends
from anyvit.cli import app
from anyvit.costs.budget import COSTS
from anyvit.scaling import shrink

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [ROOT / "README.md", *DOCS, ROOT / "benchmarks" / "README.md", ROOT / "CONTRIBUTING.md"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?://)([^)#]+)")


def by_page(pages):
    return pytest.mark.parametrize("page", pages, ids=lambda page: str(page.relative_to(ROOT)))


def run_python(code, page, line, names):
    with redirect_stdout(StringIO()) as printed:
        exec(compile("\n" * line + code, str(page), "exec"), names)
    return printed.getvalue()


def run_commands(code, page, line):
    printed = ""
    for command in code.replace("\\\n", " ").splitlines():
        program, *arguments = shlex.split(command, comments=True)
        assert program == "anyvit", f"{page}:{line} is no command of AnyViT: {command}"
        result = CliRunner().invoke(app, arguments)
        if result.exception:
            raise AssertionError(f"{page}:{line}: {command}: {result.output}") from result.exception
        printed += result.stdout
    return printed


@pytest.fixture
def folder(tmp_path, monkeypatch, hasty):
    """A folder to run a page in; levers and backends that a page adds are forgotten after it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(backends, "BACKENDS", backends.BACKENDS)
    monkeypatch.setattr(shrink, "LEVERS", shrink.LEVERS)
    return tmp_path


@pytest.mark.slow
@by_page(DOCS)
@pytest.mark.filterwarnings("ignore")  # of what pages show, not of the code under test
def test_snippets_run(page, folder):
    text, names, printed = page.read_text(encoding="utf-8"), {"__name__": "__main__"}, ""
    for block in FENCE.finditer(text):
        language, code = block.groups()
        line = text.count("\n", 0, block.start(2))
        if language == "python":
            printed = run_python(code, page, line, names)
        elif language == "console":
            continue
        elif language == "bash":
            printed = run_commands(code, page, line + 1)
        else:
            assert language == "text", f"{page}:{line}: a snippet in {language or 'no language'} cannot run"
            assert code == printed, f"{page}:{line + 1}: the block above prints otherwise"


@by_page(PAGES)
def test_links_lead_somewhere(page):
    targets = LINK.findall(page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_index_names_every_page():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = [page.relative_to(ROOT / "docs").as_posix() for page in DOCS]
    assert [page for page in pages if page != "README.md" and f"({page})" not in index] == []


def test_every_cost_has_its_line():
    text = (ROOT / "docs" / "budget.md").read_text(encoding="utf-8")
    assert [cost for cost in COSTS if f"\n| `{cost}` |" not in text] == []


def test_every_benchmark_has_its_line():
    folder = ROOT / "benchmarks"
    text = (folder / "README.md").read_text(encoding="utf-8")
    shared = {"interleaved", "training_runs", "boards", "delay", "operators", "servers", "litserve_server"}
    scripts = [script.name for script in folder.glob("*.py") if script.stem not in shared]
    assert [script for script in scripts if f"]({script})" not in text] == []
