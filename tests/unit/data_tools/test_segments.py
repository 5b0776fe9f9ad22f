from __future__ import annotations

import importlib.util
import shlex
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2

from data_tools.tokenizer import Tokenizer, load_tokenizer, segments
from data_tools.tokenizer.segments import SegmentEncoder, cut_table
from data_tools.train_tokenizer import TokenizerOptions, train_tokenizer

SOURCE = Path(segments.__file__).with_name("_segments.c")
TEXTS = st.lists(
    st.text(
        st.one_of(
            st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"),
            st.sampled_from(" \n\t\r\0etaion.,_-()09AZ中文é\xa0"),
        )
    ),
    max_size=5,
)


@pytest.fixture(scope="module", autouse=True)
def _compiled(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The source as it is now, compiled, whatever the environment was built with."""
    target = tmp_path_factory.mktemp("compiled") / "_segments.so"
    compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")
    include = sysconfig.get_paths()["include"]
    flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-I{include}"]
    subprocess.run([*compiler, *flags, str(SOURCE), "-o", str(target)], check=True)
    spec = importlib.util.spec_from_file_location("_segments", target)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "_segments", module)
        yield


@pytest.fixture(scope="module", params=["unigram", "bpe", "no bytes", "symbols"])
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, corpus_file: Path
) -> bytes:
    options = TokenizerOptions(
        vocab_size=240 if request.param == "no bytes" else 400,
        model_type="bpe" if request.param == "bpe" else "unigram",
        byte_fallback=request.param != "no bytes",
        user_symbols=("<|user|>", "==") if request.param == "symbols" else (),
    )
    out = tmp_path_factory.mktemp("model") / "tokenizer.model"
    train_tokenizer([corpus_file], out, options)
    return out.read_bytes()


def differing(
    encoder: SegmentEncoder, reference: sentencepiece.SentencePieceProcessor, texts: list[str]
) -> list[str]:
    found = encoder.encode([text.encode() for text in texts])
    assert len(found) == len(texts)
    return [text for text, ids in zip(texts, found, strict=True) if ids.tolist() != reference.encode(text)]


def test_ids_are_those_of_sentencepiece(model: bytes, texts: list[str]) -> None:
    cuts = cut_table(model)
    assert cuts is not None
    reference = sentencepiece.SentencePieceProcessor(model_proto=model)
    encoder = SegmentEncoder(reference, cuts)
    assert not differing(encoder, reference, [*texts, "", "", *texts[:5]])
    pieces = [reference.id_to_piece(i).replace("\u2581", " ") for i in range(6, reference.vocab_size())]

    @given(TEXTS)
    @example([])
    @example(["", "\n", "\n\n", " ", "   x", "x" * 70, "中" * 100, "\x07\x07 \x07", "<|user|>==="])
    @settings(max_examples=200, deadline=None)
    def any_text(drawn: list[str]) -> None:
        assert not differing(encoder, reference, drawn)

    @given(st.lists(st.sampled_from(pieces), max_size=40).map("".join))
    @settings(max_examples=200, deadline=None)
    def joined_pieces(drawn: str) -> None:
        assert not differing(encoder, reference, [drawn])

    any_text()
    joined_pieces()


def test_what_is_remembered_is_bounded_and_forgetting_changes_nothing(
    tokenizer: Tokenizer, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("_ENTRIES", 64), ("_KEY_BYTES", 256), ("_MOST_IDS", 200), ("_CHUNK_BYTES", 100)):
        monkeypatch.setattr(segments, name, value)
    model = tokenizer.path.read_bytes()
    reference = sentencepiece.SentencePieceProcessor(model_proto=model)
    encoder = SegmentEncoder(reference, cut_table(model) or b"")
    forgot = []
    forget = encoder._forget
    monkeypatch.setattr(encoder, "_forget", lambda: (forgot.append(encoder._entries), forget()))
    assert not differing(encoder, reference, [*texts, "a" * 10_000, *texts])
    assert len(forgot) > 10 and max(forgot) <= 64


def changed(tokenizer: Tokenizer, change: Any) -> bytes:
    proto: Any = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(tokenizer.path.read_bytes())
    change(proto)
    return bytes(proto.SerializeToString())


@pytest.mark.parametrize(
    "change",
    [
        lambda proto: setattr(proto.normalizer_spec, "add_dummy_prefix", True),
        lambda proto: setattr(proto.normalizer_spec, "remove_extra_whitespaces", True),
        lambda proto: setattr(proto.normalizer_spec, "precompiled_charsmap", b"x"),
        lambda proto: setattr(proto.normalizer_spec, "escape_whitespaces", False),
        lambda proto: setattr(proto.pieces[300], "score", -7.3),
        lambda proto: setattr(proto.pieces[300], "score", -5000.0),
        lambda proto: setattr(proto.pieces[300], "type", proto.SentencePiece.UNUSED),
        lambda proto: setattr(proto.pieces[300], "piece", "a\nb"),
        lambda proto: setattr(proto.trainer_spec, "model_type", proto.trainer_spec.WORD),
    ],
)
def test_a_model_that_may_not_decompose_is_not_cut(tokenizer: Tokenizer, change: Any) -> None:
    assert cut_table(changed(tokenizer, lambda proto: None)) is not None
    assert cut_table(changed(tokenizer, change)) is None


def test_no_cut_lies_inside_a_piece_or_a_character(model: bytes) -> None:
    table = np.frombuffer(cut_table(model) or b"", np.bool_).reshape(256, 256)
    reference = sentencepiece.SentencePieceProcessor(model_proto=model)
    for token in range(6, reference.vocab_size()):
        if not reference.is_byte(token):
            spelled = reference.id_to_piece(token).replace("\u2581", " ").encode()
            assert not any(table[pair] for pair in zip(spelled, spelled[1:], strict=False))
    assert not any(table[a, b] for char in "é中\U0001f680" for a, b in [tuple(char.encode()[:2])])
    assert table[ord("e"), ord("\n")] and table[ord("\n"), ord("\n")]


def test_the_tokenizer_uses_it_and_falls_back_without_it(
    tokenizer: Tokenizer, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = load_tokenizer(tokenizer.path)
    assert fast._segments is not None  # type: ignore[attr-defined]
    sample = [*texts[:40], "a \u2581 b", ""]
    expected = fast.encode_batch(sample)
    monkeypatch.setattr(segments, "_segments", None)
    plain = load_tokenizer(tokenizer.path)
    assert plain._segments is None  # type: ignore[attr-defined]
    for one, other in zip(expected, plain.encode_batch(sample), strict=True):
        assert one.dtype == other.dtype == np.int32 and one.tolist() == other.tolist()


@pytest.mark.parametrize("compiled", [True, False])
def test_texts_in_utf8_have_the_ids_of_texts(
    tokenizer: Tokenizer, texts: list[str], monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> None:
    if not compiled:
        monkeypatch.setattr(segments, "_segments", None)
    kind = load_tokenizer(tokenizer.path)
    for some in ([], [""], ["", "a b", ""], [*texts[:40], "a \u2581 b", ""], texts[:40]):
        ids, lengths = kind.encode_utf8([text.encode() for text in some])
        arrays = kind.encode_batch(some)
        assert (ids.dtype, lengths.dtype) == (np.int32, np.int64)
        assert lengths.tolist() == [len(array) for array in arrays]
        assert ids.tolist() == [token for array in arrays for token in array.tolist()]


def test_buffers_that_do_not_fit_are_refused() -> None:
    module: Any = segments._segments
    buffers = [np.zeros(8, np.uint64), np.zeros(8, np.uint8), np.zeros(3, np.uint32)]
    with pytest.raises(ValueError, match="do not fit"):
        module.find(b"abc", 0, 4, bytes(1 << 16), *buffers, 0, np.zeros(8, np.int32), np.zeros(16, np.int64))
    edges, nodes, ids = np.full((4, 2), 2**32 - 1, np.uint32), np.zeros(3, np.int32), np.zeros(256, np.int32)
    tables = {"edges": edges, "scores": nodes, "ids": nodes, "byte_ids": ids}
    assert module.unigram(b"ab\n", *tables.values(), 1, -1, np.zeros(2, np.int64)) == bytes(2 * 4)
    for name, wrong in (
        ("edges", edges[:3]), ("edges", edges * 0), ("scores", nodes[:2]), ("byte_ids", ids[:255])
    ):  # fmt: skip
        with pytest.raises(ValueError, match="do not fit"):
            module.unigram(b"ab\n", *{**tables, name: wrong}.values(), 1, -1, np.zeros(2, np.int64))
    with pytest.raises(ValueError, match="do not fit"):
        module.unigram(b"ab\n", *tables.values(), 1, -1, np.zeros(1, np.int64))
    with pytest.raises(ValueError, match="outside of the ids"):
        module.gather(np.array([0, 1], np.int32), np.array([0, 1], np.int64), np.zeros(1, np.int32))
