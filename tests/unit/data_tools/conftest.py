"""A small corpus of real prose shapes and a tokenizer trained on it, made once a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_tools.tokenizer import Tokenizer
from data_tools.train_tokenizer import TokenizerOptions, train_tokenizer
from tests.unit.data_tools.support import make_texts, write_jsonl


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return make_texts(300)


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("input") / "docs.jsonl", texts)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory, corpus_file: Path) -> Tokenizer:
    out = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    return train_tokenizer([corpus_file], out, TokenizerOptions(vocab_size=400)).tokenizer
