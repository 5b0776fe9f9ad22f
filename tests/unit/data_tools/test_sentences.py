from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.sentences import split_sentences


@given(st.text(st.sampled_from("aB .!?…\n\t\"')。！」e.g\x85\u2028")))
@settings(max_examples=500, deadline=None)
def test_nothing_is_lost_and_no_sentence_is_only_white_space(text: str) -> None:
    sentences = split_sentences(text)
    assert "".join(sentences) == text
    assert all(sentence.strip() for sentence in sentences) or len(sentences) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two.", ["One.", " Two."]),
        ('He said "Stop!" Then he left.', ['He said "Stop!"', " Then he left."]),
        ("See e.g. Dr. Smith and J. Doe. Next.", ["See e.g. Dr. Smith and J. Doe.", " Next."]),
        ("Version 3.11 of os.path is here. ok", ["Version 3.11 of os.path is here. ok"]),
        ("Really?! Yes... Maybe.", ["Really?!", " Yes...", " Maybe."]),
        ("A title\n\nA body. Ends\nhere.", ["A title\n\n", "A body.", " Ends\nhere."]),
        ("Line one.\n  \n    Indented.\nLast", ["Line one.\n  \n", "    Indented.\n", "Last"]),
        ("(as a note.) Then", ["(as a note.)", " Then"]),
        ("你好。再见！ok", ["你好。", "再见！", "ok"]),
        ("No end", ["No end"]),
        ("End.  \n", ["End.  \n"]),
        ("   \n\n  ", ["   \n\n  "]),
        ("\n\n First. Second.", ["\n\n First.", " Second."]),
        ("", []),
    ],
)
def test_examples(text: str, expected: list[str]) -> None:
    assert split_sentences(text) == expected


@pytest.mark.parametrize(
    "unit", [".", " ", "\n", ". ", "a.\n", " \n", '."', ".x", "。", "x" + " " * 50, "A. "], ids=repr
)
def test_time_is_linear_on_hostile_text(unit: str) -> None:
    def seconds(count: int) -> float:
        text = unit * count + "x"
        start = time.process_time()
        split_sentences(text)
        return time.process_time() - start

    small, large = seconds(4_000), seconds(64_000)
    assert large < max(0.05, 16 * 6 * small), "sixteen times the text must not take a hundred times as long"
