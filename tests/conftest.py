"""Fixtures that more than one test folder uses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest


def headwater(argv: Sequence[str]) -> int:
    """The `headwater` command in this process."""
    from launch.cli import main

    return main(list(argv))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real corpus of docstrings with sentences, a validation split and a 1,000-piece tokenizer."""
    root = tmp_path_factory.mktemp("corpus")
    docs = str(root / "docs" / "corpus.jsonl")
    tokenizer = str(root / "tokenizer.model")
    assert headwater(["data", "python-docs", "--out", str(root / "docs")]) == 0
    small = ["--vocab-size", "1000", "--max-train-mb", "1"]
    assert headwater(["data", "tokenizer", "--input", docs, *small, "--out", tokenizer]) == 0
    prepare = ["--sentences", "--validation-fraction", "0.1", "--out", str(root / "corpus")]
    assert headwater(["data", "prepare", "--input", docs, "--tokenizer", tokenizer, *prepare]) == 0
    return root / "corpus"
