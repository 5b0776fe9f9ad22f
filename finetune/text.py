"""The tokenizer that belongs to a checkpoint: ours, or the Hugging Face one of an imported model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from data_tools.errors import DataError
from data_tools.tokenizer import FILE_NAMES, Encoding, load_tokenizer
from pretrain.checkpoint import CheckpointError
from pretrain.config import ConfigError

SENTENCEPIECE, _, VOCABULARY = FILE_NAMES

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


END_OF_TEXT = "\ue000end of text\ue000"
"""In a prompt, stands for the token that ends a text; its characters are of Unicode's private use."""


class TextCodec(Protocol):
    """What tasks ask of a tokenizer. Text is always only text: special tokens in it are not recognised."""

    pad_id: int | None
    cls_id: int | None
    sep_id: int | None
    eod_id: int | None
    vocab_size: int

    def encode_batch(self, texts: Sequence[str]) -> Sequence[npt.NDArray[np.int32]]:
        """Ids of each text, without special tokens."""

    def encode_with_spans(self, texts: Sequence[str]) -> Sequence[Encoding]:
        """The same ids, with the characters that each stands for."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of some ids."""


class HfTextCodec:
    """A transformers tokenizer behind our interface. A special token that it lacks is None."""

    def __init__(self, directory: Path) -> None:
        from transformers import AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        self.vocab_size = len(self._tokenizer)
        self.pad_id = self._id("pad_token_id")
        self.cls_id = self._id("cls_token_id")
        self.sep_id = self._id("sep_token_id")
        self.eod_id = self._id("eos_token_id")
        self.bos_id = self._id("bos_token_id")

    def encode_batch(self, texts: Sequence[str]) -> Sequence[npt.NDArray[np.int32]]:
        """Ids of each text, without special tokens."""
        encoded = self._tokenizer(
            list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False
        )
        return [np.asarray(ids, dtype=np.int32) for ids in encoded["input_ids"]]

    def encode_with_spans(self, texts: Sequence[str]) -> Sequence[Encoding]:
        """The same ids, with the characters that each stands for.

        Raises:
            ConfigError: A tokenizer that cannot tell (transformers' "slow" ones).
        """
        if not self._tokenizer.is_fast:
            raise ConfigError(
                "pretrained: its tokenizer does not tell where tokens stand in a text, which tagging and "
                "question answering need; put the tokenizer.json of the model beside its weights"
            )
        encoded = self._tokenizer(
            list(texts),
            add_special_tokens=False,
            split_special_tokens=True,
            return_offsets_mapping=True,
            verbose=False,
        )
        return [
            Encoding(np.asarray(ids, np.int32), np.array(spans, np.int64).reshape(-1, 2))
            for ids, spans in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        ]

    def encode_prompt(self, text: str) -> npt.NDArray[np.int32]:
        """Ids of a text to continue, with what this tokenizer puts before one (Llama's begins a document)."""
        return np.asarray(
            self._tokenizer(text, split_special_tokens=True, verbose=False)["input_ids"], np.int32
        )

    def decode(self, ids: Sequence[int]) -> str:
        """Text of some ids."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def _id(self, name: str) -> int | None:
        value = getattr(self._tokenizer, name, None)
        return None if value is None else int(value)


def tokenizer_files(directory: Path) -> dict[str, Path]:
    """The tokenizer files in a checkpoint or Hugging Face directory; ours alone where it has one."""
    for name in (SENTENCEPIECE, VOCABULARY):
        if (directory / name).is_file() and _is_ours(directory / name):
            return {name: directory / name}
    return {name: directory / name for name in HF_FILES if (directory / name).is_file()}


def read_tokenizer(directory: Path) -> dict[str, bytes]:
    """The content of `tokenizer_files`."""
    return {name: path.read_bytes() for name, path in tokenizer_files(directory).items()}


def own_tokenizer(files: Mapping[str, Path]) -> Path | None:
    """The one of `tokenizer_files` that our own library reads; a tokenizer.json only if it is alone."""
    return next(iter(files.values())) if len(files) == 1 and files.keys() <= set(FILE_NAMES) else None


def reads_integers(files: Mapping[str, Path]) -> bool:
    """Whether `tokenizer_files` are those of a model that reads integers, not text."""
    return files.keys() == {"vocabulary.json"}


def open_text_codec(directory: Path, vocab_size: int) -> TextCodec:
    """The tokenizer in a checkpoint or Hugging Face directory.

    Args:
        directory: Of the checkpoint.
        vocab_size: Of its model.

    Raises:
        CheckpointError: It has none, a damaged one, or that of another model.
    """
    files = tokenizer_files(directory)
    own = own_tokenizer(files)
    if own is None and not files.keys() - {"config.json"}:
        raise CheckpointError(f"{directory}: no tokenizer in this checkpoint; put its {SENTENCEPIECE} there")
    codec: TextCodec = _hf_codec(directory, sorted(files)) if own is None else load_tokenizer(own)
    # Imported models may have rows that no piece uses.
    if codec.vocab_size > vocab_size or (own is not None and codec.vocab_size != vocab_size):
        raise CheckpointError(
            f"{directory}: its tokenizer has {codec.vocab_size} pieces, its model {vocab_size}; it is the "
            "tokenizer of another model: put the model's own there"
        )
    return codec


def _hf_codec(directory: Path, names: Sequence[str]) -> HfTextCodec:
    try:
        return HfTextCodec(directory)
    except Exception as error:  # damaged files end in errors of every kind, down to the base class itself
        told = (str(error).splitlines() or [""])[0]
        raise CheckpointError(
            f"{directory}: its tokenizer cannot be read ({type(error).__name__}: {told}); put the model's "
            f"own files there, for {', '.join(names)}"
        ) from error


def bos_id(codec: TextCodec) -> int | None:
    """What a document begins with: in our tokenizers the end of the one before."""
    return codec.bos_id if isinstance(codec, HfTextCodec) else codec.eod_id


def encode_texts(codec: TextCodec, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
    """Ids of texts in which END_OF_TEXT stands for the token that ends a text."""
    pieces = [text.split(END_OF_TEXT) for text in texts]
    ids = iter(codec.encode_batch([piece for parts in pieces for piece in parts]))
    found = []
    for parts in pieces:
        encoded: list[npt.NDArray[np.int32]] = []
        for number in range(len(parts)):
            if number:
                encoded.append(np.array([end_of_text(codec)], np.int32))
            encoded.append(next(ids))
        found.append(np.concatenate(encoded).astype(np.int32))
    return found


def encode_prompts(codec: TextCodec, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
    """Ids of texts that a GPT is to continue, with what its tokenizer puts first (Llama's begins a document).

    Raises:
        ConfigError: An empty text, and nothing that a document begins with.
    """
    if isinstance(codec, HfTextCodec):
        ids = [codec.encode_prompt(text) if text else np.array([], np.int32) for text in texts]
    else:
        ids = list(codec.encode_batch(texts))
    return [one if len(one) else np.array([_first_id(codec)], np.int32) for one in ids]


def end_of_text(codec: TextCodec) -> int:
    """The token that ends a text.

    Raises:
        ConfigError: The tokenizer has none.
    """
    if codec.eod_id is None:
        raise ConfigError("pretrained: its tokenizer has no end of text, which a response must end with")
    return codec.eod_id


def _first_id(codec: TextCodec) -> int:
    first = bos_id(codec)
    if first is None:
        raise ConfigError("this tokenizer has nothing that a document begins with: give a --prompt")
    return first


def _is_ours(path: Path) -> bool:
    """Other projects also call a sentencepiece model tokenizer.model; theirs lacks our special ids."""
    try:
        load_tokenizer(path)
    except DataError:
        return False
    return True
