from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from data_tools.errors import DataError
from data_tools.tokenizer import SPECIAL_PIECES, Tokenizer, load_tokenizer
from data_tools.train_tokenizer import TokenizerOptions, train_tokenizer

# Any code point but lone surrogates, and often the characters that tokenizers are known to spoil.
NASTY = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"]), st.sampled_from(" \n\t\r\0\u2581\ufeff\u2028\xa0e\u0301")
    )
)


@given(NASTY)
@example("\u2581")
@example("a \u2581b\u2581\u2581 c")
@example("  lead and trail  ")
@example("def f(x):\n\n\treturn  x\r\n")
@example("\0\0 \ufeffe\u0301 \U0001f469\u200d\U0001f680")
@example("[MASK] [CLS]<|endoftext|>[PAD] <0x41> <unk>")
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_survives_the_round_trip(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(len(SPECIAL_PIECES) <= i < tokenizer.vocab_size for i in ids)


def test_special_ids_are_fixed_and_decode_to_nothing(tokenizer: Tokenizer) -> None:
    named = (
        tokenizer.pad_id,
        tokenizer.unk_id,
        tokenizer.cls_id,
        tokenizer.sep_id,
        tokenizer.mask_id,
        tokenizer.eod_id,
    )
    assert named == (0, 1, 2, 3, 4, 5)
    assert [tokenizer.id_to_piece(i) for i in named] == [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "<|endoftext|>",
    ]
    hello = tokenizer.encode("hello")
    assert tokenizer.decode([tokenizer.cls_id, *hello, tokenizer.mask_id, tokenizer.eod_id]) == "hello"


def test_special_tokens_typed_in_a_text_are_ordinary_text(tokenizer: Tokenizer) -> None:
    for piece in SPECIAL_PIECES:
        text = f"see {piece} here {piece}"
        ids = tokenizer.encode(text)
        assert min(ids) >= len(SPECIAL_PIECES), piece
        assert tokenizer.decode(ids) == text


def test_batch_equals_one_by_one_and_plain_sentencepiece(tokenizer: Tokenizer, texts: list[str]) -> None:
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.path))
    sample = [*texts[:50], ""]
    for text, batch in zip(sample, tokenizer.encode_batch(sample), strict=True):
        assert batch.tolist() == tokenizer.encode(text) == reference.encode(text)


def test_word_starts_divide_a_text_as_white_space_does(tokenizer: Tokenizer) -> None:
    text = "the shard  reads\n    a block\tof tokens\nand returns"
    ids = tokenizer.encode(text)
    words: list[str] = []
    for position, token in enumerate(ids):
        after = position > 0 and tokenizer.is_word_end[ids[position - 1]]
        if position == 0 or after or tokenizer.is_word_start[token]:
            words.append("")
        words[-1] += tokenizer.decode([token])
    assert [word.strip() for word in words if word.strip()] == text.split()
    assert (
        tokenizer.is_word_start[: len(SPECIAL_PIECES)].all()
        and tokenizer.is_word_end[: len(SPECIAL_PIECES)].all()
    )
    assert not tokenizer.is_word_start[tokenizer.encode("\0")].any(), "a byte piece continues its word"


def test_what_cannot_be_encoded_or_decoded_is_named(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="lone surrogate at character 2"):
        tokenizer.encode_batch(["fine", "ab\ud800"])
    with pytest.raises(DataError, match="token id 400 is outside the vocabulary of 400"):
        tokenizer.decode([7, 400])
    with pytest.raises(DataError, match="token id -1"):
        tokenizer.decode(np.array([-1]))


def test_a_file_that_is_no_tokenizer_of_ours_is_refused(tmp_path: Path, corpus_file: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read the tokenizer .*none\.model"):
        load_tokenizer(tmp_path / "none.model")
    junk = tmp_path / "junk.model"
    junk.write_bytes(b"not a model")
    with pytest.raises(DataError, match=r"junk\.model: not a sentencepiece model"):
        load_tokenizer(junk)
    foreign = tmp_path / "foreign"
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus_file),
        model_prefix=str(foreign),
        vocab_size=200,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    with pytest.raises(DataError, match="headwater data tokenizer"):
        load_tokenizer(foreign.with_suffix(".model"))


def test_bpe_is_lossless_as_well(tmp_path: Path, corpus_file: Path) -> None:
    options = TokenizerOptions(vocab_size=400, model_type="bpe")
    bpe = train_tokenizer([corpus_file], tmp_path / "bpe.model", options).tokenizer
    assert bpe.file_name == "tokenizer.model"

    @given(NASTY)
    @example("a  [MASK]\n\n\tünïcode \u2581 中文 ")
    @settings(max_examples=200, deadline=None)
    def survives(text: str) -> None:
        assert bpe.decode(bpe.encode(text)) == text

    survives()


def test_a_long_text_has_the_ids_of_its_lines(tokenizer: Tokenizer, texts: list[str]) -> None:
    """No piece goes on after a newline; sentencepiece 0.2.0 adds up rounding errors along a text."""
    text = "\n".join(texts * 5) + "\u2581" + " ".join(texts) + "中" * 20_000
    assert len(text) > 100_000
    lines = text.split("\n")
    expected = tokenizer.encode(lines[0])
    for ids in tokenizer.encode_batch(["\n" + line for line in lines[1:-1]]):
        expected += ids.tolist()
    ids = tokenizer.encode(text)
    assert ids[: len(expected)] == expected
    assert tokenizer.decode(ids) == text
    assert [a.tolist() for a in tokenizer.encode_batch(["a", text, ""])] == [tokenizer.encode("a"), ids, []]


def test_bytes_are_known(tokenizer: Tokenizer) -> None:
    assert int(tokenizer.is_byte.sum()) == 256
    assert tokenizer.is_byte[tokenizer.encode("\U0001f917")].all()
    assert not tokenizer.is_byte[tokenizer.encode("the")].any()


def test_a_vocabulary_says_which_ids_it_lacks(tokenizer: Tokenizer) -> None:
    assert tokenizer.require("cls", "mask", purpose="BERT") == (2, 4)
    assert tokenizer.special_ids == (0, 1, 2, 3, 4, 5) and tokenizer.reserved_ids == (0, 2, 3, 4, 5)
    tokens = np.array(tokenizer.encode("some text"), np.uint32)
    assert tokenizer.why_foreign(tokens) == "" == tokenizer.why_foreign(tokens[:0])
    assert "token 5 at position 1 is a special id" in tokenizer.why_foreign(np.array([7, 5], np.uint16))
    assert "token 400 is outside" in tokenizer.why_foreign(np.array([7, 400], np.uint32))
    assert "token -1 is outside" in tokenizer.why_foreign(np.array([7, -1]))
