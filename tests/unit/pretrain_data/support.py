"""Builds small corpora, and reads them back through stock webdataset as an independent reference."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import webdataset

from data_tools.shard_format import Header, Manifest, ShardWriter, load_manifest, write_manifest
from data_tools.tokenizer import SPECIAL_PIECES, Tokenizer, load_tokenizer
from pretrain.config import RunConfig
from pretrain.data.objectives import Vocabulary

EOD = 5
SPECIALS = 6

Document = list[list[int]]  # sentences of token ids


def write_split(
    directory: Path, documents: list[Document], header: dict[str, Any], shards: int, per_block: int
) -> None:
    """Write documents into `shards` tars, `per_block` documents a block."""
    directory.mkdir(parents=True)
    head = Header(
        corpus="test", created_by="tests", eod_id=EOD, seed=0, sentences=True, split=directory.name, **header
    )
    written = []
    for number in range(shards):
        mine = documents[number * len(documents) // shards : (number + 1) * len(documents) // shards]
        with ShardWriter(directory / f"{directory.name}-{number:05d}.tar", head, number) as writer:
            for at in range(0, len(mine), per_block):
                block = mine[at : at + per_block]
                flat = [[token for sentence in document for token in sentence] + [EOD] for document in block]
                writer.write_block(
                    np.concatenate(flat),
                    [len(tokens) for tokens in flat],
                    ([len(document) for document in block], [len(s) for document in block for s in document]),
                )
        written.append((writer.info, writer.rows))
    write_manifest(directory, head, written)


def marked_documents(
    rng: np.random.Generator, count: int, sentences: int = 12, tokens: int = 20
) -> list[Document]:
    """Documents in which every token id occurs once, so that an id tells where it comes from."""
    following, documents = SPECIALS, []
    for _ in range(count):
        document = []
        for _ in range(int(rng.integers(1, sentences))):
            length = int(rng.integers(1, tokens))
            document.append(list(range(following, following + length)))
            following += length
        documents.append(document)
    assert following <= 1 << 16
    return documents


def marked_split(directory: Path, documents: list[Document], shards: int = 3, per_block: int = 4) -> Manifest:
    write_split(
        directory, documents, {"tokenizer_sha256": "0" * 64, "vocab_size": 1 << 16}, shards, per_block
    )
    return load_manifest(directory)


def marked_vocabulary(rng: np.random.Generator) -> Vocabulary:
    """A vocabulary for marked documents; about half of the ids begin a word."""
    special = np.arange(1 << 16) < SPECIALS
    return Vocabulary(
        is_special=special,
        is_word_start=(rng.random(1 << 16) < 0.5) | special,
        is_word_end=special,
        ordinary=np.flatnonzero(~special),
        pad_id=0,
        cls_id=2,
        sep_id=3,
        mask_id=4,
    )


@dataclass(frozen=True)
class RawBlock:
    tokens: np.ndarray
    document_lengths: np.ndarray
    sentences_per_document: np.ndarray
    sentence_lengths: np.ndarray


def read_with_webdataset(directory: Path) -> list[RawBlock]:
    """All blocks of a split, through stock webdataset; knows nothing of our reader."""
    shards = [str(path) for path in sorted(directory.glob("*.tar"))]
    blocks = []
    for sample in webdataset.WebDataset(shards, shardshuffle=False):
        lengths = np.frombuffer(sample["doc.bin"], "<u4")
        sentences = np.frombuffer(sample["sent.bin"], "<u4")
        tokens = np.frombuffer(sample["tok.bin"], "<u2")
        blocks.append(RawBlock(tokens, lengths, sentences[: len(lengths)], sentences[len(lengths) :]))
    return blocks


def raw_stream(directory: Path) -> np.ndarray:
    return np.concatenate([block.tokens for block in read_with_webdataset(directory)]).astype(np.int64)


def random_text(rng: np.random.Generator, words: int) -> str:
    vowels, consonants = list("aeiou"), list("bcdfghjklmnprstvz")
    made = [
        "".join(rng.choice(consonants) + rng.choice(vowels) for _ in range(rng.integers(1, 4)))
        for _ in range(words)
    ]
    return " ".join(made)


def train_tokenizer(path: Path, seed: int) -> Tokenizer:
    rng = np.random.default_rng(seed)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([random_text(rng, 12) for _ in range(300)]),
        model_writer=model,
        vocab_size=400,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        byte_fallback=True,
        pad_id=0,
        unk_id=1,
        bos_id=-1,
        eos_id=-1,
        pad_piece=SPECIAL_PIECES[0],
        unk_piece=SPECIAL_PIECES[1],
        control_symbols=list(SPECIAL_PIECES[2:]),
        num_threads=1,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())
    return load_tokenizer(path)


def text_documents(tokenizer: Tokenizer, rng: np.random.Generator, count: int) -> list[Document]:
    return [
        [
            tokenizer.encode(random_text(rng, int(rng.integers(2, 9))) + ". ")
            for _ in range(int(rng.integers(2, 9)))
        ]
        for _ in range(count)
    ]


def write_corpus(
    directory: Path, tokenizer: Tokenizer, seed: int, documents: int = 62, validation: int = 17
) -> Path:
    """A corpus of random text with a tokenizer, a train and (unless 0 documents) a validation split."""
    rng = np.random.default_rng(seed)
    header = {"tokenizer_sha256": tokenizer.sha256, "vocab_size": tokenizer.vocab_size}
    write_split(directory / "train", text_documents(tokenizer, rng, documents), header, shards=3, per_block=5)
    if validation:
        write_split(
            directory / "validation",
            text_documents(tokenizer, rng, validation),
            header,
            shards=1,
            per_block=5,
        )
    (directory / "tokenizer.model").write_bytes(Path(tokenizer.path).read_bytes())
    return directory


def run_config(kind: str, run_dir: Path, corpora: dict[str, Path], **overrides: Any) -> RunConfig:
    """A small run; `overrides` are `section__key=value`, `weights` by corpus name."""
    weights = overrides.pop("weights", {})
    data: dict[str, Any] = {
        "run_dir": str(run_dir),
        "seed": 7,
        "model": {
            "kind": kind,
            "vocab_size": 400,
            "num_layers": 1,
            "hidden_size": 8,
            "ffn_hidden_size": 8,
            "num_attention_heads": 1,
            "max_position_embeddings": 64,
        },
        "batch": {"micro_batch_size": 2, "global_batch_size": 24, "seq_length": 32},
        "optimizer": {"lr": 0.1},
        "data": {
            "corpora": [
                {"name": name, "path": str(path), "weight": weights.get(name, 1.0)}
                for name, path in corpora.items()
            ]
        },
        "training": {"train_steps": 1, "eval_samples": 60},
    }
    for key, value in overrides.items():
        section, _, name = key.partition("__")
        if name:
            data[section][name] = value
        else:
            data[section] = value
    return RunConfig.model_validate(data)
