"""Hugging Face tokenizers of every model kind, and vocabularies of integers, behind the one interface."""

from __future__ import annotations

import json
import pydoc_data.topics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Library

from data_tools.cli import main as data_command
from data_tools.errors import DataError
from data_tools.tokenizer import (
    HuggingFaceTokenizer,
    IntegerVocabulary,
    SentencePieceTokenizer,
    Tokenizer,
    corpus_tokenizer,
    load_tokenizer,
)

TEXTS = list(pydoc_data.topics.topics.values())[:30]
BERT_SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def byte_level(specials: list[str]) -> Library:
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    library.train_from_iterator(TEXTS, trainer)
    return library


def word_piece() -> Library:
    library = Library(models.WordPiece(unk_token="[UNK]"))
    library.normalizer = normalizers.BertNormalizer(lowercase=True)
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=900, special_tokens=BERT_SPECIALS, show_progress=False)
    library.train_from_iterator(TEXTS, trainer)
    pairs = [("[CLS]", 2), ("[SEP]", 3)]
    library.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=pairs)
    library.enable_truncation(8)
    library.enable_padding(length=8)
    return library


def unigram() -> Library:
    """As T5 or XLM-R: metaspace, and specials that the model itself would match in a text."""
    library = Library(models.Unigram())
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Metaspace()
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=800, special_tokens=specials, unk_token="<unk>", show_progress=False
    )
    library.train_from_iterator(TEXTS, trainer)
    return library


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("libraries")
    made = {"byte": byte_level(["<|endoftext|>"]), "wordpiece": word_piece(), "unigram": unigram()}
    for name, library in made.items():
        library.save(str(directory / f"{name}.json"))
    return {name: directory / f"{name}.json" for name in made}


def load(path: Path) -> HuggingFaceTokenizer:
    tokenizer = load_tokenizer(path)
    assert isinstance(tokenizer, HuggingFaceTokenizer) and tokenizer.file_name == "tokenizer.json"
    return tokenizer


def changed(path: Path, out: Path, change: Any) -> Path:
    fields = json.loads(path.read_text())
    change(fields)
    out.write_text(json.dumps(fields))
    return out


@pytest.mark.parametrize("name", ["byte", "wordpiece", "unigram"])
def test_ids_are_the_librarys_own_without_specials_or_truncation(files: dict[str, Path], name: str) -> None:
    library = Library.from_file(str(files[name]))
    library.no_truncation()
    library.no_padding()
    tokenizer = load(files[name])
    assert tokenizer.vocab_size == library.get_vocab_size()
    sample = [*TEXTS, "", " ", "caf\u00e9 \u65e5\u672c\u8a9e \U0001f917\n\n\tx"]
    for text, ids in zip(sample, tokenizer.encode_batch(sample), strict=True):
        assert ids.dtype == np.int32
        assert ids.tolist() == library.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids) == library.decode(ids.tolist(), skip_special_tokens=False)
    assert [tokenizer.id_to_piece(i) for i in range(50)] == [library.id_to_token(i) for i in range(50)]


fragments = st.sampled_from(
    ["<|endoftext|>", "<|", "\u0120", " ", "\n", "\0", "\ufeff", "the", "\ufdd00\ufdd1"]
)


def test_any_text_survives_a_byte_level_round_trip(files: dict[str, Path]) -> None:
    tokenizer = load(files["byte"])

    @given(st.lists(st.one_of(fragments, st.text(max_size=8)), max_size=10).map("".join))
    @example("a<|endoftext|>b \u0120\u010a")
    @settings(max_examples=300, deadline=None)
    def survives(text: str) -> None:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.eod_id not in ids

    survives()


def test_special_ids_are_found_by_their_names(files: dict[str, Path]) -> None:
    def roles(tokenizer: Tokenizer) -> dict[str, int | None]:
        names = ("pad", "unk", "cls", "sep", "mask", "eod")
        return {name: getattr(tokenizer, f"{name}_id") for name in names}

    none = dict.fromkeys(("pad", "unk", "cls", "sep", "mask"))
    assert roles(load(files["byte"])) == {**none, "eod": 0}
    expected = dict(pad=0, unk=1, cls=2, sep=3, mask=4, eod=3)
    assert roles(load(files["wordpiece"])) == expected
    assert roles(load(files["unigram"])) == dict(cls=0, pad=1, sep=2, eod=2, unk=3, mask=4)
    assert load(files["wordpiece"]).reserved_ids == (0, 2, 3, 4)


