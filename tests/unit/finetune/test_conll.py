"""CoNLL files: which lines are words and which are comments, and what is wrong with a line."""

from __future__ import annotations

import pytest

from data_tools.errors import DataError
from finetune.tasks.conll import read_conll

UNIVERSAL = """# newdoc id = weblog
# newpar
# sent_id = 1
# text = # 1 prize
1\t#\tSYM
2\t1\tNUM
3\tprize\tNOUN

# sent_id = 2
# text = Won\tagain
# two words
1\tWon\tVERB
2\tagain\tADV
"""


def sentences(path, text, word_column=0, tag_column=-1):
    path.write_text(text)
    return [(words, tags) for _, words, tags in read_conll(path, word_column, tag_column)]


def test_comments_of_universal_dependencies_are_no_words(tmp_path):
    assert sentences(tmp_path / "a.conllu", UNIVERSAL, 1) == [
        (["#", "1", "prize"], ["SYM", "NUM", "NOUN"]),
        (["Won", "again"], ["VERB", "ADV"]),
    ]


@pytest.mark.parametrize("labelled", [True, False])
def test_a_sentence_may_begin_with_a_number_sign(tmp_path, labelled):
    text = "EU B-ORG\n\n# O\n1 O\nprize O\n\n# O\n"
    found = sentences(tmp_path / "a.conll", text, tag_column=-1 if labelled else None)
    assert [words for words, _ in found] == [["EU"], ["#", "1", "prize"], ["#"]]
    assert [tags for _, tags in found] == ([["B-ORG"], ["O", "O", "O"], ["O"]] if labelled else [[]] * 3)
    penn = "-DOCSTART-\n\n# # B-NP O\n1 CD I-NP O\n"
    assert sentences(tmp_path / "a.conll", penn) == [(["#", "1"], ["O", "O"])]
    tabs = "#\tO\n1\tO\n\n# \tO\n2\tO\n"
    assert sentences(tmp_path / "a.conll", tabs) == [(["#", "1"], ["O"] * 2), (["#", "2"], ["O"] * 2)]


@pytest.mark.parametrize(
    "comment",
    [
        "# id 5239d808 domain=train",
        "# newpar",
        "# text = a",
        "# a b",
        "# as many words",
        "# of two\n# as many words",
        "# a b c d",
        "# one\n# two words\n# and so on and on",
        "# newdoc id a",
    ],
)
def test_comments_before_words_with_spaces_between_columns(tmp_path, comment):
    text = f"{comment}\nthe _ _ O\ncat _ _ B-X\n\n{comment}\ndog _ _ B-X\n"
    assert [words for words, _ in sentences(tmp_path / "a.conll", text)] == [["the", "cat"], ["dog"]]


def test_a_number_sign_has_any_tag_where_the_file_has_other_tags_than_those_of_entities(tmp_path):
    text = "a NN\nb O\n\n# POUND\n1 CD\n"
    found = sentences(tmp_path / "a.conll", text)
    assert found == [(["a", "b"], ["NN", "O"]), (["#", "1"], ["POUND", "CD"])]


def test_a_comment_is_no_word_of_a_file_with_a_word_a_line(tmp_path):
    text = "# a comment\n#\nthe\n"
    assert sentences(tmp_path / "a.txt", text, tag_column=None) == [(["#", "the"], [])]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("\tO", r"column 0 is empty \(data.word_column"),
        (" \tO", r"column 0 is empty \(data.word_column"),
        ("a\t", r"column -1 is empty \(data.tag_column"),
    ],
)
def test_an_empty_column_is_named_by_file_and_line(tmp_path, line, message):
    with pytest.raises(DataError, match=rf"a.conll:3: {message}"):
        sentences(tmp_path / "a.conll", f"EU\tB-ORG\n\n{line}\n")
    assert sentences(tmp_path / "a.conll", "-DOCSTART-\t\n\na\tO\n") == [(["a"], ["O"])]
