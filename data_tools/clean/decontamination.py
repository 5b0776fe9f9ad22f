"""The step `decontamination`: documents that hold text of evaluation sets.

Follows GPT-3 (Brown et al. 2020, arXiv:2005.14165, appendix C): n-grams of 13 words, case and punctuation
ignored. A benchmark text that is shorter counts as one n-gram of its own length, down to `min_words`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson

from data_tools.clean.config import DecontaminationConfig, read_input
from data_tools.clean.ngrams import SEPARATOR, Hashes, HashSet, NGramHasher, normalise
from data_tools.clean.outcome import Verdict
from data_tools.errors import DataError

_BATCH_BYTES = 4 << 20
_EXCERPT_BYTES = 120


class Decontamination:
    """Looks for n-grams of the benchmark files in documents.

    Attributes:
        ngrams: different n-grams that are looked for.
        too_short: benchmark texts that were left out because they have too few words.
        nbytes: memory of the n-grams.
    """

    def __init__(self, config: DecontaminationConfig) -> None:
        self._config = config
        batches: defaultdict[int, list[bytes]] = defaultdict(list)
        self.too_short = 0
        for text in benchmark_texts(config):
            data = normalise(text)
            words = data.count(b" ") + 1 if data else 0
            if words >= min(config.min_words, config.ngram_words):
                batches[min(words, config.ngram_words)].append(data)
            else:
                self.too_short += 1
        self._sets = {n: HashSet(_hashes_of(texts, n)) for n, texts in sorted(batches.items(), reverse=True)}
        self.ngrams = sum(len(found.hashes) for found in self._sets.values())
        self.nbytes = sum(found.nbytes for found in self._sets.values())

    def __call__(self, text: str) -> Verdict:
        """Judge a text; the rule is `benchmark_ngram`, the detail one n-gram that was found."""
        data = normalise(text)
        hasher = NGramHasher(data)
        matches, example = 0, ""
        for n, wanted in self._sets.items():
            hashes, starts = hasher.hashes(n)
            found = wanted.find(hashes)
            if len(found) and not matches:
                begin = int(starts[found[0]])
                words = data[begin : begin + 64 * n].split(b" ")[:n]
                example = b" ".join(words)[:_EXCERPT_BYTES].decode("utf-8", "ignore")
            matches += len(found)
        if matches < self._config.min_matches:
            return Verdict(text)
        rule = "benchmark_ngram" if self._config.action == "drop" else ""
        return Verdict(text, rule, example if rule else "", changes=(("decontamination.ngram", matches),))


def benchmark_texts(config: DecontaminationConfig) -> Iterator[str]:
    """The texts of the benchmark files.

    Raises:
        DataError: a file cannot be read, is no .txt or .jsonl, has a bad line, or holds no text at all.
    """
    for path in config.files:
        if not path.endswith((".txt", ".jsonl")):
            raise DataError(f"decontamination.files: {path} is neither .txt nor .jsonl")
        content = read_input(path)
        empty = True
        for text in _txt(path, content) if path.endswith(".txt") else _jsonl(path, content, config.text_keys):
            empty = False
            yield text
        if empty:
            keys = f" under the keys {', '.join(config.text_keys)}" if config.text_keys else ""
            raise DataError(f"decontamination.files: {path} holds no text{keys}")


def _txt(path: str, content: bytes) -> Iterator[str]:
    try:
        text = content.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise DataError(f"decontamination.files: {path} is not UTF-8: {error}") from error
    block: list[str] = []
    for line in [*text.split("\n"), ""]:
        if line.strip():
            block.append(line)
        elif block:
            yield "\n".join(block)
            block = []


def _jsonl(path: str, content: bytes, keys: list[str] | None) -> Iterator[str]:
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise DataError(f"decontamination.files: {path}:{number} is not JSON: {error}") from error
        if keys is not None and isinstance(record, dict):
            record = [record[key] for key in keys if key in record]
        yield from _strings(record)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def _hashes_of(texts: list[bytes], n: int) -> Hashes:
    """Hashes of the n-grams of many texts, hashed in large batches."""
    parts: list[Hashes] = []
    batch: list[bytes] = []
    size = 0
    for text in [*texts, b""]:
        if batch and (not text or size + len(text) > _BATCH_BYTES):
            parts.append(np.unique(NGramHasher(SEPARATOR.join(batch)).hashes(n)[0]))
            batch, size = [], 0
        batch.append(text)
        size += len(text)
    return np.concatenate(parts) if parts else np.empty(0, np.uint64)
