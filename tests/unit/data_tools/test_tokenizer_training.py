"""Training a tokenizer: sample, options, report, reruns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_tools.cli import main as data_command
from data_tools.errors import DataError
from data_tools.reading import ReadOptions, find_inputs
from data_tools.text_sample import SampleOptions, draw_sample, sample_chunks
from data_tools.tokenizer import Tokenizer
from data_tools.tokenizer_report import TokenizerReport, poor_use, report_on
from data_tools.train_tokenizer import TokenizerOptions, train_tokenizer
from tests.unit.data_tools.support import make_texts, write_jsonl


def test_training_is_reproducible_and_a_rerun_is_complete(
    tmp_path: Path, corpus_file: Path, tokenizer: Tokenizer
) -> None:
    out = tmp_path / "again.model"
    options = TokenizerOptions(vocab_size=400)
    again = train_tokenizer([corpus_file], out, options)
    assert again.fresh and again.tokenizer.sha256 == tokenizer.sha256
    before = out.stat().st_mtime_ns
    rerun = train_tokenizer([corpus_file], out, options)
    assert rerun.fresh is False and rerun.report == again.report
    assert out.stat().st_mtime_ns == before
    with pytest.raises(DataError, match=r"was made with vocab_size 400, this is 401"):
        train_tokenizer([corpus_file], out, TokenizerOptions(vocab_size=401))
    other = write_jsonl(tmp_path / "docs.jsonl", ["other text"])
    with pytest.raises(DataError, match=r"was made from another docs\.jsonl"):
        train_tokenizer([other], out, options)
    out.write_bytes(out.read_bytes()[:-1])
    with pytest.raises(DataError):
        train_tokenizer([corpus_file], out, options)


def test_an_out_that_cannot_be_written_is_told_before_the_training(
    tmp_path: Path, corpus_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_tools.train_tokenizer.draw_sample", lambda *_: pytest.fail("worked"))
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file is no directory; choose another --out"):
        train_tokenizer([corpus_file], tmp_path / "file" / "a.model", TokenizerOptions(vocab_size=400))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            TokenizerOptions(vocab_size=50_000),
            r"--vocab-size 50000 is too large for this corpus: it fills at most \d+",
        ),
        (TokenizerOptions(vocab_size=270), r"--vocab-size 270 is too small .* choose at least \d+"),
        (TokenizerOptions(vocab_size=100), r"--vocab-size must be larger than 264"),
        (TokenizerOptions(vocab_size=400, max_train_bytes=0), "--max-train-mb must be larger than 0"),
        (
            TokenizerOptions(vocab_size=400, user_symbols=("a b",)),
            "--user-symbols 'a b': must be UTF-8 text without",
        ),
        (
            TokenizerOptions(vocab_size=400, user_symbols=("a\udcff",)),
            r"--user-symbols 'a\\udcff': must be UTF-8",
        ),
        (TokenizerOptions(vocab_size=400, user_symbols=("[MASK]",)), "no special or byte piece"),
        (TokenizerOptions(vocab_size=400, user_symbols=("<a>", "<a>")), "one is named twice"),
        (
            TokenizerOptions(vocab_size=400, model_type="wordpiece"),
            "--model-type must be one of unigram, bpe",
        ),
        (TokenizerOptions(vocab_size=400, character_coverage=1.5), "--character-coverage must lie in"),
        (TokenizerOptions(vocab_size=400, read=ReadOptions(text_key="body")), 'docs.jsonl:1: no key "body"'),
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
    options = TokenizerOptions(vocab_size=most)
    assert train_tokenizer([corpus_file], tmp_path / "t.model", options).tokenizer.vocab_size == most


def test_long_lines_reach_the_trainer(tmp_path: Path) -> None:
    # Sentencepiece drops lines of more than 4192 bytes without an error: this word shows that ours arrive.
    text = " ".join(["zyzzyvas"] * 3000) + "\n" + "q" * 9000
    source = write_jsonl(tmp_path / "long.jsonl", [text])
    options = TokenizerOptions(vocab_size=280, model_type="bpe")
    trained = train_tokenizer([source], tmp_path / "t.model", options).tokenizer
    assert any("zyz" in trained.id_to_piece(i) for i in range(trained.vocab_size))


def test_an_empty_corpus_cannot_train(tmp_path: Path) -> None:
    for name, content in (("empty.jsonl", ""), ("blank.jsonl", "\n\n"), ("words.jsonl", '{"text": " "}\n')):
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError, match="the corpus is empty"):
            train_tokenizer([tmp_path / name], tmp_path / "t.model", TokenizerOptions(vocab_size=400))


@pytest.mark.parametrize("size", ["nan", "inf", "-inf", "-1", "0", "1e308"])
def test_sample_sizes_that_are_none(tmp_path: Path, corpus_file: Path, size: str) -> None:
    words = ["--input", str(corpus_file), "--out", str(tmp_path / "out")]
    with pytest.raises(DataError, match="--max-train-mb must be larger than 0 and finite, not "):
        data_command(["tokenizer", *words, "--vocab-size", "400", f"--max-train-mb={size}"])
    with pytest.raises(DataError, match="--sample-mb must be larger than 0 and finite, not "):
        data_command(["export-tokenizer", "t.model", *words, f"--sample-mb={size}"])


def test_user_symbols_are_always_one_token(tmp_path: Path, corpus_file: Path) -> None:
    symbols = ("<|user|>", "the<", "->")
    for model_type in ("unigram", "bpe"):
        options = TokenizerOptions(vocab_size=400, model_type=model_type, user_symbols=symbols)
        trained = train_tokenizer([corpus_file], tmp_path / f"{model_type}.model", options).tokenizer
        ids = {trained.id_to_piece(i): i for i in range(trained.vocab_size)}
        for symbol in symbols:
            for text in (symbol, f"a{symbol}b", f"the {symbol}{symbol} shard\n{symbol}"):
                encoded = trained.encode(text)
                assert encoded.count(ids[symbol]) == text.count(symbol)
                assert trained.decode(encoded) == text


def test_without_byte_fallback_unknown_characters_are_one_unknown_id(
    tmp_path: Path, corpus_file: Path
) -> None:
    options = TokenizerOptions(vocab_size=150, byte_fallback=False, character_coverage=1.0)
    trained = train_tokenizer([corpus_file], tmp_path / "t.model", options)
    assert not trained.tokenizer.is_byte.any()
    assert trained.tokenizer.encode("\u2581") == [trained.tokenizer.unk_id]
    ids = trained.tokenizer.encode("the \U0001f917 \u2581 shard")
    assert ids.count(trained.tokenizer.unk_id) == 2
    assert trained.report.byte_token_share == 0.0


def sampling(max_bytes: int, seed: int = 1) -> SampleOptions:
    return SampleOptions(read=ReadOptions(), max_bytes=max_bytes, seed=seed)


def sample_of(path: Path, options: SampleOptions):
    return draw_sample(sample_chunks(find_inputs([str(path)], options.read), options), options)


def test_a_sample_is_bounded_deterministic_and_drawn_from_everywhere(tmp_path: Path) -> None:
    texts = make_texts(4000, seed=3)
    source = write_jsonl(tmp_path / "docs.jsonl", texts)
    sample = sample_of(source, sampling(400_000))
    assert sample.whole and sample.counts.documents == 4000
    largest = max(len(text.encode()) for text in texts)
    assert 400_000 <= sample.bytes == sum(len(text.encode()) for text in sample.texts) < 400_000 + largest
    places = [texts.index(text) for text in sample.texts]
    assert places == sorted(places)
    assert all(any(low <= place < low + 800 for place in places) for low in range(0, 4000, 800))
    assert sample_of(source, sampling(400_000)) == sample
    assert sample_of(source, sampling(400_000, seed=2)).texts != sample.texts
    # The choice is by text: the same documents in two files, in another order, give the same sample.
    (tmp_path / "two").mkdir()
    write_jsonl(tmp_path / "two" / "a.jsonl", texts[2000:])
    write_jsonl(tmp_path / "two" / "b.jsonl", texts[:2000])
    assert sorted(sample_of(tmp_path / "two", sampling(400_000)).texts) == sorted(sample.texts)


def test_a_sample_does_not_read_all_of_a_large_corpus(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "docs.jsonl", make_texts(8000, seed=4))
    options = sampling(20_000)
    chunks = sample_chunks(find_inputs([str(source)], options.read), options)
    assert len(chunks) > 20
    sample = draw_sample(chunks, options)
    assert not sample.whole and sample.counts.documents < 2000
    assert 20_000 <= sample.bytes < 25_000
    assert draw_sample(chunks, options) == sample
    out = tmp_path / "t.model"
    tokenizer_options = TokenizerOptions(vocab_size=400, max_train_bytes=20_000)
    trained = train_tokenizer([source], out, tokenizer_options)
    record = json.loads((tmp_path / "t.model.json").read_text())
    assert record["inputs"][0]["xxh3_128"] is None, "a hash would read all of it"
    assert record["sample"]["of_all_documents"] is False
    assert train_tokenizer([source], out, tokenizer_options).tokenizer.sha256 == trained.tokenizer.sha256


def test_too_many_bad_records_end_the_sample(tmp_path: Path) -> None:
    source = tmp_path / "docs.jsonl"
    source.write_text("not json\n" * 50 + json.dumps({"text": "good"}) + "\n")
    with pytest.raises(DataError, match=r"50 of 51 records hold no document.*docs\.jsonl:1: not JSON"):
        sample_of(source, sampling(1000))
    tokens = tmp_path / "tokens.jsonl"
    tokens.write_text(json.dumps({"ids": [1, 2]}) + "\n")
    options = SampleOptions(read=ReadOptions(token_key="ids"), max_bytes=1000, seed=1)
    with pytest.raises(DataError, match="token ids, not text"):
        sample_of(tokens, options)


def test_the_report_counts_as_a_plain_count_does(tokenizer: Tokenizer, tmp_path: Path) -> None:
    texts = ["the shard reads", "a \U0001f917 b"]
    report = report_on(tokenizer, texts, held_out=True, training_bytes=1000)
    ids = [i for text in texts for i in tokenizer.encode(text)]
    size = len("".join(texts).encode())
    assert (report.documents, report.bytes, report.tokens) == (2, size, len(ids))
    assert report.bytes_per_token == pytest.approx(size / len(ids), abs=1e-4)
    assert report.byte_token_share == pytest.approx(4 / len(ids), abs=1e-6)
    assert report.characters_covered == pytest.approx(1 - 1 / len("".join(texts)), abs=1e-6)
    assert report.text_ids == 400 - 6 - 256
    assert report.text_ids_used == len({i for i in ids if not tokenizer.is_byte[i]})


def make_report(**changes: float) -> TokenizerReport:
    values = dict(documents=9, bytes=400_000, tokens=100_000, bytes_per_token=4.0, characters_covered=1.0)
    values |= dict(byte_token_share=0.0, text_ids=1000, text_ids_used=900, training_tokens_per_id=1000.0)
    return TokenizerReport(held_out=True, encode_mb_per_second=1.0, **(values | changes))


def test_poor_use_of_the_vocabulary_is_a_warning() -> None:
    assert poor_use(make_report()) == ""
    assert "30% of it occur" in poor_use(make_report(text_ids_used=300))
    assert poor_use(make_report(text_ids_used=300, tokens=50_000)) == "", "too little text to tell"
    assert "12 tokens for each id" in poor_use(make_report(training_tokens_per_id=12.0))


def test_the_report_is_on_documents_that_were_held_out(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "docs.jsonl", make_texts(600))
    trained = train_tokenizer([source], tmp_path / "t.model", TokenizerOptions(vocab_size=400))
    report = trained.report
    assert report.held_out and 10 <= report.documents <= 60
    assert json.loads((tmp_path / "t.model.json").read_text())["report"]["tokens"] == report.tokens
    few = write_jsonl(tmp_path / "few.jsonl", make_texts(2))
    with pytest.raises(DataError, match="too large for this corpus"):
        train_tokenizer([few], tmp_path / "few.model", TokenizerOptions(vocab_size=4000))
