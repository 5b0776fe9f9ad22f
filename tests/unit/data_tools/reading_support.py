"""What the tests of the readers share: read inputs chunk by chunk, and pack them in every compression."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable, Sequence
from pathlib import Path

import zstandard

from data_tools.documents import BadRecord, Document, ReadCounts
from data_tools.reading import Intake, ReadOptions, find_inputs, plan_chunks, read_chunk

ONE_CHUNK = 1 << 40


class KeptIntake(Intake):
    """An intake beside the bad records that were read."""

    def __init__(self) -> None:
        super().__init__()
        self.bad_records: list[BadRecord] = []


def read_all(
    paths: Sequence[Path | str], chunk_bytes: int = ONE_CHUNK, **options: object
) -> tuple[KeptIntake, list[Document]]:
    """Everything that the inputs hold, read in chunks of so many bytes."""
    chosen = ReadOptions(**options)  # type: ignore[arg-type]
    intake, documents = KeptIntake(), []
    for chunk in plan_chunks(find_inputs([str(path) for path in paths], chosen), chosen, chunk_bytes):
        counts = ReadCounts()
        items = list(read_chunk(chunk, chosen, counts))
        bad = [item for item in items if isinstance(item, BadRecord)]
        intake.add(chunk, counts, bad[0] if bad else None)
        intake.bad_records += map(intake.number, bad)
        documents += [item for item in items if isinstance(item, Document)]
    return intake, documents


def texts_of(documents: Sequence[Document]) -> list[str]:
    return [document.text for document in documents]


def _zstd_frames(data: bytes) -> bytes:
    """Several frames with their sizes, one of them skippable, some empty, cut anywhere."""
    compressor = zstandard.ZstdCompressor(write_content_size=True, write_checksum=True)
    step = max(1, len(data) // 3)
    frames = [compressor.compress(data[at : at + step]) for at in range(0, len(data), step)]
    skippable = (0x184D2A53).to_bytes(4, "little") + (5).to_bytes(4, "little") + b"hello"
    return skippable + b"".join(frames) + compressor.compress(b"")


def _members(compress: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    return lambda data: compress(data[: len(data) // 2]) + compress(data[len(data) // 2 :])


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": _members(gzip.compress),
    ".bz2": _members(bz2.compress),
    ".xz": _members(lzma.compress),
    ".zst": _zstd_frames,
}
"""How each extension is written, in more than one member, stream or frame."""
