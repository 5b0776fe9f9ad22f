"""WARC and WET files: the text that WET records hold, and the main content of the HTML pages in WARC records.

Documents are `conversion` records, and `response` records with status 200 and a type of HTML; requests,
metadata, redirects, error pages and other types are passed over and not counted. Positions are those of the
records in the decompressed file. Format: https://iipc.github.io/warc-specifications/
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from data_tools.documents import BadRecord, Document, ReadCounts
from data_tools.errors import DataError
from data_tools.reading import lines as limits
from data_tools.reading.inputs import ReadOptions
from data_tools.reading.lines import ByteStream, Extent
from data_tools.reading.records import TOO_LONG, bad_record, decode_text, without_surrogates

_HTML = ("text/html", "application/xhtml+xml")
_PASSED_OVER = "not an HTML page"


class _PlacedStream(io.RawIOBase):
    """A stream that knows its place, as fastwarc wants it."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._at = 0

    def read(self, size: int = -1, /) -> bytes:
        data = self._stream.read(size)
        self._at += len(data)
        return data

    def tell(self) -> int:
        return self._at


def read_warc(
    stream: ByteStream, extent: Extent, path: str, options: ReadOptions, counts: ReadCounts
) -> Iterator[Document | BadRecord]:
    """Yield the documents and bad records of a WARC or WET file; the id is the page's address.

    Raises:
        DataError: the file is damaged or ends inside a record, or a library is missing.
    """
    for record in _records(stream, path):
        position, length = record.stream_pos, record.content_length
        kind = record.headers.get("WARC-Type", "").lower()
        wanted = kind == "conversion" or (kind == "response" and record.is_http)
        too_long = length > limits.MAX_LINE_BYTES
        content = record.reader.read() if wanted and not too_long else b""
        if len(content) + record.reader.consume() < length:
            raise DataError(f"{path} is truncated: it ends inside the record at byte {position}")
        if not wanted:
            continue
        if too_long:
            text, reason = "", f"record is {TOO_LONG}"
        else:
            text, reason = decode_text(content) if kind == "conversion" else _page_text(content)
        if reason == _PASSED_OVER:
            continue
        counts.records += 1
        if reason:
            yield bad_record(counts, path, position, reason, content)
        elif not text or text.isspace():
            counts.empty += 1
        else:
            counts.documents += 1
            uri = record.headers.get("WARC-Target-URI", "")
            yield Document(position, text, without_surrogates(uri).strip("<>"))


def _records(stream: ByteStream, path: str) -> Iterator[Any]:
    try:
        from fastwarc.warc import ArchiveIterator
    except ImportError as error:
        raise DataError(f"{path}: WARC files need pip install 'headwater[web]'") from error
    last = 0
    try:
        for record in ArchiveIterator(_PlacedStream(stream), parse_http=False, stream_detect=False):
            last = record.stream_pos
            yield record
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is damaged after the record at byte {last}: {error}") from error


def _page_text(content: bytes) -> tuple[str, str]:
    """The main content of an HTTP response with an HTML page and "", or "" and why there is none.

    The response is parsed as a record of its own: an error inside would end the iteration of its file.
    """
    from fastwarc.warc import WarcRecord, WarcRecordType

    try:
        from resiliparse.extract.html2text import extract_plain_text
        from resiliparse.parse.encoding import bytes_to_str, detect_encoding
    except ImportError as error:
        raise DataError("text of web pages needs pip install 'headwater[web]'") from error
    response = WarcRecord()
    response.record_type = WarcRecordType.response
    response.is_http = True
    response.set_bytes_content(content)
    try:
        response.parse_http(auto_decode="all")
        if response.http_headers is None or response.http_headers.status_code != 200:
            return "", _PASSED_OVER
        if response.http_content_type not in _HTML:
            return "", _PASSED_OVER
        html = response.reader.read()
        encoding = response.http_charset or detect_encoding(html, from_html_meta=True) or "utf-8"
        text = extract_plain_text(bytes_to_str(html, encoding), main_content=True)
    except (OSError, ValueError, LookupError) as error:
        return "", f"not a readable page: {error}"
    return without_surrogates(text), ""
