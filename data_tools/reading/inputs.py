"""What to read and how: options, input files, and the chunks that files are cut into."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from data_tools.errors import DataError

Format = Literal["auto", "jsonl", "text", "csv", "tsv", "parquet", "warc", "npy"]
TextUnit = Literal["file", "line", "block"]
Compression = Literal["", "gz", "zst", "bz2", "xz"]

CHUNK_BYTES = 64 << 20
"""Bytes of input that one worker reads at a time."""


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How inputs are read; `dataclasses.asdict` of it is JSON.

    Attributes:
        format: of every input, or "auto": by the extension of each file.
        text_unit: what one document of a plain text file is: the "file", a "line", or a "block" of lines
            between blank lines.
        text_key: key or column of the text in jsonl, csv, tsv and parquet.
        id_key: key or column of the document's name; inputs without it have none.
        source_key: key or column of where the document comes from; inputs without it have none.
        token_key: key or column with a list of integers in jsonl and parquet, for documents that are
            tokenised already; "" means text.
    """

    format: Format = "auto"
    text_unit: TextUnit = "file"
    text_key: str = "text"
    id_key: str = "id"
    source_key: str = "source"
    token_key: str = ""

    def __post_init__(self) -> None:
        for name, value, known in (
            ("format", self.format, get_args(Format)),
            ("text_unit", self.text_unit, get_args(TextUnit)),
        ):
            if value not in known:
                raise DataError(f"{name} {value!r} is not one of {', '.join(known)}")


def public_name(url: str) -> str:
    """A file's URL as it may be published: without user, password, query and fragment; paths as they are."""
    if "://" not in url:
        return url
    return re.sub(r"(?<=://)[^/]*@", "", re.split(r"[?#]", url, maxsplit=1)[0])


class Status(NamedTuple):
    """What a file is at this moment; `version` and `ranges` as in `InputFile`."""

    size: int
    version: str
    ranges: bool = True


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file to read, as it was when it was found.

    Attributes:
        url: absolute local path, or a URL that fsspec knows.
        size: bytes, compressed if it is.
        version: changes with the content: time of change in ns, ETag or Last-Modified; "" if unknown.
        argument: the `--input` under which it was found.
        format: never "auto".
        compression: "" if none.
        ranges: whether it can be read from any byte on; some web servers send whole files only.
        name: what a corpus calls it: the path below the directory that all local inputs share, or the URL as
            `public_name` publishes it. "" before all inputs are known.
    """

    url: str
    size: int
    version: str
    argument: str
    format: Format
    compression: Compression = ""
    ranges: bool = True
    name: str = ""

    @property
    def remote(self) -> bool:
        """Whether it is behind a URL."""
        return "://" in self.url

    @property
    def group(self) -> str:
        """What stands for the source of documents that name none.

        The directory of `name`; of a file without one, its name up to the first dot and without a number at
        its end, so that "books.jsonl" gives "books" and so do "books-00.jsonl.zst", "books-01.jsonl.zst".
        """
        directory, _, name = self.name.rpartition("/")
        return directory or re.sub(r"[\W\d_]+$", "", name.split(".")[0]) or name


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of an input file that is read by itself; the chunks of a file cover its bytes without overlap.

    What begins in the chunk belongs to it: lines, blocks, row groups, rows of an array.

    Attributes:
        file: the input file.
        file_index: its place among the inputs.
        start: first byte of the file as it is stored.
        stop: past the last.
        unpacked: the same range in the decompressed file, for frames of a zstd file; None for a compressed
            file that is one chunk, or an uncompressed one.
    """

    file: InputFile
    file_index: int
    start: int
    stop: int
    unpacked: tuple[int, int] | None = None

    @property
    def cost(self) -> int:
        """Bytes of input it stands for; over all chunks they add up to the size of the inputs."""
        return self.stop - self.start
