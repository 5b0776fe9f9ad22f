from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import networkx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data_tools.dedup import (
    BAND_DTYPE,
    DedupConfig,
    NearConfig,
    Offsets,
    Signatures,
    exact_duplicates,
    key_bytes,
    near_duplicates,
    near_edges,
    read_band_records,
    read_exact_records,
)
from data_tools.dedup import duplicates as duplicates_module
from data_tools.dedup.minhash import BandHasher
from data_tools.dedup.shingles import shingle_hashes
from data_tools.prepare.drops import Drops, write_drops

NEAR = DedupConfig(exact=True, near=NearConfig())
Found = tuple[set[bytes], set[bytes]]


def make_key(number: int) -> bytes:
    """A key that ends with zero bytes, which numpy's bytes type hides."""
    return number.to_bytes(8, "big") + bytes(8)


def find(
    directory: Path, texts: Sequence[str], config: DedupConfig, files: int = 1, partitions: int = 1
) -> Found:
    """Numbers (as keys) of exact and near duplicates; document i has rank i, whatever file knows of it."""
    offsets: list[Offsets] = []
    for number in range(files):
        signatures = Signatures(config, partitions)
        for index in range(number, len(texts), files):
            signatures.add(texts[index], make_key(index), index // 1000, index % 1000)
        offsets.append(signatures.flush(directory / f"{files}-{partitions}-{number}"))
    exact, edges = set(), []
    for partition in range(partitions):
        exact |= set(key_bytes(exact_duplicates(read_exact_records(offsets, partition))))
        edges.append(near_edges(read_band_records(offsets, partition)))
    return exact, set(key_bytes(near_duplicates(edges)))


def keys(numbers: Iterable[int]) -> set[bytes]:
    return {make_key(number) for number in numbers}


def sentence(rng: random.Random, words: int) -> list[str]:
    return [f"word{rng.randrange(5000)}" for _ in range(words)]


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.text(alphabet="ab \n", max_size=4), max_size=30), partitions=st.integers(1, 5))
def test_exact_duplicates_are_those_of_a_dictionary(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], partitions: int
) -> None:
    seen: set[str] = set()
    expected = set()
    for number, text in enumerate(texts):
        normal = " ".join(text.split())
        expected |= {number} if normal in seen else set()
        seen.add(normal)
    exact, near = find(tmp_path_factory.mktemp("exact"), texts, DedupConfig(), 2, partitions)
    assert (exact, near) == (keys(expected), set())


def test_both_halves_of_the_hash_count() -> None:
    records = np.zeros(3, dtype=read_exact_records([], 0).dtype)
    records["high"] = 7
    records["low"] = [1, 2, 1]
    records["position"] = [5, 6, 4]
    records["key"] = [make_key(1), make_key(2), make_key(3)]
    assert key_bytes(exact_duplicates(records)) == [make_key(1)]


@settings(max_examples=150, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 25)), max_size=80),
    parts=st.integers(1, 6),
    order=st.randoms(use_true_random=False),
    reduce_at=st.integers(1, 40),
)
def test_near_duplicates_are_the_connected_components(
    pairs: list[tuple[int, int]], parts: int, order: random.Random, reduce_at: int
) -> None:
    """`pairs` are (document, band hash); networkx is the reference."""
    pairs = sorted(set(pairs))
    graph = networkx.Graph()
    for document, band in pairs:
        graph.add_edge(("document", document), ("band", band))
    expected = set()
    for component in networkx.connected_components(graph):
        documents = sorted(number for kind, number in component if kind == "document")
        expected |= set(documents[1:])
    order.shuffle(pairs)
    records = np.zeros(len(pairs), dtype=BAND_DTYPE)
    for row, (document, band) in zip(records, pairs, strict=True):
        row["high"], row["key"] = band, make_key(document)
        row["file"], row["position"] = document // 7, document % 7
    edges = [near_edges(records[records["high"] % parts == part]) for part in range(parts)]
    order.shuffle(edges)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates_module, "_LEAST_TO_REDUCE", reduce_at)
        dropped = near_duplicates(iter(edges))
    assert set(key_bytes(dropped)) == keys(expected)
    assert key_bytes(dropped) == sorted(key_bytes(dropped))


