"""Options and words that several commands share."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING

from data_tools.errors import DataError

if TYPE_CHECKING:
    from data_tools.reading import ReadOptions


def add_input_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Where documents come from, how they are read, and how many bad records are borne."""
    parser.add_argument(
        "--input",
        nargs="+",
        required=required,
        help="files, directories, globs or URLs (s3://, https://): jsonl, txt, csv, tsv, parquet, warc, wet, "
        "npy; also .gz .zst .bz2 .xz",
    )
    parser.add_argument(
        "--format", default="auto", help="of every input: jsonl, text, csv, ... (default: by extension)"
    )
    parser.add_argument("--text-key", default="text", help="key or column of the text (default: text)")
    parser.add_argument("--id-key", default="id", help="key or column of the document's name (default: id)")
    parser.add_argument(
        "--source-key", default="source", help="key or column of where it comes from (default: source)"
    )
    parser.add_argument(
        "--text-unit",
        default="file",
        choices=("file", "line", "block"),
        help="what a document of a plain text file is (default: file; block: lines between blank lines)",
    )
    parser.add_argument(
        "--max-bad-fraction",
        type=float,
        default=0.01,
        help="give up if more of the records hold no document (default: 0.01)",
    )
    parser.add_argument("--seed", type=int, default=1234, help="(default: 1234)")


def read_options(arguments: argparse.Namespace, token_key: str = "") -> ReadOptions:
    """The options of `add_input_arguments` that concern reading."""
    from data_tools.reading import ReadOptions

    return ReadOptions(
        format=arguments.format,
        text_unit=arguments.text_unit,
        text_key=arguments.text_key,
        id_key=arguments.id_key,
        source_key=arguments.source_key,
        token_key=token_key,
    )


def bytes_of_mb(option: str, megabytes: float) -> int:
    """The bytes that an option in MB asks for.

    Raises:
        DataError: it is negative, no number, or infinite.
    """
    size = megabytes * 1e6
    if not 0 < size < math.inf:
        raise DataError(f"{option} must be larger than 0 and finite, not {megabytes:g}")
    return int(size)


def state(fresh: bool) -> str:
    """How a result begins that was there already."""
    return "" if fresh else "already complete: "
