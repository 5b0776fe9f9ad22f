"""Size budgets: what has outgrown them is to be split, not excused."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

REPO = Path(__file__).parents[2]
PACKAGES = ("data_tools", "finetune", "launch", "pretrain")
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 50
MAX_CLASS_LINES = 150


def sources() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        for path in sorted((REPO / package).rglob("*.py")):
            yield str(path.relative_to(REPO)), path.read_text(encoding="utf-8")


def oversized(source: str, kinds: tuple[type[ast.AST], ...], limit: int) -> list[str]:
    """Definitions of these kinds that are longer than the limit, docstring and decorators included."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, kinds):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            if (lines := node.end_lineno - first + 1) > limit:
                found.append(f"{node.lineno} {node.name}: {lines} lines")
    return found


def test_there_are_sources():
    assert len(list(sources())) > 20


def test_files_stay_short():
    long = [f"{name}: {n} lines" for name, text in sources() if (n := text.count("\n")) > MAX_FILE_LINES]
    assert not long, f"over {MAX_FILE_LINES} lines: {long}"


def test_functions_stay_short():
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    long = [f"{n}:{hit}" for n, text in sources() for hit in oversized(text, kinds, MAX_FUNCTION_LINES)]
    assert not long, f"over {MAX_FUNCTION_LINES} lines: {long}"


def test_classes_stay_short():
    long = [
        f"{n}:{hit}" for n, text in sources() for hit in oversized(text, (ast.ClassDef,), MAX_CLASS_LINES)
    ]
    assert not long, f"over {MAX_CLASS_LINES} lines: {long}"


def test_tests_that_start_ranks_lie_where_make_test_runs_them():
    """The Makefile runs tests with the marker `distributed` in these two folders, the others side by side."""
    marked = {path for path in (REPO / "tests").rglob("test_*.py") if "mark.distributed" in path.read_text()}
    marked.discard(Path(__file__))
    assert marked
    assert not [path for path in marked if path.parent.name not in ("distributed", "integration")]


def test_the_measure_sees_what_is_too_long():
    source = "@decorator\ndef f():\n" + "    pass\n" * 3
    assert oversized(source, (ast.FunctionDef,), 4) == ["2 f: 5 lines"]
    assert oversized(source, (ast.FunctionDef,), 5) == []
