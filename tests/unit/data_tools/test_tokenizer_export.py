"""The exported Hugging Face tokenizer gives the ids of ours, and the command proves it."""

from __future__ import annotations

import json
import pydoc_data.topics
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from transformers import AutoTokenizer

from data_tools.cli import main as data_command
from data_tools.errors import DataError
from data_tools.hf_tokenizer import (
    PROBES,
    build_fast_tokenizer,
    has_exact_scores,
    prove_same_ids,
    write_hf_files,
)
from data_tools.tokenizer import SentencePieceTokenizer, load_tokenizer
from data_tools.train_tokenizer import TokenizerOptions, train_tokenizer
from tests.unit.data_tools.support import write_jsonl

TOPICS = list(pydoc_data.topics.topics.values())
SYMBOLS = ("<|user|>", "e<", "__init__")


@pytest.fixture(scope="module")
def topics_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("topics") / "topics.jsonl", TOPICS)


@pytest.fixture(scope="module", params=["unigram", "bpe", "unigram-symbols", "bpe-symbols"])
def model(request, topics_file: Path, tmp_path_factory: pytest.TempPathFactory) -> SentencePieceTokenizer:
    kind, _, symbols = request.param.partition("-")
    options = TokenizerOptions(vocab_size=1200, model_type=kind, user_symbols=SYMBOLS if symbols else ())
    out = tmp_path_factory.mktemp(request.param) / "tokenizer.model"
    return train_tokenizer([topics_file], out, options).tokenizer


def real_text() -> Iterator[str]:
    """Sources of the standard library: prose, code, tables, some of every script."""
    root = Path(json.__file__).parent.parent
    for path in sorted(root.rglob("*.py")):
        if "site-packages" not in path.parts:
            yield path.read_text(encoding="utf-8", errors="ignore")


def up_to(texts: Iterator[str], size: int) -> Iterator[str]:
    for text in texts:
        yield text
        size -= len(text.encode())
        if size <= 0:
            return


def proved(model: SentencePieceTokenizer, directory: Path, texts: Iterator[str]) -> int:
    write_hf_files(model, "gpt", None, directory)
    return prove_same_ids(model, directory, texts).bytes


def test_ids_are_identical_on_real_text(model: SentencePieceTokenizer, tmp_path: Path) -> None:
    assert proved(model, tmp_path, up_to(real_text(), 300_000)) >= 300_000


@pytest.mark.slow
def test_ids_are_identical_on_five_megabytes(model: SentencePieceTokenizer, tmp_path: Path) -> None:
    assert proved(model, tmp_path, up_to(real_text(), 5_000_000)) >= 5_000_000
    whole = "\n".join(up_to(real_text(), 5_000_000))
    assert prove_same_ids(model, tmp_path, [whole]).bytes >= 5_000_000, "as one document, too"


fragments = st.sampled_from(
    [
        "\u2581",
        " ",
        "  ",
        "\n",
        "\t",
        "\r",
        "[MASK]",
        "<0x0A>",
        "[",
        "the",
        "\x00",
        "----",
        *SYMBOLS,
        "e<|user|>",
    ]
)


def test_ids_are_identical_on_any_text(model: SentencePieceTokenizer) -> None:
    fast = build_fast_tokenizer(model, "gpt")
    fast.encode_special_tokens = True

    @given(st.lists(st.one_of(fragments, st.text(max_size=8)), max_size=12).map("".join))
    @example("\u2581 \u2581")
    @example("\ud7ff\ue000\U0010ffff")
    @settings(max_examples=200, deadline=None)
    def same(text: str) -> None:
        ids = model.encode(text)
        assert fast.encode(text, add_special_tokens=False).ids == ids
        assert fast.decode(ids, skip_special_tokens=False) == text == model.decode(ids)

    same()


def test_a_long_document_has_the_same_ids(topics_file: Path, tmp_path: Path) -> None:
    """Runs that many ways of cutting score the same for, behind text that float32 sums round in."""
    options = TokenizerOptions(vocab_size=2000)
    model = train_tokenizer([topics_file], tmp_path / "t.model", options).tokenizer
    assert has_exact_scores(model)
    text = "\n".join(TOPICS) + ("-" * 67 + " " + "=" * 43 + " xx " * 3) * 3000
    assert proved(model, tmp_path, iter([text])) > 500_000


