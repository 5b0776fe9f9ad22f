"""One HTML page about a corpus: what came in, what was dropped and why, and what it holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow.parquet as pq

from data_tools import report_page as html
from data_tools.corpus_record import corpus_record
from data_tools.prepare import QUARANTINE_NAME
from data_tools.publish import require_file, write_file
from data_tools.shard_format import Manifest
from data_tools.shard_reader import iterate_documents, open_corpus
from data_tools.tokenizer import corpus_tokenizer, load_tokenizer

_SAMPLES, _QUARANTINED, _SOURCES = 5, 20, 20
_SAMPLE_CHARACTERS = 1500


def write_report(corpus: Path, out: Path) -> None:
    """Write the page of a corpus that `prepare` or `merge` made.

    Raises:
        DataError: the directory is no corpus, a shard is damaged, or `out` cannot be written.
    """
    require_file(out)
    record = corpus_record(corpus)
    manifests = open_corpus(corpus)
    facts = _Facts(manifests)
    name = manifests["train"].corpus
    tokens = sum(manifest.tokens for manifest in manifests.values())
    documents = sum(manifest.documents for manifest in manifests.values())
    sections = [
        html.section("Splits", _splits(manifests)),
        html.section("From records to documents", *_funnel(record)),
        html.section("Why documents were dropped", *_rules(record)),
        html.section("Length of the documents", facts.lengths()),
        html.section("Where they come from", facts.shares("source", "source")),
        html.section("Languages", facts.shares("language", "language")),
        html.section("Vocabulary", *_tokenizer(corpus)),
        html.section("Samples of what was kept", *_kept(corpus, manifests["train"])),
        html.section("Samples of what was dropped or changed", *_samples(record)),
        html.section("Quarantine", *_quarantine(corpus)),
    ]
    page = html.page(f"Corpus {name}", f"{documents:,} documents, {tokens:,} tokens", filter(None, sections))
    write_file(out, page.encode())


class _Facts:
    """Counts over the provenance of all documents, read a few thousand rows at a time."""

    def __init__(self, manifests: Mapping[str, Manifest]) -> None:
        self._tokens: dict[str, Counter[str]] = {"source": Counter(), "language": Counter()}
        self._lengths: Counter[int] = Counter()
        for manifest in manifests.values():
            for shard in manifest.shards:
                if shard.provenance is not None:
                    self._add(manifest.directory / shard.provenance.path)

    def _add(self, path: Path) -> None:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=["source", "language", "tokens"]):
                tokens = batch.column("tokens").to_numpy(zero_copy_only=False)
                classes = np.floor(np.log2(tokens)).astype(np.int64)
                self._lengths.update(dict(enumerate(np.bincount(classes).tolist())))
                for key, counter in self._tokens.items():
                    for value, count in zip(batch.column(key).to_pylist(), tokens.tolist(), strict=True):
                        counter[value] += count

    def lengths(self) -> str:
        """Documents by length in tokens, in powers of two."""
        classes = [c for c, count in self._lengths.items() if count]
        if not classes:
            return ""
        rows = [(c, self._lengths[c]) for c in range(min(classes), max(classes) + 1)]
        shown = [(f"{2**c:,} to {2 ** (c + 1) - 1:,}", float(n), f"{n:,}") for c, n in rows]
        return html.bars(shown, ("tokens", "documents"))

    def shares(self, key: str, title: str) -> str:
        """Tokens by source or language."""
        counter = self._tokens[key]
        if not any(counter):
            return ""
        total = sum(counter.values())
        most = counter.most_common(_SOURCES)
        rows = [(name or "unknown", float(n), f"{n:,} ({n / total:.1%})") for name, n in most]
        if rest := total - sum(n for _, n in most):
            rows.append((f"{len(counter) - len(most)} others", float(rest), f"{rest:,} ({rest / total:.1%})"))
        return html.bars(rows, (title, "tokens"))


def _splits(manifests: Mapping[str, Manifest]) -> str:
    rows = [
        [
            split,
            f"{m.documents:,}",
            f"{m.tokens:,}",
            f"{m.sentence_count:,}" if m.sentences else "-",
            f"{len(m.shards):,}",
            f"{sum(shard.bytes for shard in m.shards) / 1e6:,.1f} MB",
        ]
        for split, m in manifests.items()
    ]
    return html.table(["split", "documents", "tokens", "sentences", "shards", "size"], rows)


def cleaning_steps(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The funnel's steps; duplicates, which are found later, are counted elsewhere in the record."""
    return [step for step in (record.get("funnel") or {}).get("steps", []) if step["name"] != "dedup"]