def test_a_long_chain_is_one_cluster_and_a_common_band_makes_a_star() -> None:
    count = 20_000
    chain = np.zeros(2 * count, dtype=BAND_DTYPE)
    order = np.random.default_rng(0).permutation(count)
    for half, shift in ((chain[:count], 0), (chain[count:], 1)):
        half["position"] = order
        half["high"] = np.arange(count) + shift
        half["key"] = [make_key(int(number)) for number in order]
    edges = near_edges(chain)
    assert len(edges) == count - 1
    assert set(key_bytes(near_duplicates([edges]))) == keys(range(1, count))
    chain["high"] = 3
    assert len(near_edges(chain[:count])) == count - 1


def test_the_result_depends_on_neither_partitions_nor_files(tmp_path: Path) -> None:
    rng = random.Random(1)
    originals = [sentence(rng, rng.randint(5, 300)) for _ in range(150)]
    texts = [" ".join(words) for words in originals]
    for words in originals[:60]:
        changed = list(words)
        changed[rng.randrange(len(changed))] = "other"
        texts.append(" ".join(changed))
    texts += texts[20:40] + ["", "...", "word", "word"]
    rng.shuffle(texts)
    one = find(tmp_path, texts, NEAR)
    assert one[0] and len(one[1]) > len(one[0])
    for files, partitions in ((2, 1), (1, 7), (3, 64), (5, 2)):
        assert find(tmp_path, texts, NEAR, files, partitions) == one


def jaccard(first: str, second: str) -> float:
    grams = [
        {tuple(words[i : i + 5]) for i in range(len(words) - 4)} for words in (first.split(), second.split())
    ]
    return len(grams[0] & grams[1]) / len(grams[0] | grams[1])


def pairs_of_similarity(rng: random.Random, changed_words: int, count: int) -> list[tuple[str, str]]:
    pairs = []
    for _ in range(count):
        words = [f"w{rng.randrange(10**9)}" for _ in range(400)]
        other = list(words)
        for place in rng.sample(range(0, 395, 5), changed_words):
            other[place] = f"x{rng.randrange(10**9)}"
        pairs.append((" ".join(words), " ".join(other)))
    return pairs


@pytest.mark.parametrize(("changed_words", "low", "high"), [(2, 0.94, 0.96), (9, 0.78, 0.82), (22, 0.5, 0.6)])
def test_planted_near_duplicates_are_found_as_often_as_the_curve_says(
    tmp_path: Path, changed_words: int, low: float, high: float
) -> None:
    pairs = pairs_of_similarity(random.Random(changed_words), changed_words, 300)
    similarity = float(np.mean([jaccard(*pair) for pair in pairs]))
    assert low < similarity < high
    exact, near = find(tmp_path, [text for pair in pairs for text in pair], NEAR)
    expected = NearConfig().match_probability(similarity)
    assert exact == set()
    assert near <= keys(range(1, 600, 2))  # never a false pair, and the first of each stays
    assert abs(len(near) / 300 - expected) < 4 * (expected * (1 - expected) / 300) ** 0.5 + 0.01


def test_the_curve() -> None:
    config = NearConfig()
    found = [round(config.match_probability(s), 3) for s in (0.5, 0.6, 0.7, 0.75, 0.8, 0.85)]
    assert found == [0.053, 0.211, 0.565, 0.772, 0.924, 0.988]
    assert config.num_perm == 112
    with pytest.raises(ValidationError):
        NearConfig.model_validate({"bands": 0})


