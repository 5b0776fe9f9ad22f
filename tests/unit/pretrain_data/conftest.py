from __future__ import annotations

from pathlib import Path

import pytest

from data_tools.tokenizer import Tokenizer
from tests.unit.pretrain_data.support import train_tokenizer, write_corpus


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return train_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.model", seed=0)


@pytest.fixture(scope="session")
def other_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return train_tokenizer(tmp_path_factory.mktemp("other") / "tokenizer.model", seed=1)


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> dict[str, Path]:
    """Two corpora of the same tokenizer; read only."""
    root = tmp_path_factory.mktemp("corpora")
    return {name: write_corpus(root / name, tokenizer, seed) for name, seed in (("first", 1), ("second", 2))}


@pytest.fixture
def corpus(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    """A corpus that a test may damage."""
    return write_corpus(tmp_path / "corpus", tokenizer, seed=3)


@pytest.fixture(params=["gpt", "bert"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param
