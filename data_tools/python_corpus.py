"""A small real corpus from the text that every Python installation carries.

Sources: docstrings and comment blocks of the standard library, and the language reference in
`pydoc_data.topics`. Nothing is imported: sources are parsed with `ast`.

Written to the output directory:

    corpus.jsonl                            {"text", "id", "source"}, one module or topic a line
    classification/{train,validation}.jsonl {"text", "label"}, one class or function docstring a line
    python-docs.json                        Python version and counts; marks the directory as complete

The label of a docstring is the top-level package it comes from. Validation docstrings are left out of
corpus.jsonl, so a pretrained model has not seen them. The same Python gives the same bytes.
"""

from __future__ import annotations

import ast
import json
import platform
import sysconfig
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from data_tools.errors import DataError
from data_tools.publish import publish_directory, write_file, write_json

RECORD_NAME = "python-docs.json"
RECORD_VERSION = 1
CLASSES = 8
"""Labels of the classification set: the packages with the most docstrings."""

_SKIPPED_DIRECTORIES = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "pydoc_data"}
)
_TOPICS = "pydoc_data/topics.py"
_SHORTEST_EXAMPLE = 40  # characters; below this a docstring says too little to be classified
_SHORTEST_COMMENT = 80  # characters of a comment block worth reading
_VALIDATION_FRACTION = 0.2
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True, slots=True)
class Passage:
    """One docstring or comment block; `is_member` holds for docstrings of classes and functions."""

    line: int
    text: str
    is_member: bool


@dataclass(frozen=True, slots=True)
class Module:
    """The prose of one source file; `package` is None for a top-level module."""

    name: str
    package: str | None
    passages: tuple[Passage, ...]


def build_python_corpus(out: Path, root: Path | None = None) -> tuple[dict[str, Any], bool]:
    """Write the corpus, or find it complete already.

    Args:
        out: directory to create.
        root: standard library to read; this interpreter's by default.

    Returns:
        The content of python-docs.json, and whether it was made now (False: complete already).

    Raises:
        DataError: `out` holds something else, or there is no source text to read.
    """
    root = Path(sysconfig.get_path("stdlib")) if root is None else root
    record = {"version": RECORD_VERSION, "python": platform.python_version()}
    done = _completed(out, record)
    if done is not None:
        return done, False
    modules = [module for path in _source_files(root) if (module := _read_module(path, root)).passages]
    topics = _read_topics(root / _TOPICS)
    if not modules:
        raise DataError(f"no docstrings under {root}: this Python came without its library's source files")
    train, validation = _classification(modules)
    held_out = {text for text, _ in validation}
    documents = [*_module_documents(modules, held_out), *topics]
    record |= {
        "documents": len(documents),
        "text_bytes": sum(len(document["text"].encode()) for document in documents),
        "classification": {
            "train": dict(sorted(Counter(label for _, label in train).items())),
            "validation": dict(sorted(Counter(label for _, label in validation).items())),
        },
    }
    with publish_directory(out) as directory:
        _write_jsonl(directory / "corpus.jsonl", documents)
        for split, examples in (("train", train), ("validation", validation)):
            rows = ({"text": text, "label": label} for text, label in examples)
            _write_jsonl(directory / "classification" / f"{split}.jsonl", rows)
        write_json(directory / RECORD_NAME, record)
    return record, True


def _completed(out: Path, expected: dict[str, Any]) -> dict[str, Any] | None:
    """The record of an earlier, complete run of the same version and Python, or None."""
    try:
        record: dict[str, Any] = json.loads((out / RECORD_NAME).read_bytes())
        same = all(record[key] == value for key, value in expected.items())
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{out / RECORD_NAME} is damaged: remove {out} or choose another --out") from error
    if not same:
        raise DataError(
            f"{out} was made with Python {record['python']}, this is {expected['python']}: "
            "remove it or choose another --out"
        )
    return record


def _source_files(root: Path) -> Iterator[Path]:
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if not _SKIPPED_DIRECTORIES.intersection(parts) and not parts[-1].startswith("test_"):
            yield path


def _read_module(path: Path, root: Path) -> Module:
    source = path.read_bytes()
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise DataError(f"{path}: cannot be parsed: {error}") from error
    passages = []
    for node in _statements(tree):
        if isinstance(node, _DOCUMENTED) and (text := ast.get_docstring(node)):
            passages.append(Passage(node.body[0].lineno, text.strip(), not isinstance(node, ast.Module)))
    passages += _comment_blocks(source)
    parts = path.relative_to(root).with_suffix("").parts
    name = ".".join(part for part in parts if part != "__init__")
    return Module(name, parts[0] if len(parts) > 1 else None, tuple(sorted(passages, key=lambda p: p.line)))


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """A node and the statements inside it; `ast.walk` would visit every expression, at twice the time."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
            yield from _statements(child)


def _comment_blocks(source: bytes) -> Iterator[Passage]:
    """Runs of comment lines that are long enough to be prose."""
    block: list[str] = []
    # A trailing empty line closes the last block. Latin-1 sources have their non-ASCII comments replaced.
    for number, line in enumerate([*source.decode("utf-8", "replace").splitlines(), ""], 1):
        stripped = line.strip()
        if stripped.startswith("#") and not stripped.startswith("#!"):
            block.append(stripped.lstrip("#").removeprefix(" ").rstrip())
            continue
        text = "\n".join(block).strip()
        if len(block) > 1 and len(text) >= _SHORTEST_COMMENT:
            yield Passage(number - len(block), text, False)
        block = []


def _read_topics(path: Path) -> list[dict[str, str]]:
    """Documents of `pydoc_data.topics`: the one dictionary literal in that file."""
    try:
        tree = ast.parse(path.read_bytes())
    except FileNotFoundError:
        return []  # some distributions leave it out; the docstrings suffice
    topics: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            topics = ast.literal_eval(node.value)
    return [
        {"text": text.strip(), "id": f"topic:{name}", "source": "pydoc_data"}
        for name, text in sorted(topics.items())
    ]


def _classification(modules: Iterable[Module]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(text, label) examples of the largest packages, split by the hash of the text."""
    labels: dict[str, set[str]] = defaultdict(set)
    for module in modules:
        for passage in module.passages:
            if module.package and passage.is_member and len(passage.text) >= _SHORTEST_EXAMPLE:
                labels[passage.text].add(module.package)
    # A text that two packages share has no right label.
    examples = [(text, next(iter(found))) for text, found in labels.items() if len(found) == 1]
    counts = Counter(label for _, label in examples)
    chosen = sorted(counts, key=lambda label: (-counts[label], label))[:CLASSES]
    keyed = sorted((xxhash.xxh3_64_intdigest(text.encode()), text, label) for text, label in examples)
    limit = int(_VALIDATION_FRACTION * 2**64)
    train = [(text, label) for key, text, label in keyed if label in chosen and key >= limit]
    validation = [(text, label) for key, text, label in keyed if label in chosen and key < limit]
    return train, validation


def _module_documents(modules: Iterable[Module], held_out: set[str]) -> Iterator[dict[str, str]]:
    for module in modules:
        texts = [passage.text for passage in module.passages if passage.text not in held_out]
        if texts:
            yield {"text": "\n\n".join(texts), "id": module.name, "source": "stdlib"}


def _write_jsonl(path: Path, rows: Iterable[dict[str, str]]) -> None:
    write_file(path, b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows))
