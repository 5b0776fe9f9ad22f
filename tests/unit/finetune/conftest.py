"""A small real tokenizer and tiny checkpoints; built once for all files."""

from __future__ import annotations

import json
import pydoc_data.topics
from pathlib import Path

import pytest

from data_tools.train_tokenizer import TokenizerOptions, train_tokenizer


def train(directory: Path, model_type: str, vocab_size: int) -> Path:
    corpus, model = directory / "corpus.jsonl", directory / f"{model_type}.model"
    texts = list(pydoc_data.topics.topics.values())[:40]
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    train_tokenizer([corpus], model, TokenizerOptions(vocab_size=vocab_size, model_type=model_type))
    return model


def with_exact_scores(model: Path) -> Path:
    """Round the scores to multiples of 1/64, as `has_exact_scores` wants them."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model.read_bytes())
    best = max(piece.score for piece in proto.pieces if piece.type == 1)
    for piece in proto.pieces:
        if piece.type in (1, 4):
            piece.score = round((piece.score if piece.type == 1 else best) * 64) / 64
            piece.type = 1
    exact = model.with_name("exact.model")
    exact.write_bytes(proto.SerializeToString())
    return exact


@pytest.fixture(scope="session")
def tokenizer_model(tmp_path_factory) -> Path:
    return with_exact_scores(train(tmp_path_factory.mktemp("unigram"), "unigram", 900))
