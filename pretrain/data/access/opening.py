"""Opening a corpus wherever it lies: its tables first, then its shards."""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from pathlib import Path

from data_tools.errors import DataError
from data_tools.shard_format import (
    BLOCKS_NAME,
    MANIFEST_NAME,
    Manifest,
    load_manifest,
    load_tables,
    parse_manifest,
)
from data_tools.tokenizer import FILE_NAMES, Tokenizer, corpus_tokenizer, load_tokenizer
from pretrain.config.data import CorpusConfig, DataConfig
from pretrain.data.access.cache import ShardCache
from pretrain.data.access.cached import CachedShards
from pretrain.data.access.errors import AccessError, NoRanges, NotFound
from pretrain.data.access.local import MAX_OPEN_SHARDS, LocalShards
from pretrain.data.access.origin import HttpOrigin, Origin, UrlOrigin
from pretrain.data.access.pipe import PipeOrigin
from pretrain.data.access.ranges import RangeShards
from pretrain.data.access.retry import Retry, with_retries
from pretrain.data.access.source import Source

CACHE_DIRECTORY = "shards"
"""Of shards, in the directory for caches, where `data.cache_dir` names no other."""


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach corpora.

    Attributes:
        data: the configuration.
        cache: directory for caches where `data.cache_dir` names no other.
    """

    data: DataConfig
    cache: Path

    @property
    def cache_directory(self) -> Path:
        """Of the shard cache."""
        return Path(self.data.cache_dir) if self.data.cache_dir else self.cache / CACHE_DIRECTORY

    @property
    def retry(self) -> Retry:
        """Of every read."""
        return Retry(self.data.remote.attempts)

    def origin(self, template: str) -> Origin:
        """The place that a template of URLs leads to."""
        import fsspec

        scheme, timeout = template.partition(":")[0], self.data.remote.timeout_seconds
        if scheme in ("http", "https"):
            return HttpOrigin(template, timeout)
        if scheme != "pipe" and scheme in fsspec.available_protocols():
            return UrlOrigin(template, timeout)
        return PipeOrigin(template, timeout)


def is_url(path: str) -> bool:
    """Whether a corpus path is a URL, not a directory."""
    return "://" in path


def open_tables(entry: CorpusConfig, split: str, access: Access) -> Manifest | None:
    """The manifest and block table of a split, fetched and checked; None if a corpus has no validation split.

    Raises:
        DataError: they cannot be read, or are damaged.
    """
    if is_url(entry.path):
        origin = f"{entry.path.rstrip('/')}/{split}"
        raw = _fetch(f"{origin}/{MANIFEST_NAME}", access, optional=split != "train")
        if raw is None:
            return None
        blocks = _fetch(f"{origin}/{BLOCKS_NAME}", access)
        assert blocks is not None
        return parse_manifest(raw, blocks, origin, Path(split))
    directory = Path(entry.path) / split
    if not (directory / MANIFEST_NAME).exists() and Path(entry.path).is_dir() and split != "train":
        return None
    return load_manifest(directory) if entry.shards is None else load_tables(directory)


def open_source(entry: CorpusConfig, manifest: Manifest, access: Access) -> Source:
    """The shards of a split.

    Raises:
        DataError: they cannot be reached in the way that `data.access` asks for.
    """
    if entry.shards is None and not is_url(entry.path):
        return LocalShards(manifest, max(1, MAX_OPEN_SHARDS // len(access.data.corpora)))
    base = entry.shards or f"{entry.path.rstrip('/')}/{{shard}}"
    origin = access.origin(base.replace("{shard}", f"{manifest.split}/{{shard}}"))
    if access.data.access != "cache" and _has_ranges(origin, manifest, access):
        remote = access.data.remote
        return RangeShards(manifest, origin, access.retry, remote.threads, remote.memory_mb << 20)
    cache = ShardCache(access.cache_directory, int(access.data.cache_gb * 2**30))
    return CachedShards(manifest, origin, cache, access.retry, access.data.remote.threads)


def fetch_tokenizer(path: str, access: Access) -> Tokenizer:
    """The tokenizer of a corpus, or the file at a path; from behind a URL it is copied into the cache.

    Args:
        path: a corpus (directory or URL) or a tokenizer file.
        access: how to reach it.

    Raises:
        DataError: it cannot be read.
    """
    if not is_url(path):
        return load_tokenizer(corpus_tokenizer(Path(path)) if Path(path).is_dir() else Path(path))
    names = [""] if path.endswith(FILE_NAMES) else [f"/{name}" for name in FILE_NAMES]
    for name in names:
        content = _fetch(path.rstrip("/") + name, access, optional=True)
        if content is None:
            continue
        file_name = (path + name).rpartition("/")[2]
        draft = access.cache / "tokenizers" / f".{uuid.uuid4().hex}" / file_name
        try:
            draft.parent.mkdir(parents=True)
            draft.write_bytes(content)
            final = draft.parent.parent / load_tokenizer(draft).sha256 / file_name
            final.parent.mkdir(exist_ok=True)
            os.replace(draft, final)
            draft.parent.rmdir()
        except OSError as error:
            raise DataError(f"cannot keep the tokenizer of {path}: {error}") from error
        return load_tokenizer(final)
    raise DataError(f"no tokenizer at {path}: expected one of {', '.join(FILE_NAMES)}")


def _fetch(url: str, access: Access, optional: bool = False) -> bytes | None:
    origin = access.origin(url)
    try:
        return with_retries(lambda: b"".join(origin.stream("")), access.retry)
    except AccessError as error:
        if optional and isinstance(error, NotFound):
            return None
        raise DataError(f"cannot read {url}: {error}") from error


def _has_ranges(origin: Origin, manifest: Manifest, access: Access) -> bool:
    """Read the first bytes of the first shard: finds out early what is wrong with a place, too."""
    path = manifest.shards[0].path
    try:
        with_retries(lambda: origin.read(path, 0, min(512, manifest.shards[0].bytes)), access.retry)
    except NoRanges as error:
        if access.data.access == "range":
            raise DataError(f"data.access: range, but {origin.name(path)}: {error}") from error
        return False
    except AccessError as error:
        raise DataError(f"shard {origin.name(path)}: {error}") from error
    return True
