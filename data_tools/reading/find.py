"""Find input files: files, globs, directories and URLs."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterator, Sequence

from data_tools.errors import DataError
from data_tools.reading.find_remote import find_remote
from data_tools.reading.formats import kind_in_directory, kind_of, nothing_found, skipped
from data_tools.reading.inputs import Compression, Format, InputFile, ReadOptions


def find_inputs(arguments: Sequence[str], options: ReadOptions) -> list[InputFile]:
    """The files that the arguments name, in their order; those of one argument sorted by name.

    An argument is a file, a glob (** for any depth) that takes files only, or a directory, of which every
    file with a known extension at any depth is taken; all of them also as URLs. In globs and directories
    hidden files and *.partial are skipped.

    Raises:
        DataError: an argument finds nothing, a file is found twice, or its name tells no format.
    """
    found: list[InputFile] = []
    for argument in arguments:
        find = find_remote if "://" in argument else _find_local
        found += find(argument, options)
    _check_distinct(found)
    _check_keys(found, options)
    return found


def _find_local(argument: str, options: ReadOptions) -> list[InputFile]:
    path = os.path.abspath(argument)
    if os.path.isdir(path):
        found = sorted(_below(path, argument, options, ()), key=lambda file: file.url)
    elif os.path.exists(path) or not glob.has_magic(argument):
        found = [_named(path, argument, options)]
    else:
        names = (name for name in glob.iglob(path, recursive=True) if not skipped(os.path.basename(name)))
        found = [_named(name, argument, options) for name in sorted(names) if not os.path.isdir(name)]
    if not found:
        raise nothing_found(argument, options)
    return found


def _below(path: str, argument: str, options: ReadOptions, above: tuple[str, ...]) -> Iterator[InputFile]:
    """The files in a directory and those below; `above` are the real paths of those it is in."""
    real = os.path.realpath(path)
    if real in above:
        raise DataError(f"{path} is a symbolic link to a directory that it is in: remove it, or name files")
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_dir():
                    if not skipped(entry.name):
                        yield from _below(entry.path, argument, options, (*above, real))
                elif kind := kind_in_directory(entry.name, options):
                    yield _input_file(entry.path, argument, kind, entry.stat())
    except OSError as error:
        raise DataError(f"cannot read {error.filename or path}: {error.strerror}") from error


def _named(path: str, argument: str, options: ReadOptions) -> InputFile:
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"no input file {path}: {error.strerror}") from error
    return _input_file(path, argument, kind_of(path, options), status)


def _input_file(
    path: str, argument: str, kind: tuple[Format, Compression], status: os.stat_result
) -> InputFile:
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path} is not a regular file: write what it gives to one first")
    return InputFile(path, status.st_size, str(status.st_mtime_ns), argument, *kind)


def _check_distinct(files: Sequence[InputFile]) -> None:
    """Refuse a file that is found twice, by whatever path."""
    directories: dict[str, str] = {}  # real path of each: resolving every file would take long for millions
    seen: dict[str, InputFile] = {}
    for file in files:
        path = file.url
        if not file.remote:
            directory, name = os.path.split(path)
            if directory not in directories:
                directories[directory] = os.path.realpath(directory)
            path = os.path.realpath(path) if os.path.islink(path) else f"{directories[directory]}/{name}"
        if path in seen:
            raise DataError(
                f"the input file {path} is named twice: by {seen[path].argument} and by {file.argument}"
            )
        seen[path] = file


def _check_keys(files: Sequence[InputFile], options: ReadOptions) -> None:
    """Refuse a token key for formats that hold text only."""
    for file in files if options.token_key else ():
        if file.format not in ("jsonl", "parquet", "npy"):
            raise DataError(f"{file.url}: a token key is for jsonl and parquet, this is {file.format}")
