from __future__ import annotations

import json
import random
import re

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.clean import CleanConfig, Cleaner, Funnel, Outcome, publish_funnel
from data_tools.documents import Document
from data_tools.errors import DataError

STEPS = ("unicode", "language", "pii")
GOPHER_OFF = {"min_stop_words": None}
TEXT = st.sampled_from(["", "a", "bc", "été", "longer text " * 9, "x" * 1000])
OUTCOME = st.one_of(
    st.builds(
        Outcome,
        TEXT,
        language=st.sampled_from(["", "en", "de"]),
        changes=st.sampled_from([(), (("unicode", 1),), (("pii.email", 2), ("pii.ip", 1))]),
    ),
    st.builds(
        Outcome,
        st.none(),
        st.sampled_from(STEPS),
        st.sampled_from(["r1", "r2"]),
        st.sampled_from(["", "0.5"]),
        st.just("en"),
        st.sampled_from([(), (("unicode", 1),)]),
    ),
)
DOCUMENT = st.builds(
    Document, st.integers(0, 9), TEXT, st.sampled_from(["", "id"]), st.sampled_from(["", "s"])
)


@given(
    st.lists(st.tuples(DOCUMENT, OUTCOME), max_size=40),
    st.lists(st.integers(0, 4), min_size=40, max_size=40),
    st.randoms(use_true_random=False),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_any_partition_merged_in_any_order_gives_the_same_json(
    items: list[tuple[Document, Outcome]], places: list[int], rng: random.Random, through_json: bool
) -> None:
    whole = Funnel(STEPS)
    parts = [Funnel(STEPS) for _ in range(5)]
    for document, outcome in items:
        whole.add(document, outcome)
    shuffled = list(zip(items, places, strict=False))
    rng.shuffle(shuffled)
    for (document, outcome), place in shuffled:
        parts[place].add(document, outcome)
    rng.shuffle(parts)
    merged = Funnel()
    for part in parts:
        merged.merge(Funnel.from_json(json.loads(json.dumps(part.to_json()))) if through_json else part)
    assert json.dumps(merged.to_json()) == json.dumps(whole.to_json())


def test_numbers_are_those_of_the_documents() -> None:
    funnel = Funnel(STEPS)
    funnel.add(Document(0, "héllo"), Outcome("hello!", language="en", changes=(("unicode", 1),)))
    funnel.add(Document(1, "bonjour"), Outcome(None, "language", "unwanted", "fr 0.99", "fr"))
    funnel.add(Document(2, "bad\x00"), Outcome(None, "language", "uncertain", changes=(("unicode", 1),)))
    funnel.add(Document(3, "a@b.org c@d.org"), Outcome("x y", language="en", changes=(("pii.email", 2),)))
    data = funnel.to_json()
    assert (data["documents_in"], data["bytes_in"]) == (4, 6 + 7 + 4 + 15)
    assert (data["documents_out"], data["bytes_out"]) == (2, 6 + 3)
    steps = {step["name"]: step for step in data["steps"]}
    assert list(steps) == ["unicode", "language", "pii"]
    assert (steps["unicode"]["documents_changed"], steps["unicode"]["edits"]) == (2, {"unicode": 2})
    assert (steps["language"]["documents_in"], steps["language"]["documents_dropped"]) == (4, 2)
    assert steps["language"]["dropped"]["unwanted"] == {"documents": 1, "bytes": 7}
    assert (steps["pii"]["documents_in"], steps["pii"]["bytes_in"]) == (2, 21)
    assert steps["pii"]["edits"] == {"pii.email": 2}
    assert data["languages"] == {"en": {"documents": 2, "bytes": 9}}
    assert data["characters_in"] == {"4": 3, "8": 1}
    assert data["characters_out"] == {"2": 1, "4": 1}


def test_steps_stand_in_their_order_even_where_none_is_named() -> None:
    funnel = Funnel()
    for step in ("dedup", "pii", "decontamination", "unicode", "language"):
        funnel.add(Document(0, "x"), Outcome(None, step, "rule"))
    names = [step["name"] for step in funnel.to_json()["steps"]]
    assert names == ["unicode", "language", "pii", "decontamination", "dedup"]
    assert [step["documents_in"] for step in funnel.to_json()["steps"]] == [5, 4, 3, 2, 1]


def test_samples_are_few_and_show_what_happened() -> None:
    funnel = Funnel(STEPS)
    for number in range(100):
        text = f"{number} " + "same " * 200 + "schÃ¶n" + " end" * 200
        funnel.add(
            Document(number, text, f"id{number}", "src"),
            Outcome(text.replace("Ã¶", "ö"), changes=(("unicode", 1),)),
        )
        funnel.add(Document(number, text), Outcome(None, "language", "unwanted", "fr 0.9"))
    groups = {(group["kind"], group["step"], group["rule"]): group for group in funnel.to_json()["samples"]}
    assert set(groups) == {("changed", "unicode", ""), ("dropped", "language", "unwanted")}
    changed = groups["changed", "unicode", ""]["documents"]
    assert len(changed) == 5
    assert all("schÃ¶n" in sample["before"] and "schön" in sample["after"] for sample in changed)
    assert all(sample["id"] == f"id{sample['position']}" and sample["source"] == "src" for sample in changed)
    dropped = groups["dropped", "language", "unwanted"]["documents"]
    assert all(sample["before"].startswith(f"{sample['position']} same") for sample in dropped)
    assert {sample["detail"] for sample in dropped} == {"fr 0.9"} and {
        sample["after"] for sample in dropped
    } == {""}


def test_samples_show_no_personal_data() -> None:
    config = CleanConfig.model_validate({"unicode": {}, "quality": {"gopher": {"min_words": 3}}, "pii": {}})
    cleaner = Cleaner(config)
    funnel = cleaner.funnel()
    for text in (
        "jo.doe@mail.org wrote",
        "please write to jo.doe@mail.org, that and the rest",
        "schÃ¶n, please write to jo.doe@mail.org, that and the rest",
    ):
        funnel.add(Document(0, text), cleaner.clean(text))
    shown = json.dumps(funnel.to_json())
    assert "jo.doe" not in shown
    kinds = {(group["kind"], group["step"]): group["documents"] for group in funnel.to_json()["samples"]}
    assert set(kinds) == {("changed", "pii"), ("changed", "unicode"), ("dropped", "quality")}
    assert all("@example.com" in sample["after"] for sample in kinds["changed", "pii"])
    assert any(sample["before"] == "" for sample in kinds["changed", "pii"])


@pytest.mark.parametrize("written", ["jo.d\x00oe@mail.org", "jo.doe\x1b[0m@mail.org", "jo.doe@ma\x7fil.org"])
@pytest.mark.parametrize("words", [3, 8])
def test_samples_show_no_personal_data_that_only_repair_reveals(written: str, words: int) -> None:
    config = {"unicode": {}, "quality": {"gopher": GOPHER_OFF | {"min_words": words}}, "pii": {}}
    cleaner = Cleaner(CleanConfig.model_validate(config))
    funnel = cleaner.funnel()
    text = f"please write to {written} and wait"
    funnel.add(Document(0, text), cleaner.clean(text))
    samples = [one for group in funnel.to_json()["samples"] for one in group["documents"]]
    assert samples
    for sample in samples:
        assert not re.search("jo|oe|ma.?il.org", sample["before"] + sample["after"])


def test_samples_without_personal_data_are_shown_as_they_were_read() -> None:
    cleaner = Cleaner(CleanConfig.model_validate({"unicode": {}, "pii": {}}))
    funnel = cleaner.funnel()
    funnel.add(Document(0, "schÃ¶n"), cleaner.clean("schÃ¶n"))
    (group,) = funnel.to_json()["samples"]
    assert [(one["before"], one["after"]) for one in group["documents"]] == [("schÃ¶n", "schön")]


def test_ids_and_sources_of_samples_are_redacted_where_the_cleaner_redacts() -> None:
    for config, hidden in (({"unicode": {}, "pii": {}}, True), ({"unicode": {}}, False)):
        cleaner = Cleaner(CleanConfig.model_validate(config))
        funnel = cleaner.funnel()
        document = Document(0, "a\x00b", "https://x.net/?to=jo.doe@mail.org", "mbox of jo.doe@mail.org")
        funnel.add(document, cleaner.clean(document.text))
        (sample,) = funnel.to_json()["samples"][0]["documents"]
        assert cleaner.redacts == hidden
        assert ["jo.doe" in sample[key] for key in ("id", "source")] == [not hidden] * 2
        assert sample["id"].startswith("https://x.net/?to=")


def test_a_published_funnel_has_all_but_the_hashes() -> None:
    funnel = Funnel(STEPS)
    funnel.add(Document(7, "a\x00b", "id", "s"), Outcome("ab", changes=(("unicode", 1),)))
    data = funnel.to_json()
    published = publish_funnel(data)
    assert xxhash.xxh3_128_hexdigest(b"a\x00b") not in json.dumps(published)
    (sample,) = data["samples"][0]["documents"]
    assert sample.pop("hash") == xxhash.xxh3_128_hexdigest(b"a\x00b")  # the original still had it
    assert published == data


def test_a_thing_that_is_no_funnel_is_refused() -> None:
    with pytest.raises(DataError, match="not a cleaning funnel"):
        Funnel.from_json({"steps": []})
