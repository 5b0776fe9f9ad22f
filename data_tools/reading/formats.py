"""Which format and compression a file has: by its name, checked by its first bytes."""

from __future__ import annotations

from urllib.parse import urlsplit

from data_tools.errors import DataError
from data_tools.reading.http import URLS
from data_tools.reading.inputs import Compression, Format, InputFile, ReadOptions

_FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".txt": "text",
    ".text": "text",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".warc": "warc",
    ".wet": "warc",
    ".npy": "npy",
}
_COMPRESSIONS: dict[str, Compression] = {".gz": "gz", ".zst": "zst", ".bz2": "bz2", ".xz": "xz"}
_NEVER_COMPRESSED = ("parquet", "npy")

_MAGIC: dict[str, tuple[bytes, ...]] = {
    "gz": (b"\x1f\x8b",),
    # A frame, or one of the 16 skippable frames that parallel compressors put first (RFC 8878, 3.1).
    "zst": (b"\x28\xb5\x2f\xfd", *(bytes([0x50 + i]) + b"\x2a\x4d\x18" for i in range(16))),
    "bz2": (b"BZh",),
    "xz": (b"\xfd7zXZ\x00",),
    "parquet": (b"PAR1",),
    "npy": (b"\x93NUMPY",),
}
_MISTAKEN = {  # stricter than _MAGIC: a text may well begin with "BZh" or "P*M"
    "gz": (b"\x1f\x8b\x08",),
    "zst": (b"\x28\xb5\x2f\xfd",),
    "bz2": tuple(b"BZh%d1AY&SY" % level for level in range(1, 10)),
    "xz": _MAGIC["xz"],
    "parquet": (b"PAR1",),
    "npy": _MAGIC["npy"],
}
MAGIC_BYTES = 10
"""How many first bytes `check_magic` wants to see."""


def known_extensions(wanted: Format) -> str:
    """The extensions of a format, or of all, for messages."""
    names = [name for name, known in _FORMATS.items() if wanted in ("auto", known)]
    return f"{' '.join(names)} (text formats also with {' '.join(_COMPRESSIONS)})"


def detect(url: str, wanted: Format) -> tuple[Format, Compression] | None:
    """Format and compression of a file that is to be read as `wanted`; None: the name tells no format.

    Raises:
        DataError: the format cannot be compressed.
    """
    path = urlsplit(url).path if url.startswith(URLS) else url
    stem, dot, extension = path[path.rfind("/") + 1 :].lower().rpartition(".")
    compression = _COMPRESSIONS.get(dot + extension, "")
    if compression:
        stem, dot, extension = stem.rpartition(".")
    found = _FORMATS.get(dot + extension)
    if wanted == "auto" or (wanted == "csv" and found == "tsv"):
        wanted = found or "auto"
    if wanted == "auto":
        return None
    if compression and wanted in _NEVER_COMPRESSED:
        raise DataError(f"{url}: {wanted} inside .{compression} cannot be read: decompress it first")
    return wanted, compression


def kind_of(url: str, options: ReadOptions) -> tuple[Format, Compression]:
    """Format and compression of a file that was named.

    Raises:
        DataError: its name tells no format.
    """
    kind = detect(url, options.format)
    if kind is None:
        raise DataError(
            f"{url}: the name tells no format, {known_extensions('auto')} do: give it with --format"
        )
    return kind


def kind_in_directory(name: str, options: ReadOptions) -> tuple[Format, Compression] | None:
    """Format and compression of a file that was found in a directory, None if it is not wanted."""
    if skipped(name):
        return None
    kind = detect(name, "auto")
    return detect(name, options.format) if kind and _is_wanted(kind[0], options) else None


def _is_wanted(found: Format, options: ReadOptions) -> bool:
    return options.format in ("auto", found) or (options.format == "csv" and found == "tsv")


def skipped(name: str) -> bool:
    """Whether a file is hidden, or not finished by another program."""
    return name.startswith(".") or name.endswith(".partial")


def nothing_found(argument: str, options: ReadOptions) -> DataError:
    """The error for a directory or glob without files to read."""
    known = known_extensions(options.format)
    return DataError(f"no input files under {argument}; of a directory those are read that end in {known}")


def check_magic(file: InputFile, head: bytes) -> None:
    """Check the first bytes of a file against what its name says.

    Raises:
        DataError: they are not of this compression or format, or of another one.
    """
    expected = file.compression or file.format
    if expected in _MAGIC and not head.startswith(_MAGIC[expected]):
        what = "is empty" if not head else f"begins with {head[:4].hex(' ')}"
        raise DataError(f"{file.url} {what}, so it is not {expected} data as its name says: rename it")
    for kind, magic in _MISTAKEN.items():
        if kind != expected and head.startswith(magic):
            raise DataError(f"{file.url} holds {kind} data: rename it to end in .{kind}, or remove it")
