"""JSON lines: an object a line, with the text, or with a list of token ids, under a key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import orjson

from data_tools.documents import BadRecord, Document, ReadCounts
from data_tools.reading.inputs import ReadOptions
from data_tools.reading.lines import ByteStream, Extent, line_batches
from data_tools.reading.records import TOO_LONG, bad_record, name_of, tokens_of_list


def read_jsonl(
    stream: ByteStream, extent: Extent, path: str, options: ReadOptions, counts: ReadCounts
) -> Iterator[Document | BadRecord]:
    """Yield the documents and bad lines that begin in the stream's `extent`, see `line_batches`."""
    # No calls of ours and no attributes for a good line: this loop is the speed of the reader.
    loads, tokens = orjson.loads, bool(options.token_key)
    key, id_key, source_key = options.token_key or options.text_key, options.id_key, options.source_key
    for position, lines, too_long in line_batches(stream, extent):
        if too_long:
            counts.records += 1
            yield bad_record(counts, path, position, f"line is {TOO_LONG}", lines[0])
            continue
        for line in lines:
            counts.records += 1
            try:
                record = loads(line)
                value = record[key]
                reason = ""
            except (ValueError, TypeError, KeyError):
                record, value, reason = _parse(line, key)
            if type(value) is str and not tokens:
                if not value or value.isspace():
                    counts.empty += 1
                else:
                    counts.documents += 1
                    name, source = record.get(id_key, ""), record.get(source_key, "")
                    if type(name) is not str or type(source) is not str:
                        name, source = name_of(name), name_of(source)
                    yield Document(position, value, name, source)
            elif line.strip():
                found = reason or _tokens(position, record, value, options)
                if isinstance(found, str):
                    yield bad_record(counts, path, position, found, line)
                elif found.tokens is None or not found.tokens.size:
                    counts.empty += 1
                else:
                    counts.documents += 1
                    yield found
            position += len(line) + 1


def _tokens(position: int, record: dict[str, Any], value: Any, options: ReadOptions) -> Document | str:
    """The document of a record whose value is not the text, or why it holds none."""
    if not options.token_key:
        return f'key "{options.text_key}" is not a string but {type(value).__name__}'
    tokens = tokens_of_list(value)
    if isinstance(tokens, str):
        return f'key "{options.token_key}" is {tokens}'
    name, source = name_of(record.get(options.id_key)), name_of(record.get(options.source_key))
    return Document(position, "", name, source, tokens)


def _parse(line: bytes, key: str) -> tuple[dict[str, Any], Any, str]:
    """Record, value and "" of a line that orjson refused, or why it has none.

    The json module says more about what is wrong, and reads NaN and Infinity under other keys.
    """
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return {}, None, f"not UTF-8 at byte {error.start} of the line"
    except (ValueError, RecursionError) as error:
        return {}, None, f"not JSON: {error}"
    if not isinstance(record, dict):
        return {}, None, f"not a JSON object but {type(record).__name__}"
    if key not in record:
        keys = ", ".join(sorted(record)[:8]) or "none"
        return {}, None, f'no key "{key}" (keys: {keys})'
    if isinstance(record[key], str):
        try:
            record[key].encode()
        except UnicodeEncodeError as error:
            return {}, None, f"lone surrogate at character {error.start} of the text"
    names = {other: name_of(value) for other, value in record.items()}
    return names, record[key], ""
