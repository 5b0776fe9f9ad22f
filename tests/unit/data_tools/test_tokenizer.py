from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from data_tools.errors import DataError
from data_tools.tokenizer import SPECIAL_PIECES, Tokenizer
from data_tools.train_tokenizer import TokenizerOptions, train_tokenizer
from tests.unit.data_tools.support import write_jsonl

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
        Tokenizer.load(tmp_path / "none.model")
    junk = tmp_path / "junk.model"
    junk.write_bytes(b"not a model")
    with pytest.raises(DataError, match=r"junk\.model: not a sentencepiece model"):
        Tokenizer.load(junk)
    foreign = tmp_path / "foreign"
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus_file),
        model_prefix=str(foreign),
        vocab_size=200,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    with pytest.raises(DataError, match="headwater data tokenizer"):
        Tokenizer.load(foreign.with_suffix(".model"))


def test_training_is_reproducible_and_a_rerun_is_complete(
    tmp_path: Path, corpus_file: Path, tokenizer: Tokenizer
) -> None:
    out = tmp_path / "again.model"
    options = TokenizerOptions(vocab_size=400)
    again, fresh = train_tokenizer([corpus_file], out, options)
    assert fresh and again.sha256 == tokenizer.sha256
    before = out.stat().st_mtime_ns
    assert train_tokenizer([corpus_file], out, options)[1] is False
    assert out.stat().st_mtime_ns == before
    with pytest.raises(DataError, match=r"was made with vocab_size 400, this is 401"):
        train_tokenizer([corpus_file], out, TokenizerOptions(vocab_size=401))
    other = write_jsonl(tmp_path / "docs.jsonl", ["other text"])
    with pytest.raises(DataError, match=r"was made from another docs\.jsonl"):
        train_tokenizer([other], out, options)
    out.write_bytes(out.read_bytes()[:-1])
    with pytest.raises(DataError):
        train_tokenizer([corpus_file], out, options)


def test_bpe_is_lossless_as_well(tmp_path: Path, corpus_file: Path) -> None:
    bpe, _ = train_tokenizer(
        [corpus_file], tmp_path / "bpe.model", TokenizerOptions(vocab_size=400, model_type="bpe")
    )
    text = "a  [MASK]\n\n\tünïcode \u2581 中文 "
    assert bpe.decode(bpe.encode(text)) == text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            TokenizerOptions(vocab_size=50_000),
            r"--vocab-size 50000 is too large for this corpus: it fills at most \d+",
        ),
        (TokenizerOptions(vocab_size=270), r"--vocab-size 270 is too small .* choose at least \d+"),
        (TokenizerOptions(vocab_size=100), r"--vocab-size must be larger than 264"),
        (
            TokenizerOptions(vocab_size=400, model_type="wordpiece"),
            "--model-type must be one of unigram, bpe",
        ),
        (TokenizerOptions(vocab_size=400, character_coverage=1.5), "--character-coverage must lie in"),
        (TokenizerOptions(vocab_size=400, json_key="body"), r'docs\.jsonl:1: no key "body" \(keys: text\)'),
    ],
)
def test_bad_training_options_are_explained(
    tmp_path: Path, corpus_file: Path, options: TokenizerOptions, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        train_tokenizer([corpus_file], tmp_path / "t.model", options)
    assert list(tmp_path.iterdir()) == []


def test_a_vocabulary_at_the_stated_maximum_trains(tmp_path: Path, corpus_file: Path) -> None:
    with pytest.raises(DataError) as failure:
        train_tokenizer([corpus_file], tmp_path / "t.model", TokenizerOptions(vocab_size=50_000))
    most = int(str(failure.value).split("at most ")[1].split(";")[0])
    assert (
        train_tokenizer([corpus_file], tmp_path / "t.model", TokenizerOptions(vocab_size=most))[0].vocab_size
        == most
    )


def test_long_lines_reach_the_trainer(tmp_path: Path) -> None:
    # Sentencepiece drops lines of more than 4192 bytes without an error: this word shows that ours arrive.
    text = " ".join(["zyzzyvas"] * 3000) + "\n" + "q" * 9000
    source = write_jsonl(tmp_path / "long.jsonl", [text])
    trained, _ = train_tokenizer(
        [source], tmp_path / "t.model", TokenizerOptions(vocab_size=280, model_type="bpe")
    )
    assert any("zyz" in trained.id_to_piece(i) for i in range(trained.vocab_size))


def test_an_empty_corpus_cannot_train(tmp_path: Path) -> None:
    for name, content in (("empty.jsonl", ""), ("blank.jsonl", "\n\n"), ("words.jsonl", '{"text": " "}\n')):
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError, match="the corpus is empty"):
            train_tokenizer([tmp_path / name], tmp_path / "t.model", TokenizerOptions(vocab_size=400))