def test_transformers_loads_what_is_written(model: SentencePieceTokenizer, tmp_path: Path) -> None:
    write_hf_files(model, "bert", 64, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert loaded.model_max_length == 64
    assert (loaded.cls_token_id, loaded.sep_token_id, loaded.mask_token_id, loaded.pad_token_id) == (
        2,
        3,
        4,
        0,
    )
    assert loaded("a b")["input_ids"] == [2, *model.encode("a b"), 3]
    assert 4 in loaded("a [MASK]")["input_ids"]
    for text in PROBES:
        encoded = loaded(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert encoded == model.encode(text) and loaded.decode(encoded) == text
    assert json.loads((tmp_path / "special_tokens_map.json").read_text())["mask_token"] == "[MASK]"


def run(*words: object) -> None:
    assert data_command(["export-tokenizer", *map(str, words)]) == 0


def test_the_command_exports_and_tells_what_it_compared(
    model: SentencePieceTokenizer, topics_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run(model.path, "--out", out, "--kind", "bert", "--input", topics_file, "--sample-mb", 0.1)
    assert "identical ids on" in capsys.readouterr().out
    assert {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"} < {
        p.name for p in out.iterdir()
    }
    with pytest.raises(DataError, match="exists"):
        run(tmp_path / "no.model", "--out", out)  # before anything is read


def test_a_single_other_id_is_refused_with_its_text(
    model: SentencePieceTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_hf_files(model, "gpt", None, tmp_path)
    path = tmp_path / "tokenizer.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(fields["model"]["vocab"], list):
        next(e for e in fields["model"]["vocab"] if e[0] == " the")[1] = -500.0
    else:
        fields["model"]["merges"] = [m for m in fields["model"]["merges"] if "".join(m) != " the"]
    path.write_text(json.dumps(fields), encoding="utf-8")
    with pytest.raises(DataError, match=r"gives other ids from token \d+ on, .* the .*nothing was written"):
        prove_same_ids(model, tmp_path, ["fine", "see the end"])

    def wrong(original: object, kind: str) -> Library:
        return Library.from_str(json.dumps(fields))

    monkeypatch.setattr("data_tools.hf_tokenizer.build_fast_tokenizer", wrong)
    out = tmp_path / "out"
    with pytest.raises(DataError, match="other ids"):
        run(model.path, "--out", out)
    assert not out.exists()


def test_a_hugging_face_tokenizer_is_passed_on_with_its_special_tokens(
    model: SentencePieceTokenizer, tmp_path: Path
) -> None:
    write_hf_files(model, "bert", None, tmp_path)
    run(tmp_path / "tokenizer.json", "--out", tmp_path / "out", "--kind", "bert", "--max-length", 32)
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)
    assert loaded.cls_token == "[CLS]" and loaded.model_max_length == 32
    assert load_tokenizer(tmp_path / "tokenizer.json").encode("see [MASK]") == model.encode("see [MASK]")


def test_a_model_without_byte_fallback_is_exported_too(topics_file: Path, tmp_path: Path) -> None:
    for model_type in ("unigram", "bpe"):
        options = TokenizerOptions(
            vocab_size=600, model_type=model_type, byte_fallback=False, character_coverage=1.0
        )
        model = train_tokenizer([topics_file], tmp_path / f"{model_type}.model", options).tokenizer
        texts = [*PROBES, "\U0001f917\U0001f917 a\u2581\U0001f917b"]
        assert model.unk_id in model.encode(texts[-1])
        write_hf_files(model, "gpt", None, tmp_path)
        prove_same_ids(model, tmp_path, texts)


def test_integers_cannot_be_exported(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.json"
    path.write_text('{"kind": "integers", "vocab_size": 6, "special": {"eod": 5}}')
    with pytest.raises(DataError, match="a vocabulary of integers has no text"):
        run(path, "--out", tmp_path / "out")
