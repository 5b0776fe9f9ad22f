"""A small real corpus."""

from __future__ import annotations

from pathlib import Path


def docstring_corpus(root: Path) -> Path:
    """Python's docstrings, with sentences, a validation split and a 1,000-piece tokenizer, below `root`."""
    from launch.cli import main

    docs = str(root / "docs" / "corpus.jsonl")
    tokenizer = str(root / "tokenizer.model")
    assert main(["data", "python-docs", "--out", str(root / "docs")]) == 0
    small = ["--vocab-size", "1000", "--max-train-mb", "1"]
    assert main(["data", "tokenizer", "--input", docs, *small, "--out", tokenizer]) == 0
    prepare = ["--sentences", "--validation-fraction", "0.1", "--out", str(root / "corpus")]
    assert main(["data", "prepare", "--input", docs, "--tokenizer", tokenizer, *prepare]) == 0
    return root / "corpus"
