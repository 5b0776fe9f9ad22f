"""Find input files behind URLs."""

from __future__ import annotations

import re
from typing import Any

from data_tools.reading.formats import kind_in_directory, kind_of, nothing_found, skipped
from data_tools.reading.http import URLS
from data_tools.reading.inputs import Compression, Format, InputFile, ReadOptions, Status
from data_tools.reading.remote import attempt, file_system, look_up_remote, status_of

_Kind = tuple[Format, Compression]


def find_remote(argument: str, options: ReadOptions) -> list[InputFile]:
    """The files that a URL names: a file, a glob, or a directory (on the web: if it ends with a slash).

    Raises:
        DataError: it finds nothing, cannot be reached, or a name tells no format.
    """
    files = file_system(argument)
    files.invalidate_cache()
    web = argument.startswith(URLS)
    sign = re.search(r"[*]" if web else r"[*?[]", argument)  # "?" in a web address begins its query
    if sign:
        listing = attempt(argument, lambda: files.glob(argument, detail=True))
        root = files._strip_protocol(argument[: sign.start()].rpartition("/")[0])
        wanted = {name: kind_of(name, options) for name in listing if not _hidden(name, root)}
        found = _listed(files, argument, listing, wanted)
    elif argument.endswith("/") or not web:
        info = {} if web else attempt(argument, lambda: files.info(argument))
        if info.get("type") == "file":
            return [_input_file(argument, argument, kind_of(argument, options), status_of(argument, info))]
        listing = attempt(argument, lambda: files.find(argument, detail=True))
        root = files._strip_protocol(argument)
        kinds = {name: kind_in_directory(name.rpartition("/")[2], options) for name in listing}
        wanted = {name: kind for name, kind in kinds.items() if kind and not _hidden(name, root)}
        found = _listed(files, argument, listing, wanted)
    else:
        return [_input_file(argument, argument, kind_of(argument, options), look_up_remote(argument))]
    if not found:
        raise nothing_found(argument, options)
    return found


def _hidden(name: str, root: str) -> bool:
    """Whether a file, or a directory that it is in below `root`, is to be skipped."""
    return any(skipped(part) for part in name.removeprefix(root).split("/"))


def _listed(
    files: Any, argument: str, listing: dict[str, dict[str, Any]], wanted: dict[str, _Kind]
) -> list[InputFile]:
    found = []
    for name, kind in sorted(wanted.items()):
        if listing[name]["type"] == "file":
            url = files.unstrip_protocol(name)
            status = look_up_remote(url) if url.startswith(URLS) else status_of(url, listing[name])
            found.append(_input_file(url, argument, kind, status))
    return found


def _input_file(url: str, argument: str, kind: _Kind, status: Status) -> InputFile:
    return InputFile(url, status.size, status.version, argument, *kind, status.ranges)