def test_what_an_objective_lacks_is_named(files: dict[str, Path]) -> None:
    with pytest.raises(DataError) as failure:
        load(files["byte"]).require("pad", "cls", "sep", "mask", purpose="BERT")
    message = str(failure.value)
    assert "BERT needs the special ids pad, cls, sep, mask" in message
    assert "byte.json has no pad and no cls and no sep and no mask" in message
    assert "mask: one of [MASK] <mask>" in message


@pytest.mark.parametrize("name", ["byte", "wordpiece", "unigram"])
def test_special_tokens_typed_in_a_text_are_ordinary_text(files: dict[str, Path], name: str) -> None:
    tokenizer = load(files[name])
    for token_id in tokenizer.reserved_ids:
        piece = tokenizer.id_to_piece(token_id)
        text = f"see {piece} here{piece}"
        ids = tokenizer.encode(text)
        assert not set(ids) & set(tokenizer.reserved_ids), piece
        bare = str.maketrans("", "", "[]<>|/ ")
        if name != "unigram":
            assert tokenizer.decode(ids).translate(bare) == text.translate(bare).lower(), (
                "and nothing is lost"
            )
    # The trap that the hidden names avoid: the unigram model itself finds its special pieces in a text.
    if name == "unigram":
        library = Library.from_file(str(files[name]))
        library.encode_special_tokens = True
        assert tokenizer.sep_id in library.encode("a </s> b", add_special_tokens=False).ids


def words(tokenizer: Tokenizer, text: str) -> list[str]:
    """What whole-word masking takes for words."""
    ids = tokenizer.encode(text)
    found: list[list[int]] = []
    for position, token in enumerate(ids):
        after = position > 0 and tokenizer.is_word_end[ids[position - 1]]
        if position == 0 or after or tokenizer.is_word_start[token]:
            found.append([])
        found[-1].append(token)
    return [word for ids in found if (word := tokenizer.decode(ids).strip())]


def test_words_are_what_white_space_divides(files: dict[str, Path]) -> None:
    text = "unbelievable shards\n    read  tokens\tand\r\nreturnable unicode\u00fcness"
    assert words(load(files["byte"]), text) == text.split()
    flat = "unbelievable shards read tokens"
    assert words(load(files["unigram"]), flat) == flat.split()
    pieces = [w.replace(" ##", "").replace("##", "") for w in words(load(files["wordpiece"]), flat + ", ok!")]
    assert pieces == [*flat.split(), ",", "ok", "!"]


