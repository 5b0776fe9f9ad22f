from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools import lengths as lengths_module
from data_tools import stats as stats_module
from data_tools.cli import main
from data_tools.lengths import Lengths
from data_tools.prepare import PrepareOptions, prepare
from data_tools.shard_reader import iterate_documents, open_corpus
from data_tools.stats import corpus_stats, format_stats
from data_tools.tokenizer import Tokenizer
from tests.unit.data_tools.support import make_texts


@settings(max_examples=100, deadline=None)
@given(parts=st.lists(st.lists(st.integers(0, 2**32 - 1) | st.integers(0, 20), max_size=30), max_size=6))
def test_lengths_are_those_of_numpy(parts: list[list[int]]) -> None:
    counted = Lengths()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lengths_module, "_WAITING", 17)
        for part in parts:
            counted.add(np.array(part, dtype=np.uint32))
        summary = counted.summary()
    flat = [length for part in parts for length in part]
    if not flat:
        assert summary is None
        return
    expected = np.percentile(flat, (1, 10, 50, 90, 99, 100), method="lower").tolist()
    assert [summary[f"p{p}"] for p in (1, 10, 50, 90, 99, 100)] == expected
    assert summary["mean"] == pytest.approx(np.mean(flat), abs=0.006)
    bins = Counter(1 << length.bit_length() >> 1 for length in flat)
    assert {least: n for least, n in summary["histogram"] if n} == bins
    leasts = [least for least, _ in summary["histogram"]]
    assert all(b == max(2 * a, 1) for a, b in zip(leasts, leasts[1:], strict=False))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    directory = tmp_path_factory.mktemp("stats")
    rows = [{"text": text, "source": f"s{n % 4}"} for n, text in enumerate(make_texts(80))]
    (directory / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    options = PrepareOptions(name="c", validation_fraction=0.2, block_bytes=1024, shard_bytes=8_000)
    prepare([directory / "d.jsonl"], tokenizer.path, directory / "c", options)
    return directory / "c"


def test_numbers_of_a_corpus(corpus: Path) -> None:
    stats = corpus_stats(corpus)
    for split, manifest in open_corpus(corpus).items():
        found = [tokens for tokens, _ in iterate_documents(manifest)]
        assert stats[split]["documents"] == len(found)
        assert stats[split]["tokens"] == sum(map(len, found))
        assert stats[split]["document_tokens"]["p100"] == max(map(len, found))
        assert sum(n for _, n in stats[split]["document_tokens"]["histogram"]) == len(found)
        assert stats[split]["vocab_used"] == len(np.unique(np.concatenate(found)))
        assert stats[split]["sentence_tokens"] is None
        assert stats[split]["languages"] == {"": {"documents": len(found), "tokens": stats[split]["tokens"]}}
    for unit in ("documents", "tokens"):
        whole = Counter[str]()
        for split in stats.values():
            whole.update({name: share[unit] for name, share in split["sources"].items()})
            assert sum(share[unit] for share in split["sources"].values()) == split[unit]
        assert set(whole) == {"s0", "s1", "s2", "s3"}
        assert unit == "tokens" or set(whole.values()) == {20}


def test_too_many_sources_are_counted_together(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats_module, "_MOST_NAMES", 2)
    found = corpus_stats(corpus)["train"]
    assert len(found["sources"]) == 3 and stats_module.OTHERS in found["sources"]
    assert sum(share["tokens"] for share in found["sources"].values()) == found["tokens"]


def test_the_table_shows_bars_and_shares(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stats = corpus_stats(corpus)
    text = format_stats(stats)
    bins = stats["train"]["document_tokens"]["histogram"]
    assert max(line.count("#") for line in text.splitlines()) == 40
    assert sum("#" in line for line in text.splitlines()) >= sum(n > 0 for _, n in bins)
    assert "train: sources" in text and "  s3" in text and "languages" not in text
    assert main(["stats", str(corpus), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(stats))
