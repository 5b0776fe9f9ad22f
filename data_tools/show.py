"""Show what is stored: documents decoded back to text, and where they come from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from data_tools.errors import DataError
from data_tools.provenance import Origin, find_ids, origin_of
from data_tools.shard_format import SPLITS, Manifest, load_manifest
from data_tools.shard_reader import Block, read_block
from data_tools.tokenizer import Tokenizer, corpus_tokenizer, load_tokenizer


def open_split(corpus: Path, split: str) -> Manifest:
    """Open the split that --split names.

    Raises:
        DataError: there is no such split.
    """
    if split not in SPLITS:
        raise DataError(f"--split must be one of {', '.join(SPLITS)}, not {split}")
    return load_manifest(corpus / split)


def numbers_from(manifest: Manifest, first: int) -> Iterator[int]:
    """Document numbers from `first` on, in stored order.

    Raises:
        DataError: there is no document `first`.
    """
    if not 0 <= first < manifest.documents:
        raise DataError(f"--document must lie in [0, {manifest.documents}), not {first}")
    yield from range(first, manifest.documents)


def numbers_of_id(manifest: Manifest, document_id: str) -> Iterator[int]:
    """Numbers of the documents that the inputs called `document_id`; reads the provenance of all shards.

    Raises:
        DataError: there is none.
    """
    first, found = 0, False
    for shard in manifest.shards:
        if shard.provenance is not None:
            for row in find_ids(manifest.directory / shard.provenance.path, document_id):
                found = True
                yield first + row
        first += shard.documents
    if not found:
        raise DataError(
            f"no document with the id {document_id!r} in {manifest.directory}: try the other --split"
        )


def show_documents(corpus: Path, manifest: Manifest, numbers: Iterable[int], pieces: bool) -> Iterator[str]:
    """Yield lines of text about some documents: where each comes from, and its text, by sentences if known.

    Args:
        corpus: the corpus directory.
        manifest: the split.
        numbers: which documents.
        pieces: show the tokenizer's pieces, divided by "|", instead of the text.

    Raises:
        DataError: a damaged block, or another tokenizer.
    """
    tokenizer = load_tokenizer(corpus_tokenizer(corpus))
    if tokenizer.sha256 != manifest.tokenizer_sha256:
        raise DataError(f"{tokenizer.path} is not the tokenizer that made {manifest.directory}")
    ends = np.cumsum(manifest.blocks["documents"], dtype=np.int64)
    for number in numbers:
        block = int(np.searchsorted(ends, number, side="right"))
        inside = number - int(ends[block]) + int(manifest.blocks[block]["documents"])
        content = read_block(manifest, block)
        sentences = content.sentences(inside)
        length = int(content.document_lengths[inside]) - 1
        yield f"--- document {number}, block {block}, {length} tokens" + (
            "" if sentences is None else f", {len(sentences)} sentences"
        )
        if (origin := _origin(manifest, number)) is not None:
            yield _describe(origin)
        yield from _text(content, inside, tokenizer, pieces)


def _origin(manifest: Manifest, number: int) -> Origin | None:
    first = 0
    for shard in manifest.shards:
        if number < first + shard.documents:
            if shard.provenance is None:
                return None
            return origin_of(manifest.directory / shard.provenance.path, number - first)
        first += shard.documents
    return None


def _describe(origin: Origin) -> str:
    parts = {"id": origin.id, "source": origin.source, "language": origin.language}
    known = "".join(f", {name} {value}" for name, value in parts.items() if value not in ("", origin.file))
    return f"    from {origin.file}, position {origin.position}{known}"


def _text(content: Block, inside: int, tokenizer: Tokenizer, pieces: bool) -> Iterator[str]:
    tokens = content.documents()[inside][:-1]
    lengths = content.sentences(inside)
    ends = [len(tokens)] if lengths is None else np.cumsum(lengths).tolist()
    for index, (start, end) in enumerate(pairwise([0, *ends])):
        part = tokens[start:end]
        text = "|".join(map(tokenizer.id_to_piece, part.tolist())) if pieces else tokenizer.decode(part)
        yield text if lengths is None else f"[{index}] {text}"