def test_words_with_other_marks(tmp_path: Path, files: dict[str, Path]) -> None:
    suffix = Library(
        models.BPE({"low": 0, "er</w>": 1, "new</w>": 2, "[UNK]": 3}, [], end_of_word_suffix="</w>")
    )
    suffix.add_special_tokens([AddedToken("[UNK]", special=True)])
    suffix.save(str(tmp_path / "suffix.json"))
    tokenizer = load(tmp_path / "suffix.json")
    assert tokenizer.is_word_start.tolist() == [False, False, False, True]
    assert tokenizer.is_word_end.tolist() == [False, True, True, True]
    whole = Library(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    whole.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    whole.save(str(tmp_path / "whole.json"))
    tokenizer = load(tmp_path / "whole.json")
    assert tokenizer.is_word_start.all(), "pieces say nothing about words, so each is one"
    assert tokenizer.encode("a c b") == [0, 2, 1]


def test_parts_of_characters_are_known(files: dict[str, Path]) -> None:
    tokenizer = load(files["byte"])
    assert tokenizer.is_byte[tokenizer.encode("\U0001f917")].all()
    assert not tokenizer.is_byte[tokenizer.encode("the shard")].any()
    assert not load(files["wordpiece"]).is_byte.any()


def test_dropout_is_switched_off_and_additional_specials_are_reserved(
    files: dict[str, Path], tmp_path: Path
) -> None:
    def change(fields: dict[str, Any]) -> None:
        fields["model"]["dropout"] = 0.9
        entry = dict(fields["added_tokens"][0], id=700, content="<|im_start|>")
        plain = dict(entry, id=701, content="<think>", special=False)
        fields["added_tokens"] += [entry, plain]

    tokenizer = load(changed(files["byte"], tmp_path / "t.json", change))
    text = "a <|im_start|><think> return value"
    assert all(tokenizer.encode(text) == tokenizer.encode(text) for _ in range(20))
    assert tokenizer.vocab_size == 702 and tokenizer.reserved_ids == (0, 700)
    ids = tokenizer.encode(text)
    assert 700 not in ids and 701 in ids, "a token that is not special is text"
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([700, *ids, 0]) == text


def test_an_end_of_text_that_is_also_the_unknown_token_stays_reserved(
    files: dict[str, Path], tmp_path: Path
) -> None:
    def change(fields: dict[str, Any]) -> None:
        fields["model"]["unk_token"] = "<|endoftext|>"

    tokenizer = load(changed(files["byte"], tmp_path / "t.json", change))
    assert (tokenizer.eod_id, tokenizer.unk_id, tokenizer.reserved_ids) == (0, None, (0,))


def model(fields: str) -> str:
    return f'{{"model": {{{fields}}}, "added_tokens": []}}'


def test_what_cannot_be_read_or_encoded_is_named(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="lone surrogate at character 1"):
        load(files["byte"]).encode_batch(["fine", "a\ud800"])
    with pytest.raises(DataError, match="token id 700 is outside"):
        load(files["byte"]).decode([700])
    for content, message in (
        ("{", "not JSON"),
        ('{"a": 1}', "neither a Hugging Face tokenizer.json"),
        ('{"model": {"vocab": {}}}', "not a Hugging Face tokenizer.json"),
        ('{"model": {"vocab": {"a": 0}, "type": "New"}, "added_tokens": []}', "`tokenizers` cannot read it"),
        ('{"kind": "floats"}', '"kind" must be "integers"'),
        (model('"vocab": {"a": 0}, "unk_token": ["x"]'), "not a Hugging Face tokenizer.json"),
        (model('"vocab": [["a", 0]], "unk_id": ["x"]'), "not a Hugging Face tokenizer.json"),
        (model('"vocab": [["a", 0]], "unk_id": "0"'), "not a Hugging Face tokenizer.json"),
        (model('"vocab": [["a", 0]], "unk_id": 1'), "not a Hugging Face tokenizer.json .*unk_id 1"),
        (model('"vocab": [["a", 0]], "unk_id": 0, "unk_token": []'), "`tokenizers` cannot read it"),
        (model('"vocab": {"a": 0}, "merges": null'), "`tokenizers` cannot read it"),
        (model('"vocab": {"a": 0}, "merges": [3]'), "`tokenizers` cannot read it"),
    ):
        path = tmp_path / "bad.json"
        path.write_text(content)
        with pytest.raises(DataError, match=message):
            load_tokenizer(path)


def test_the_file_of_a_corpus_is_found_by_its_name(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected one of tokenizer.model, tokenizer.json, vocabulary.json"):
        corpus_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(files["byte"].read_bytes())
    assert corpus_tokenizer(tmp_path) == tmp_path / "tokenizer.json"
    (tmp_path / "vocabulary.json").write_text("{}")
    with pytest.raises(DataError, match="has tokenizer.json and vocabulary.json"):
        corpus_tokenizer(tmp_path)


def test_kinds_are_told_apart_by_content(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "any.json").write_bytes(tokenizer.path.read_bytes())
    assert isinstance(load_tokenizer(tmp_path / "any.json"), SentencePieceTokenizer)


def write_vocabulary(path: Path, **fields: Any) -> Path:
    path.write_text(json.dumps({"kind": "integers", "vocab_size": 6, "special": {"eod": 5}} | fields))
    return path


def test_integers_are_shown_as_symbols_or_numbers(tmp_path: Path) -> None:
    path = write_vocabulary(tmp_path / "v.json", symbols=["A", "C", "G", "T", "N"])
    dna = load_tokenizer(path)
    assert isinstance(dna, IntegerVocabulary) and dna.file_name == "vocabulary.json"
    assert (dna.vocab_size, dna.eod_id, dna.pad_id, dna.reserved_ids) == (6, 5, None, (5,))
    assert dna.decode([0, 1, 2, 3, 5]) == "ACGT"
    assert [dna.id_to_piece(i) for i in (0, 5)] == ["A", "[EOD]"]
    items = load_tokenizer(write_vocabulary(tmp_path / "n.json"))
    assert items.decode(np.array([4, 0, 5], np.uint16)) == "4 0"
    named = load_tokenizer(write_vocabulary(tmp_path / "s.json", symbols=["Met", "Ala", "Gly"]))
    assert named.decode([0, 2, 4]) == "Met Gly 4"
    assert named.is_word_start.all() and not named.is_byte.any()
    with pytest.raises(
        DataError, match="cannot encode text: name the key of the token lists with --token-key"
    ):
        dna.encode("ACGT")
    with pytest.raises(DataError, match='has no mask; add mask to "special" in it'):
        dna.require("eod", "mask", purpose="BERT")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vocab_size": "6"}, '"vocab_size" must be a number'),
        ({"vocab_size": True}, '"vocab_size" must be a number'),
        ({"special": {"eod": 6}}, r"eod must be an id in \[0, 6\), not 6"),
        ({"special": {"eos": 5}}, 'unknown role "eos"'),
        ({"special": {"eod": 5, "pad": 5}}, "two roles have the same id"),
        ({"special": None}, '"special" must give ids to roles'),
        ({"symbols": ["A"] * 7}, '"symbols" must be a list of at most 6'),
        ({"symbols": ["A", "\udcff"]}, '"symbols" must be a list of at most 6 strings of Unicode'),
        ({"symbol": ["A"]}, 'unknown key "symbol"'),
    ],
)
def test_a_bad_vocabulary_names_its_fault(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_tokenizer(write_vocabulary(tmp_path / "v.json", **fields))


def test_sep_may_end_documents_too(tmp_path: Path) -> None:
    vocabulary = load_tokenizer(write_vocabulary(tmp_path / "v.json", special={"sep": 5, "eod": 5}))
    assert vocabulary.special_ids == (5,)


def test_the_command_writes_a_vocabulary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "vocabulary.json"
    words = ["tokenizer", "--integers", "--symbols", "A", "C", "G", "T", "--out", str(out)]
    assert data_command(words) == 0
    assert (
        "9 ids (model.vocab_size): 4 symbols, pad 4, cls 5, sep 6, mask 7, eod 8" in capsys.readouterr().out
    )
    vocabulary = load_tokenizer(out)
    assert vocabulary.require("pad", "cls", "sep", "mask", "eod", purpose="") == (4, 5, 6, 7, 8)
    assert vocabulary.decode([3, 0, 8]) == "TA"
    assert data_command(words) == 0 and "already complete" in capsys.readouterr().out
    with pytest.raises(DataError, match="exists and is not this vocabulary"):
        data_command(["tokenizer", "--integers", "--vocab-size", "100", "--out", str(out)])
    for wrong, message in (
        (["--integers", "--vocab-size", "3", "--symbols", "A"], "1 --symbols, but --vocab-size 3"),
        (["--integers"], "--integers needs --vocab-size"),
        (["--integers", "--vocab-size", "0"], r"--vocab-size must lie in \[1, "),
        (["--integers", "--symbols", "A", "\udcff"], r"--symbols '\\udcff' is not UTF-8"),
        (["--integers", "--vocab-size", "3", "--input", "x"], "takes no --input"),
        (["--vocab-size", "3"], "name the documents with --input"),
        (["--symbols", "A"], "--symbols belongs to --integers"),
    ):
        with pytest.raises(DataError, match=message):
            data_command(["tokenizer", *wrong, "--out", str(tmp_path / "other.json")])
