"""A small real tokenizer and tiny checkpoints; built once for all files."""

from __future__ import annotations

import json
import pydoc_data.topics
from pathlib import Path

import pytest

from data_tools.tokenizer import load_tokenizer
from data_tools.train_tokenizer import TokenizerOptions, train_tokenizer


def train(directory: Path, model_type: str, vocab_size: int) -> Path:
    corpus, model = directory / "corpus.jsonl", directory / f"{model_type}.model"
    texts = list(pydoc_data.topics.topics.values())[:40]
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    train_tokenizer([corpus], model, TokenizerOptions(vocab_size=vocab_size, model_type=model_type))
    return model


@pytest.fixture(scope="session")
def tokenizer_model(tmp_path_factory) -> Path:
    return train(tmp_path_factory.mktemp("unigram"), "unigram", 900)


@pytest.fixture(scope="session")
def codec(tokenizer_model):
    return load_tokenizer(tokenizer_model)
