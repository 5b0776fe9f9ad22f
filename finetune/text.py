"""The tokenizer that belongs to a checkpoint: ours, or the Hugging Face one of an imported model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from data_tools.errors import DataError
from data_tools.tokenizer import Tokenizer
from pretrain.checkpoint import CheckpointError
from pretrain.checkpoint.manifest import TOKENIZER

HF_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "config.json",
)
"""What may describe a Hugging Face tokenizer; `config.json` names the class where nothing else does."""


class TextCodec(Protocol):
    """What tasks ask of a tokenizer. Text is always only text: special tokens in it are not recognised."""

    pad_id: int
    cls_id: int
    sep_id: int
    eod_id: int
    vocab_size: int

    def encode_batch(self, texts: Sequence[str]) -> Sequence[npt.NDArray[np.int32]]:
        """Ids of each text, without special tokens."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of some ids."""


class HfTextCodec:
    """A transformers tokenizer behind our interface. A special token that it lacks has id -1."""

    def __init__(self, directory: Path) -> None:
        from transformers import AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        self.vocab_size = len(self._tokenizer)
        self.pad_id = self._id("pad_token_id")
        self.cls_id = self._id("cls_token_id")
        self.sep_id = self._id("sep_token_id")
        self.eod_id = self._id("eos_token_id")

    def encode_batch(self, texts: Sequence[str]) -> Sequence[npt.NDArray[np.int32]]:
        """Ids of each text, without special tokens."""
        encoded = self._tokenizer(
            list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False
        )
        return [np.asarray(ids, dtype=np.int32) for ids in encoded["input_ids"]]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of some ids."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def _id(self, name: str) -> int:
        value = getattr(self._tokenizer, name, None)
        return -1 if value is None else int(value)


def tokenizer_files(directory: Path) -> dict[str, Path]:
    """The tokenizer files in a checkpoint or Hugging Face directory; ours alone where it has one."""
    if (directory / TOKENIZER).is_file() and _is_ours(directory / TOKENIZER):
        return {TOKENIZER: directory / TOKENIZER}
    return {name: directory / name for name in HF_FILES if (directory / name).is_file()}


def open_text_codec(directory: Path) -> TextCodec:
    """The tokenizer in a checkpoint directory.

    Raises:
        CheckpointError: If it has none.
    """
    files = tokenizer_files(directory)
    if TOKENIZER in files:
        return Tokenizer.load(files[TOKENIZER])
    if not files.keys() - {"config.json"}:
        raise CheckpointError(f"{directory}: no tokenizer in this checkpoint; put its {TOKENIZER} there")
    return HfTextCodec(directory)


def _is_ours(path: Path) -> bool:
    """Other projects also call a sentencepiece model tokenizer.model; theirs lacks our special ids."""
    try:
        Tokenizer.load(path)
    except DataError:
        return False
    return True
