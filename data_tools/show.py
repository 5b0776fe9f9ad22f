"""Show what is stored: documents decoded back to text, sentence by sentence where they are known."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path

import numpy as np

from data_tools.errors import DataError
from data_tools.shard_format import SPLITS, Manifest, load_manifest
from data_tools.shard_reader import read_block
from data_tools.tokenizer import corpus_tokenizer, load_tokenizer


def show_documents(corpus: Path, split: str, first: int, count: int, pieces: bool) -> Iterator[str]:
    """Yield lines of text about `count` documents, from number `first` on.

    Args:
        corpus: the corpus directory.
        split: "train" or "validation".
        first: number of the first document, in stored order from 0.
        count: how many to show.
        pieces: show the tokenizer's pieces, divided by "|", instead of the text.

    Raises:
        DataError: no such split or document, or a damaged block.
    """
    if split not in SPLITS:
        raise DataError(f"--split must be one of {', '.join(SPLITS)}, not {split}")
    manifest = load_manifest(corpus / split)
    if not 0 <= first < manifest.documents:
        raise DataError(f"--document must lie in [0, {manifest.documents}), not {first}")
    tokenizer = load_tokenizer(corpus_tokenizer(corpus))
    if tokenizer.sha256 != manifest.tokenizer_sha256:
        raise DataError(f"{tokenizer.path} is not the tokenizer that made {manifest.directory}")
    for number, (block, inside) in islice(enumerate(_places(manifest, first), first), count):
        content = read_block(manifest, block)
        tokens = content.documents()[inside][:-1]
        lengths = content.sentences(inside)
        heading = f"document {number}, block {block}, {len(tokens)} tokens"
        yield f"--- {heading}" + ("" if lengths is None else f", {len(lengths)} sentences")
        ends = [len(tokens)] if lengths is None else np.cumsum(lengths).tolist()
        for index, (start, end) in enumerate(pairwise([0, *ends])):
            part = tokens[start:end]
            if pieces:
                text = "|".join(tokenizer.id_to_piece(int(i)) for i in part)
            else:
                text = tokenizer.decode(part)
            yield text if lengths is None else f"[{index}] {text}"


def _places(manifest: Manifest, first: int) -> Iterator[tuple[int, int]]:
    """(block, number inside it) of each document from `first` on."""
    ends = np.cumsum(manifest.blocks["documents"], dtype=np.int64)
    for block in range(int(np.searchsorted(ends, first, side="right")), len(ends)):
        count = int(manifest.blocks[block]["documents"])
        yield from ((block, inside) for inside in range(max(0, first - (int(ends[block]) - count)), count))
