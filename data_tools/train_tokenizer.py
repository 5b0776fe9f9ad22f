"""Train Headwater's tokenizer: a lossless sentencepiece model with fixed special ids.

The options that make it lossless: identity normalisation, white space kept, no dummy prefix, byte
fallback, and newline and tab as symbols of their own (sentencepiece's defaults fold them into spaces).

Memory does not grow with the corpus: it is that of the sample (`max_train_bytes`), of which sentencepiece
needs about 20 times the size for unigram and 10 times for bpe.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from data_tools.errors import DataError
from data_tools.publish import require_file, write_file, write_json
from data_tools.reading import InputFile, ReadOptions, check_unchanged, chunk_digest, find_inputs
from data_tools.record import check_record, input_entries, read_record
from data_tools.text_sample import SampleOptions, TextSample, draw_sample, sample_chunks
from data_tools.tokenizer import (
    CLS,
    EOD,
    MASK,
    PAD,
    SEP,
    SPECIAL_PIECES,
    UNK,
    WORD_BOUNDARY,
    SentencePieceTokenizer,
    load_tokenizer,
)
from data_tools.tokenizer.interface import SURROGATE
from data_tools.tokenizer_report import TokenizerReport, report_on

MODEL_TYPES = ("unigram", "bpe")
BYTES = 256
FIXED_IDS = len(SPECIAL_PIECES) + 2
"""Special ids, newline and tab: in every vocabulary."""

_LONGEST_LINE = 4000  # bytes; sentencepiece silently drops training lines of more than 4192
_SCORE_STEPS = 64  # of a unit of log probability; finer ones stop being exact within long texts
_SYMBOL_SCORE = 64.0  # more than the pieces around a symbol can ever gain by cutting through it
_THREADS = 2  # fixed: sentencepiece sums in thread order, so the number of threads changes the model
_HELD_OUT = 20  # one document in so many is kept for the report


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerOptions:
    """What determines a tokenizer, besides its input."""

    vocab_size: int
    """Ids, special ids included."""
    model_type: str = "unigram"
    """"unigram", which encodes five times as fast, or "bpe"."""
    character_coverage: float = 0.9995
    """Share of the characters that get an id of their own; the rest is spelled in bytes."""
    byte_fallback: bool = True
    """False: characters without an id become [UNK], and texts with them cannot be decoded."""
    user_symbols: tuple[str, ...] = ()
    """Strings that are always one token, in documents and prompts alike."""
    max_train_bytes: int = 100_000_000
    """Of a larger corpus, a sample of the documents of about this size is used."""
    read: ReadOptions = ReadOptions()
    """How the inputs are read."""
    seed: int = 1234
    """Selects the sample."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What came of a training; `fresh` is False where it was complete already."""

    tokenizer: SentencePieceTokenizer
    report: TokenizerReport
    fresh: bool


def train_tokenizer(
    inputs: Sequence[str | Path], out: Path, options: TokenizerOptions, max_bad_fraction: float = 0.01
) -> Trained:
    """Train on documents and write the model to `out`, its record and report beside it (`OUT.json`).

    Raises:
        DataError: bad options or input, no text, a vocabulary that the corpus cannot fill, or an
            `out` that was made from something else or cannot be written.
    """
    _check_options(options)
    sampling = SampleOptions(
        read=options.read,
        max_bytes=options.max_train_bytes,
        seed=options.seed,
        max_bad_fraction=max_bad_fraction,
    )
    files = find_inputs([str(path) for path in inputs], options.read)
    chunks = sample_chunks(files, sampling)
    record_path = out.with_name(out.name + ".json")
    record = read_record(record_path)
    recorded_options = _as_json(options)
    if out.exists():
        if record is None:
            raise DataError(f"{out} exists, not made by this command: remove it or choose another --out")
        check_record(record, recorded_options, files, chunks, out)
        return _finished(out, record)
    require_file(out)
    if not chunks:
        raise DataError(f"the corpus is empty: {files[0].url} holds no text")
    sample = draw_sample(chunks, sampling)
    training, held_out = _split(sample)
    model = _train(_training_lines(training), options)
    tokenizer = SentencePieceTokenizer(model, out)
    report = report_on(tokenizer, held_out or training, bool(held_out), sample.bytes)
    for file in files:
        check_unchanged(file)
    digests = ((chunk.file_index, chunk_digest(chunk)) for chunk in chunks) if sample.whole else ()
    content: dict[str, Any] = {
        "sha256": tokenizer.sha256,
        "options": recorded_options,
        "inputs": _input_entries(files, digests, sample.whole),
        "counts": asdict(sample.counts),
        "sample": {"documents": len(sample.texts), "bytes": sample.bytes, "of_all_documents": sample.whole},
        "report": asdict(report),
    }
    write_json(record_path, content)
    write_file(out, model)  # last: the model marks the pair as complete
    return Trained(tokenizer, report, True)


def _finished(out: Path, record: dict[str, Any]) -> Trained:
    tokenizer = load_tokenizer(out)
    if tokenizer.sha256 != record.get("sha256") or not isinstance(tokenizer, SentencePieceTokenizer):
        raise DataError(f"{out} changed since it was trained: remove it and run again")
    return Trained(tokenizer, TokenizerReport(**record["report"]), False)


def _as_json(options: TokenizerOptions) -> dict[str, Any]:
    return asdict(options) | {"user_symbols": list(options.user_symbols)}


