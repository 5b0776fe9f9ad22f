"""Which inputs and options an output was made from, so that a rerun can tell "done" from "other".

An output's record holds its options and, for each input file, size, version (time of change, ETag) and a hash
of the content. A rerun with the same options and inputs is complete already; any difference is an error that
names it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import xxhash

from data_tools.errors import DataError
from data_tools.reading import Chunk, InputFile, chunk_digest, public_name


def input_entries(files: Sequence[InputFile], digests: Iterable[tuple[int, bytes]]) -> list[dict[str, Any]]:
    """What a record says of its inputs.

    Args:
        files: the inputs.
        digests: (file index, `chunk_digest`) of every chunk, in order.
    """
    of_file: dict[int, list[bytes]] = defaultdict(list)
    for index, digest in digests:
        of_file[index].append(digest)
    return [
        {
            "url": public_name(file.url),
            "size": file.size,
            "version": file.version,
            "xxh3_128": _joined(of_file[index]),
        }
        for index, file in enumerate(files)
    ]


def read_record(path: Path) -> dict[str, Any] | None:
    """The record of a complete output, or None if there is none.

    Raises:
        DataError: the file is there and is no record.
    """
    try:
        record = json.loads(path.read_bytes())
        record["options"], record["inputs"]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}): remove the output and run again") from error
    return dict(record)


def check_record(
    record: Mapping[str, Any],
    options: Mapping[str, Any],
    files: Sequence[InputFile],
    chunks: Sequence[Chunk],
    output: object,
    advice: str = "remove it or choose another --out",
) -> None:
    """Check that an existing output was made from these options and inputs.

    Args:
        record: what `read_record` returned for it.
        options: the options of this run, JSON-able.
        files: the inputs of this run.
        chunks: what they are cut into; the same as when the record was made, if they have the same sizes.
        output: what the message calls the output.
        advice: what the user can do.

    Raises:
        DataError: it was not; names the first difference.
    """
    made = record["options"]
    for key in sorted(made.keys() | options.keys()):
        if made.get(key) != options.get(key):
            raise DataError(
                f"{output} was made with {key} {made.get(key)!r}, this is {options.get(key)!r}: {advice}"
            )
    if len(record["inputs"]) != len(files):
        raise DataError(
            f"{output} was made from {len(record['inputs'])} input files, not {len(files)}: {advice}"
        )
    for index, (entry, file) in enumerate(zip(record["inputs"], files, strict=True)):
        same_place = entry["url"] in (file.url, public_name(file.url))
        if same_place and file.version and (file.size, file.version) == (entry["size"], entry["version"]):
            continue
        parts = (chunk_digest(chunk) for chunk in chunks if chunk.file_index == index)
        made_from = entry.get("xxh3_128")  # None: nothing to compare with; then do not read the file for it
        if made_from is None or file.size != entry["size"] or _joined(parts) != made_from:
            raise DataError(f"{output} was made from another {Path(file.url).name} than {file.url}: {advice}")


def _joined(digests: Iterable[bytes]) -> str:
    return xxhash.xxh3_128_hexdigest(b"".join(digests))