def test_documents_without_words_are_never_near_duplicates(tmp_path: Path) -> None:
    texts = ["", "...", "!!", "…", "one two", "One, two!", "one", "two one"]
    assert find(tmp_path, texts, NEAR) == (set(), keys([5]))


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("Hello, World", "hello world", True),
        ("a-b", "a b", True),
        ("ab", "a b", False),
        ("x1 y", "x y", False),
        ("naïve café", "naive cafe", False),
        ("नमस्ते दुनिया", "नमस्ते, दुनिया।", True),
        ("नमस्ते", "नमसत", False),
        ("中文", "中 文", True),
        ("한국어 문장", "한국 어문장", False),
        ("ไทย", "ไ ท ย", True),
        ("a b c d e f", "a b c d e f", True),
    ],
)
def test_words(first: str, second: str, same: bool) -> None:
    hashes, counts = shingle_hashes([first.lower(), second.lower()], 5)
    assert (counts[0] == counts[1] and np.array_equal(*np.split(hashes, [counts[0]]))) == same


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.text(alphabet="ab.Ω中 ", max_size=25), min_size=1, max_size=8),
    ngram=st.integers(1, 6),
)
def test_shingles_are_those_of_plain_python(texts: list[str], ngram: int) -> None:
    """Equal shingles, and only those, have equal hashes; their order is that of the text."""
    expected: list[tuple[str, ...]] = []
    expected_counts = []
    for text in texts:
        words = "".join(f" {c} " if c == "中" else c if c.isalpha() else " " for c in text).split()
        grams = [tuple(words[i : i + ngram]) for i in range(max(1, len(words) - ngram + 1))] if words else []
        expected += grams
        expected_counts.append(len(grams))
    hashes, counts = shingle_hashes(texts, ngram)
    assert counts.tolist() == expected_counts
    by_gram = dict(zip(expected, hashes.tolist(), strict=True))
    assert [by_gram[gram] for gram in expected] == hashes.tolist()
    assert len(set(by_gram.values())) == len(by_gram)


def test_batches_and_cuts_change_nothing_but_a_few_shingles() -> None:
    rng = random.Random(3)
    texts = [" ".join(sentence(rng, rng.choice([0, 3, 100, 30_000, 50_000]))) for _ in range(40)]
    together = BandHasher(NearConfig())
    for text in texts:
        together.add(text)
    bands, has_words = together.take()
    for number, text in enumerate(texts):
        alone = BandHasher(NearConfig())
        alone.add(text)
        row, word = alone.take()
        assert bool(word[0]) == bool(has_words[number]) == bool(text)
        if text:
            assert np.array_equal(row[0], bands[number])
    assert together.take()[0].shape == (0, 14)


GOLDEN = "print(__import__('tests.unit.data_tools.test_dedup', fromlist=['x']).golden())"


def golden() -> str:
    hasher = BandHasher(NearConfig(bands=2, rows=4))
    hasher.add("The quick brown fox jumps over the lazy dog, again and again and again.")
    return hasher.take()[0].tobytes().hex()


def test_signatures_are_the_same_in_every_process_and_release() -> None:
    """A change of rensa or of the shingles must be noticed: workers on other machines compare with these."""
    fresh = subprocess.run([sys.executable, "-c", GOLDEN], capture_output=True, text=True, check=True)
    assert fresh.stdout.strip() == golden() == "5ff1cfc769a48225a55e65bf3c6dcd96"


def test_keys_of_dropped_documents_are_found_again(tmp_path: Path) -> None:
    rng = random.Random(3)
    known = [make_key(rng.randrange(1 << 64)) for _ in range(50)] + [rng.randbytes(16) for _ in range(50)]
    paths = [tmp_path / f"{number}.npy" for number in range(3)]
    for number, path in enumerate(paths):  # the last holds none
        write_drops(path, np.array(known[number::2] if number < 2 else [], "S16"))
    asked = [*known[::3], *(rng.randbytes(16) for _ in range(30)), known[0][:15] + b"\1", bytes(16)]
    found = Drops(paths).contain(np.array(asked, "S16"))
    assert found.tolist() == [key in known for key in asked]
    assert not Drops([]).contain(np.array(asked, "S16")).any()
    assert Drops(paths).contain(np.array([], "S16")).tolist() == []