def _input_entries(files: Sequence[InputFile], digests: Any, whole: bool) -> list[dict[str, Any]]:
    """What the record says of the inputs; of a sample no hash, since that would read all of the corpus."""
    entries = input_entries(files, digests)
    return entries if whole else [entry | {"xxh3_128": None} for entry in entries]


def _check_options(options: TokenizerOptions) -> None:
    if options.model_type not in MODEL_TYPES:
        raise DataError(f"--model-type must be one of {', '.join(MODEL_TYPES)}, not {options.model_type}")
    fixed = FIXED_IDS + len(options.user_symbols) + (BYTES if options.byte_fallback else 0)
    if options.vocab_size <= fixed:
        raise DataError(f"--vocab-size must be larger than {fixed}: so many ids are fixed")
    if not 0.9 <= options.character_coverage <= 1.0:
        raise DataError(f"--character-coverage must lie in [0.9, 1], not {options.character_coverage:g}")
    if options.max_train_bytes < 1:
        raise DataError("--max-train-mb must be larger than 0")
    for symbol in options.user_symbols:
        byte_piece = re.fullmatch(r"<0x[0-9A-F]{2}>", symbol)
        if (
            not symbol
            or re.search(rf"[\s\0{WORD_BOUNDARY}]", symbol)
            or SURROGATE.search(symbol)
            or symbol in SPECIAL_PIECES
            or byte_piece
        ):
            raise DataError(
                f"--user-symbols {symbol!r}: must be UTF-8 text without white space, and no special or byte "
                "piece"
            )
    if len(set(options.user_symbols)) < len(options.user_symbols):
        raise DataError("--user-symbols: one is named twice")


def _split(sample: TextSample) -> tuple[list[str], list[str]]:
    """Documents to train on, and those held out for the report; none of a corpus of a few documents."""
    training: list[str] = []
    held_out: list[str] = []
    for text, number in zip(sample.texts, sample.hashes, strict=True):
        (held_out if number % _HELD_OUT == 0 else training).append(text)
    return (training, held_out) if training else (held_out, [])


def _training_lines(texts: Sequence[str]) -> Iterator[str]:
    """Lines of the documents, none empty, none longer than sentencepiece takes.

    A long one is cut at spaces, or anywhere if it has none. A NUL would end the line inside sentencepiece;
    such characters are spelled in bytes anyway.
    """
    limit = _LONGEST_LINE // 4  # characters; each has at most 4 bytes
    for text in texts:
        for line in text.replace("\0", "").split("\n"):
            if len(line) * 4 <= _LONGEST_LINE or len(line.encode()) <= _LONGEST_LINE:
                if line:
                    yield line
                continue
            found = re.finditer(rf".{{1,{limit}}}(?= |$)|.{{1,{limit}}}", line, re.DOTALL)
            yield from (match[0] for match in found)


def _train(lines: Iterator[str], options: TokenizerOptions) -> bytes:
    """Run sentencepiece; returns the serialized model."""
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines,
            model_writer=model,
            vocab_size=options.vocab_size,
            model_type=options.model_type,
            character_coverage=options.character_coverage,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            byte_fallback=options.byte_fallback,
            user_defined_symbols=["\n", "\t", *options.user_symbols],
            control_symbols=[CLS, SEP, MASK, EOD],
            pad_id=0,
            pad_piece=PAD,
            unk_id=1,
            unk_piece=UNK,
            bos_id=-1,
            eos_id=-1,
            num_threads=_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise DataError(_explain(str(error), options)) from error
    return _with_exact_scores(model.getvalue()) if options.model_type == "unigram" else model.getvalue()


def _with_exact_scores(model: bytes) -> bytes:
    """Round the scores of a unigram model to multiples of 1/64, whose float32 sums are exact.

    sentencepiece adds scores along the whole text in float32. Where two segmentations score the same, the
    rounding noise would decide, and other implementations (Hugging Face adds in float64) would differ.
    User-defined pieces become ordinary ones, because sentencepiece gives them a score that is not exact.
    No other piece contains newline or tab, so texts are cut at them as before; the other symbols score so
    high that no segmentation without them wins.
    """
    proto: Any = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model)
    best = max(piece.score for piece in proto.pieces if piece.type == piece.NORMAL)
    for piece in proto.pieces:
        if piece.type == piece.USER_DEFINED:
            piece.score = best if piece.piece in "\n\t" else _SYMBOL_SCORE
            piece.type = piece.NORMAL
        if piece.type == piece.NORMAL:
            piece.score = round(piece.score * _SCORE_STEPS) / _SCORE_STEPS
    serialized: bytes = proto.SerializeToString()
    return serialized


def _explain(message: str, options: TokenizerOptions) -> str:
    """What a failure of sentencepiece means for the user."""
    if found := re.search(r"too high \(\d+\).*?<= (\d+)", message):
        return (
            f"--vocab-size {options.vocab_size} is too large for this corpus: "
            f"it fills at most {found[1]}; choose that or less, or add text"
        )
    if found := re.search(r"required_chars.*?(\d+) vs (\d+)", message):
        return (
            f"--vocab-size {options.vocab_size} is too small for the characters of this corpus: "
            f"choose at least {found[2]}, or a lower --character-coverage"
        )
    return f"sentencepiece could not train: {message.splitlines()[-1] if message else 'no message'}"
