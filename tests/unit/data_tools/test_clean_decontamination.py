from __future__ import annotations

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.clean.config import DecontaminationConfig
from data_tools.clean.decontamination import Decontamination
from data_tools.clean.ngrams import SEPARATOR, HashSet, NGramHasher, normalise
from data_tools.errors import DataError

WORDS = [f"w{i}" for i in range(40)]


def reference_words(text: str) -> list[str]:
    """Lower case, no punctuation: everything but letters, digits, marks and white space goes."""
    return re.sub(r"[^\w\s]|_", "", text.lower()).split()


def grams(words: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def step(folder: Path, texts: list[str], **options: object) -> Decontamination:
    path = folder / "bench.jsonl"
    path.write_text("".join(json.dumps({"question": text}) + "\n" for text in texts))
    return Decontamination(DecontaminationConfig.model_validate({"files": [str(path)], **options}))


@given(st.one_of(st.text(max_size=40), st.text(st.characters(max_codepoint=127), max_size=60)))
@settings(max_examples=500, deadline=None)
def test_normalise_is_the_same_for_ascii_and_the_rest(text: str) -> None:
    # Control characters are neither letters nor white space, so the reference drops them too.
    assert normalise(text).decode() == " ".join(reference_words(text))
    long = (text + "  ") * (3000 // (len(text) + 2))
    assert normalise(long).decode() == " ".join(reference_words(long))
    assert normalise(text + " é").decode() == " ".join([*reference_words(text), "é"])


@given(st.lists(st.sampled_from(["a", "b", "ab", "ba", "é"]), max_size=30), st.integers(1, 6))
@settings(max_examples=300, deadline=None)
def test_equal_ngrams_have_equal_hashes_and_different_ones_different(words: list[str], n: int) -> None:
    data = normalise(" ".join(words))
    hashes, starts = NGramHasher(data).hashes(n)
    expected = grams(words, n)
    assert len(hashes) == len(expected)
    by_hash = dict(zip(hashes.tolist(), expected, strict=True))
    assert len(by_hash) == len(set(expected))
    assert [by_hash[value] for value in hashes.tolist()] == expected
    assert [data[start:].split(b" ")[0].decode() for start in starts] == [gram[0] for gram in expected]


def test_a_hash_does_not_depend_on_the_place_in_a_long_text() -> None:
    rng = random.Random(1)
    words = [rng.choice(WORDS) for _ in range(60_000)]
    hashes, starts = NGramHasher(" ".join(words).encode()).hashes(13)
    assert len(hashes) == len(words) - 12
    assert np.all(np.diff(starts) > 0)
    for at in [0, 1, 9_000, 11_111, 23_456, 59_987, *(rng.randrange(59_988) for _ in range(200))]:
        alone, _ = NGramHasher(" ".join(words[at : at + 13]).encode()).hashes(13)
        assert alone.tolist() == [hashes[at]]


def test_no_ngram_reaches_across_texts_of_a_batch() -> None:
    texts = ["a b c", "d e", "f g h i"]
    batch, _ = NGramHasher(SEPARATOR.join(text.encode() for text in texts)).hashes(3)
    single = [value for text in texts for value in NGramHasher(text.encode()).hashes(3)[0].tolist()]
    assert batch.tolist() == single and len(single) == 3


def test_an_overlong_word_is_left_out_and_does_no_harm() -> None:
    data = b"a b " + b"x" * 100_000 + b" c d e"
    hashes, _ = NGramHasher(data).hashes(2)
    assert len(hashes) == 3
    assert hashes[-1] == NGramHasher(b"d e").hashes(2)[0][0]


@given(st.lists(st.integers(0, 2**64 - 1), max_size=40), st.lists(st.integers(0, 2**64 - 1), max_size=40))
@settings(max_examples=200, deadline=None)
def test_a_hash_set_finds_what_is_in_it(members: list[int], others: list[int]) -> None:
    found = HashSet(np.array(members, np.uint64)).find(np.array(members + others, np.uint64))
    assert found.tolist() == [i for i, value in enumerate(members + others) if value in set(members)]


def test_memory_is_as_stated() -> None:
    found = HashSet(np.random.default_rng(1).integers(0, 1 << 63, 100_000).astype(np.uint64))
    assert 10 * 100_000 <= found.nbytes <= 12 * 100_000


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_a_document_is_dropped_if_and_only_if_it_shares_an_ngram(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    draw = st.lists(st.sampled_from(["One", "two,", "three", "(four)", "five!"]), max_size=12)
    benchmarks = data.draw(st.lists(draw.map(" ".join), min_size=1, max_size=4))
    document = " ".join(
        data.draw(st.lists(st.sampled_from(["one", "two", "Three.", "four", "FIVE"]), max_size=30))
    )
    n, least = data.draw(st.sampled_from([(4, 2), (3, 3), (5, 4)]))
    decontaminate = step(tmp_path_factory.mktemp("d"), benchmarks, ngram_words=n, min_words=least)
    words = reference_words(document)
    shared = 0
    looked_for = set()
    for text in benchmarks:
        own = reference_words(text)
        looked_for |= set(grams(own, n)) if len(own) >= n else {tuple(own)} if len(own) >= least else set()
    for length in range(least, n + 1):
        shared += sum(gram in looked_for for gram in grams(words, length))
    verdict = decontaminate(document)
    assert (verdict.rule == "benchmark_ngram") == (shared > 0)
    assert verdict.changes == ((("decontamination.ngram", shared),) if shared else ())
    assert decontaminate.ngrams == len(looked_for)
    if shared:
        assert tuple(verdict.detail.split()) in looked_for


def test_short_texts_are_matched_as_a_whole_and_shorter_ones_left_out(tmp_path: Path) -> None:
    eight = "one two three four five six seven eight"
    decontaminate = step(tmp_path, [eight, "too short to matter"])
    assert decontaminate.too_short == 1 and decontaminate.ngrams == 1
    assert decontaminate(f"before {eight.upper()}, after").rule == "benchmark_ngram"
    assert decontaminate("too short to matter").rule == ""
    assert decontaminate(eight.replace(" eight", "")).rule == ""


def test_min_matches_and_report_only(tmp_path: Path) -> None:
    text = " ".join(WORDS[:20])  # 8 n-grams of 13 words
    assert step(tmp_path, [text], min_matches=8)(text).rule == "benchmark_ngram"
    assert step(tmp_path, [text], min_matches=9)(text).rule == ""
    reported = step(tmp_path, [text], action="report")(text)
    assert (reported.rule, reported.text, reported.changes) == ("", text, (("decontamination.ngram", 8),))


def test_txt_files_and_nested_strings_and_chosen_keys(tmp_path: Path) -> None:
    first, second, third = (" ".join(WORDS[i : i + 13]) for i in (0, 13, 26))
    (tmp_path / "a.txt").write_text(f"{first[:20]}\n{first[21:]}\r\n\n \n{second}\n")
    (tmp_path / "b.jsonl").write_text(json.dumps({"q": {"choices": [third, 3]}, "other": "x " * 13}) + "\n\n")
    files = [str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl")]
    everything = Decontamination(DecontaminationConfig(files=files))
    assert everything.ngrams == 4
    assert [bool(everything(text).rule) for text in (first, second, third, "y " * 13)] == [
        True,
        True,
        True,
        False,
    ]
    chosen = Decontamination(DecontaminationConfig(files=files, text_keys=["q"]))
    assert chosen.ngrams == 3


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", b"x", "neither .txt nor .jsonl"),
        ("a.txt", b"\n \n", "holds no text"),
        ("a.txt", b"\xff", "not UTF-8"),
        ("a.jsonl", b'{"a": "b"}\n{"a"\n', "a.jsonl:2 is not JSON"),
        ("a.jsonl", b'{"a": "b"}\n', "holds no text under the keys q"),
    ],
)
def test_a_bad_benchmark_file_is_refused(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=re.escape(expected)):
        Decontamination(DecontaminationConfig(files=[str(tmp_path / name)], text_keys=["q"]))
