"""Find input files: files, globs, directories and URLs."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import replace

from data_tools.errors import DataError
from data_tools.reading.find_remote import find_remote
from data_tools.reading.formats import kind_in_directory, kind_of, nothing_found, skipped
from data_tools.reading.inputs import Compression, Format, InputFile, ReadOptions, public_name

_CORPUS_RECORDS = ("prepare.json", "merge.json")  # what `prepare` and `merge` leave in theirs


def find_inputs(arguments: Sequence[str], options: ReadOptions) -> list[InputFile]:
    """The files that the arguments name, sorted by path or URL, however the arguments put it.

    An argument is a file, a glob (** for any depth) that takes files only, or a directory, of which every
    file with a known extension at any depth is taken; all of them also as URLs. In globs and directories
    hidden files and *.partial are skipped, in local directories also the corpora that we made below them.

    Raises:
        DataError: an argument finds nothing, a file is found twice, or its name tells no format or is not
            UTF-8.
    """
    found: list[InputFile] = []
    for argument in arguments:
        if not argument:
            raise DataError("an --input is empty: name a file, a directory, a glob or a URL")
        _check_name(argument)
        find = find_remote if "://" in argument else _find_local
        found += find(argument, options)
    _check_distinct(found)
    gives_tokens(found, options)
    return _name(sorted(found, key=lambda file: file.url))


def _name(files: Sequence[InputFile]) -> list[InputFile]:
    """The files with their `name`, which depends neither on where they lie nor on how they were given."""
    local = {os.path.dirname(file.url) for file in files if not file.remote}
    root = os.path.commonpath(local) if local else ""
    return [
        replace(file, name=public_name(file.url) if file.remote else os.path.relpath(file.url, root))
        for file in files
    ]


def gives_tokens(files: Sequence[InputFile], options: ReadOptions) -> bool:
    """Whether the documents of these files come tokenised already.

    Raises:
        DataError: only some do, or there is a token key for a format that holds text only.
    """
    if options.token_key:
        for file in files:
            if file.format not in ("jsonl", "parquet", "npy"):
                raise DataError(f"{file.url}: a token key is for jsonl and parquet, this is {file.format}")
        return bool(files)
    array = next((file for file in files if file.format == "npy"), None)
    text = next((file for file in files if file.format != "npy"), None)
    if array is not None and text is not None:
        raise DataError(
            f"{array.url} holds token ids, {text.url} text: name only one kind as --input, or choose it with "
            "--format (lists of ids in jsonl and parquet: --token-key)"
        )
    return array is not None


def _find_local(argument: str, options: ReadOptions) -> list[InputFile]:
    path = os.path.abspath(argument)
    if os.path.isdir(path):
        found = sorted(_below(path, argument, options, ()), key=lambda file: file.url)
    elif os.path.exists(path) or not glob.has_magic(argument):
        found = [_named(path, argument, options)]
    else:
        # Made absolute only now: the working directory's own name may look like a glob.
        matches = map(os.path.abspath, glob.iglob(argument, recursive=True))
        names = (name for name in matches if not skipped(os.path.basename(name)))
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
                    if not skipped(entry.name) and not _is_corpus(entry.path):
                        yield from _below(entry.path, argument, options, (*above, real))
                elif kind := kind_in_directory(entry.name, options):
                    yield _input_file(entry.path, argument, kind, entry.stat())
    except OSError as error:
        raise DataError(f"cannot read {error.filename or path}: {error.strerror}") from error


def _is_corpus(path: str) -> bool:
    """Whether we made the directory: its tables and its quarantine are no documents, wherever --out was."""
    if not any(os.path.exists(os.path.join(path, name)) for name in _CORPUS_RECORDS):
        return False
    with os.scandir(path) as entries:  # a user's own file may be called merge.json too
        return any(os.path.exists(os.path.join(entry.path, "manifest.json")) for entry in entries)


def _named(path: str, argument: str, options: ReadOptions) -> InputFile:
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"no input file {path}: {error.strerror}") from error
    return _input_file(path, argument, kind_of(path, options), status)


def _input_file(
    path: str, argument: str, kind: tuple[Format, Compression], status: os.stat_result
) -> InputFile:
    _check_name(path)
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


def _check_name(name: str) -> None:
    """Refuse a name that no record could hold: its bytes that are not UTF-8 are lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"the name of the input {name!r} is not UTF-8: rename it") from error
