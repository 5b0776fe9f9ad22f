"""Corpora with a Hugging Face tokenizer or of integers: from documents to micro-batches of GPT and BERT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from data_tools.cli import main as data_command
from data_tools.errors import DataError
from data_tools.tokenizer import load_tokenizer
from pretrain.data import StreamConfig, open_stream
from tests.unit.data_tools.support import make_texts

TEXTS = make_texts(200)


def run(*words: object) -> None:
    assert data_command(list(map(str, words))) == 0


def batches(corpus: Path, kind: str, cache: Path, steps: int = 6) -> list[dict[str, Any]]:
    config = StreamConfig.model_validate(
        {
            "kind": kind,
            "batch": {"micro_batch_size": 2, "global_batch_size": 4, "seq_length": 48},
            "data": {"corpora": [{"name": "c", "path": str(corpus)}]},
        }
    )
    stream = open_stream(config, cache=cache)
    try:
        return [micro for _ in range(steps) for micro in next(stream)]
    finally:
        stream.close()


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def integer_corpus(directory: Path) -> tuple[Path, list[list[int]]]:
    """Sequences over 20 symbols, as of a protein."""
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 20, size=rng.integers(30, 90)).tolist() for _ in range(120)]
    source = write_jsonl(directory / "sequences.jsonl", [{"ids": row} for row in rows])
    vocabulary = directory / "protein.json"
    run("tokenizer", "--integers", "--symbols", *"ACDEFGHIKLMNPQRSTVWY", "--out", vocabulary)
    words = ("--token-key", "ids", "--validation-fraction", 0, "--sentences", "--out", directory / "corpus")
    run("prepare", "--input", source, "--tokenizer", vocabulary, *words)
    return directory / "corpus", rows


def test_integers_become_gpt_batches(tmp_path: Path) -> None:
    corpus, rows = integer_corpus(tmp_path)
    vocabulary = load_tokenizer(corpus / "vocabulary.json")
    known = {tuple(row) for row in rows}
    found = batches(corpus, "gpt", tmp_path)
    whole = 0
    for micro in found:
        assert micro["tokens"].shape == (2, 48) and micro["tokens"].max() <= vocabulary.eod_id
        assert np.array_equal(micro["tokens"][:, 1:], micro["labels"][:, :-1])
        for sequence in micro["tokens"]:
            ends = np.flatnonzero(sequence == vocabulary.eod_id)
            for start, stop in zip(ends, ends[1:], strict=False):
                assert tuple(sequence[start + 1 : stop].tolist()) in known
                whole += 1
    assert whole and vocabulary.decode(found[0]["tokens"][0]).isalpha()


def test_integers_become_bert_batches(tmp_path: Path) -> None:
    corpus, _ = integer_corpus(tmp_path)
    for micro in batches(corpus, "bert", tmp_path / "cache"):
        labels = micro["masked_labels"]
        assert len(labels) and labels.max() < 20, "only symbols are predicted"
        assert (micro["tokens"][:, 0] == 21).all(), "cls"
        assert ((micro["tokens"] == 22).sum(axis=1) == 2).all(), "sep"
        hidden = micro["tokens"].ravel()[micro["masked_positions"]]
        assert (hidden == 23).any() and set(hidden.tolist()) <= {*range(20), 23}


def word_piece(path: Path) -> Library:
    library = Library(models.WordPiece(unk_token="[UNK]"))
    library.normalizer = normalizers.BertNormalizer(lowercase=True)
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=specials, show_progress=False)
    library.train_from_iterator(TEXTS, trainer)
    library.save(str(path))
    return library


def byte_level(path: Path) -> Library:
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(TEXTS, trainer)
    library.save(str(path))
    return library


def text_corpus(directory: Path, tokenizer: Path) -> Path:
    source = write_jsonl(directory / "docs.jsonl", [{"text": text} for text in TEXTS])
    words = ("--validation-fraction", 0, "--sentences", "--out", directory / "corpus")
    run("prepare", "--input", source, "--tokenizer", tokenizer, *words)
    assert (directory / "corpus" / "tokenizer.json").read_bytes() == tokenizer.read_bytes()
    return directory / "corpus"


def test_a_byte_level_tokenizer_serves_gpt_and_not_bert(tmp_path: Path) -> None:
    library = byte_level(tmp_path / "gpt2.json")
    corpus = text_corpus(tmp_path, tmp_path / "gpt2.json")
    everything = "".join(TEXTS)
    for micro in batches(corpus, "gpt", tmp_path):
        pieces = library.decode(micro["tokens"][0].tolist(), skip_special_tokens=False).split("<|endoftext|>")
        assert all(piece.strip("\ufffd") in everything for piece in pieces)
    with pytest.raises(DataError, match=r"BERT needs the special ids .* has no pad and no cls"):
        batches(corpus, "bert", tmp_path / "cache")


def test_a_word_piece_tokenizer_serves_bert_with_whole_words(tmp_path: Path) -> None:
    library = word_piece(tmp_path / "bert.json")
    corpus = text_corpus(tmp_path, tmp_path / "bert.json")
    for micro in batches(corpus, "bert", tmp_path / "cache"):
        tokens, labels = micro["tokens"].ravel().copy(), micro["masked_labels"]
        chosen = np.zeros(tokens.size, bool)
        chosen[micro["masked_positions"]] = True
        tokens[micro["masked_positions"]] = labels
        assert labels.min() > 4, "no special id is predicted"
        pieces = [library.id_to_token(int(token)) for token in tokens]
        inside = [i for i in range(1, len(pieces)) if pieces[i].startswith("##") and pieces[i - 1][0] != "["]
        assert inside and all(chosen[i] == chosen[i - 1] for i in inside), "words are hidden whole"