def _funnel(record: Mapping[str, Any]) -> Iterator[str]:
    """Documents left after each step."""
    counts = record.get("records")
    if counts is None:
        return
    duplicates = record.get("duplicates")
    rows = [("records read", counts["records"]), ("documents in them", counts["documents"])]
    left = counts["documents"]
    for step in cleaning_steps(record):
        left = step["documents_in"] - step["documents_dropped"]
        rows.append((f"after {step['name']}", left))
    if duplicates is not None:
        rows.append(("after exact duplicates", left - duplicates["exact"]))
        rows.append(("after near duplicates", left - duplicates["dropped"]))
    first = rows[0][1] or 1
    yield html.bars(
        [(label, float(n), f"{n:,} ({n / first:.1%})") for label, n in rows], ("step", "documents")
    )
    yield html.paragraph(
        f"{counts['bad']:,} bad records and {counts['empty']:,} empty documents were left out."
    )


def _rules(record: Mapping[str, Any]) -> Iterator[str]:
    for step in cleaning_steps(record):
        rows = sorted(step["dropped"].items(), key=lambda item: -item[1]["documents"])
        if rows:
            bars = [(rule, float(n["documents"]), f"{n['documents']:,}") for rule, n in rows]
            yield f"{html.heading(step['name'])}{html.bars(bars, ('rule', 'documents'), drop=True)}"
        if step["documents_changed"]:
            edits = ", ".join(f"{kind} {count:,}" for kind, count in step["edits"].items())
            yield html.paragraph(
                f"{step['name']} changed {step['documents_changed']:,} documents"
                + (f": {edits}" if edits else "")
            )


def _tokenizer(corpus: Path) -> Iterator[str]:
    tokenizer = load_tokenizer(corpus_tokenizer(corpus))
    yield html.paragraph(f"{tokenizer.file_name}, {tokenizer.vocab_size:,} ids, sha256 {tokenizer.sha256}")


def _kept(corpus: Path, manifest: Manifest) -> Iterator[str]:
    tokenizer = load_tokenizer(corpus_tokenizer(corpus))
    for tokens, _ in islice(iterate_documents(manifest), _SAMPLES):
        yield html.text(_shortened(tokenizer.decode(tokens[:-1])), f"{len(tokens):,} tokens")


def _samples(record: Mapping[str, Any]) -> Iterator[str]:
    samples = (record.get("funnel") or {}).get("samples", [])
    for (kind, step), groups in groupby(samples, key=lambda group: (group["kind"], group["step"])):
        parts = [part for group in groups for part in _sample_texts(group)]
        yield html.folded(f"{kind} by {step}: {len(parts)} samples", *parts)


def _sample_texts(group: Mapping[str, Any]) -> Iterator[str]:
    for sample in group["documents"]:
        where = " ".join(filter(None, [group["rule"], sample["detail"], sample["source"], sample["id"]]))
        if group["kind"] == "changed":
            yield html.before_and_after(sample["before"], sample["after"], where)
        else:
            yield html.text(_shortened(sample["before"]), where)


def _quarantine(corpus: Path) -> Iterator[str]:
    path = corpus / QUARANTINE_NAME
    if not path.exists():
        return
    with path.open("rb") as lines:
        for bad in map(orjson.loads, islice(lines, _QUARANTINED)):
            yield html.text(bad["excerpt"], f"{bad['path']}, record {bad['record']}: {bad['reason']}")
    yield html.paragraph(f"All of them stand in {QUARANTINE_NAME}.")


def _shortened(content: str) -> str:
    return content if len(content) <= _SAMPLE_CHARACTERS else content[:_SAMPLE_CHARACTERS] + " …"
