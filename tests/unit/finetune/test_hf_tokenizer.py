"""The converted tokenizer gives the ids of the original."""

from __future__ import annotations

import json
import pydoc_data.topics
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from data_tools.errors import DataError
from data_tools.hf_tokenizer import PROBES, has_exact_scores
from data_tools.tokenizer import load_tokenizer
from finetune.errors import ConversionError
from finetune.hf_tokenizer import check_same_ids, differing_texts, plain_ids, write_hf_tokenizer
from tests.unit.finetune.conftest import train

SAMPLE = [*pydoc_data.topics.topics.values(), *PROBES, Path(json.__file__).read_text(encoding="utf-8")]
MODEL_TYPES = {"gpt": "gpt2", "bert": "bert"}


@pytest.fixture(scope="module")
def bpe_model(tmp_path_factory):
    return train(tmp_path_factory.mktemp("bpe"), "bpe", 900)


def converted(model, kind, directory):
    """What a user loads; with config.json, so that AutoTokenizer sees the model type."""
    (directory / "config.json").write_text(json.dumps({"model_type": MODEL_TYPES[kind]}))
    write_hf_tokenizer(model, kind, 64, directory)
    return AutoTokenizer.from_pretrained(directory, local_files_only=True)


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def pair(request, tokenizer_model, bpe_model, tmp_path_factory):
    model = tokenizer_model if request.param == "unigram" else bpe_model
    return load_tokenizer(model), converted(model, "gpt", tmp_path_factory.mktemp("gpt"))


def test_the_ids_of_a_large_sample_are_equal(pair):
    assert list(differing_texts(*pair, SAMPLE)) == []


# What converters get wrong: spaces, the space mark itself, bytes, special tokens and byte pieces as text.
fragments = st.sampled_from(
    ["\u2581", " ", "  ", "\n", "\t", "\r", "[MASK]", "<0x0A>", "[", "the", "\x00", "----"]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(fragments, st.text(max_size=8)), max_size=12).map("".join))
@example("\u2581 \u2581")
@example("\ud7ff\ue000\U0010ffff")
def test_the_ids_of_any_text_are_equal_and_decode_to_it(pair, text):
    original, fast = pair
    assert plain_ids(fast, text) == original.encode(text)
    assert fast.decode(plain_ids(fast, text)) == text


def test_bert_adds_cls_sep_and_token_types(tokenizer_model, tmp_path):
    original, fast = load_tokenizer(tokenizer_model), converted(tokenizer_model, "bert", tmp_path)
    first, second = original.encode("a return value"), original.encode(" of it")
    encoded = fast("a return value", " of it")
    assert encoded["input_ids"] == [2, *first, 3, *second, 3]
    assert encoded["token_type_ids"] == [0] * (len(first) + 2) + [1] * (len(second) + 1)
    assert fast("a return value")["input_ids"] == [2, *first, 3]
    names = ("pad", "unk", "cls", "sep", "mask")
    assert [getattr(fast, f"{name}_token_id") for name in names] == [0, 1, 2, 3, 4]
    assert fast.model_max_length == 64


def test_gpt_adds_nothing_and_knows_the_end_of_text(pair):
    original, fast = pair
    assert fast("a return value")["input_ids"] == original.encode("a return value")
    assert fast.eos_token_id == original.eod_id and fast.pad_token_id == original.pad_id
    assert "token_type_ids" not in fast("a")


def test_a_special_token_in_the_text_is_one_only_where_it_is_asked_for(tokenizer_model, tmp_path):
    original, fast = load_tokenizer(tokenizer_model), converted(tokenizer_model, "bert", tmp_path)
    assert 4 in fast("a [MASK] b")["input_ids"]
    assert plain_ids(fast, "a [MASK] b") == original.encode("a [MASK] b")
    assert 4 not in original.encode("a [MASK] b")


def with_changed_piece(model, out, change):
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model.read_bytes())
    change(proto)
    out.write_bytes(proto.SerializeToString())
    return out


def test_a_disagreement_is_an_error(tokenizer_model, tmp_path):
    converted(tokenizer_model, "gpt", tmp_path)

    def forbid_a_word(proto):
        next(p for p in proto.pieces if p.piece == "\u2581the").type = 5  # unused

    other = load_tokenizer(with_changed_piece(tokenizer_model, tmp_path / "other.model", forbid_a_word))
    with pytest.raises(ConversionError, match="gives other ids"):
        check_same_ids(other, tmp_path, ["see the end"])


def test_inexact_scores_are_told_and_only_ties_are_let_pass(tokenizer_model, tmp_path):
    def make_inexact(proto):
        for index, piece in enumerate(p for p in proto.pieces if p.type == 1):
            piece.score += 1e-4 * (index % 7)

    inexact = with_changed_piece(tokenizer_model, tmp_path / "inexact.model", make_inexact)
    assert has_exact_scores(load_tokenizer(tokenizer_model))
    assert not has_exact_scores(load_tokenizer(inexact))
    converted(inexact, "gpt", tmp_path)
    with pytest.raises(ConversionError):
        check_same_ids(load_tokenizer(inexact), without_the(tmp_path), ["see the end"])


def without_the(directory):
    """Make the converted tokenizer wrong."""
    path = directory / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    entry = next(e for e in tokenizer["model"]["vocab"] if e[0] == " the")
    entry[1] = -500.0
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    return directory


def test_a_model_that_normalises_is_refused(tokenizer_model, tmp_path):
    def normalise(proto):
        proto.normalizer_spec.remove_extra_whitespaces = True

    model = with_changed_piece(tokenizer_model, tmp_path / "lossy.model", normalise)
    with pytest.raises(DataError, match="changes text"):
        write_hf_tokenizer(model, "gpt", 64, tmp_path)
