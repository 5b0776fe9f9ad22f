"""Train Headwater's tokenizer: a lossless sentencepiece model with fixed special ids.

The options that make it lossless: identity normalisation, white space kept, no dummy prefix, byte
fallback, and newline and tab as symbols of their own (sentencepiece's defaults fold them into spaces).
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import sentencepiece
import xxhash
from sentencepiece import sentencepiece_model_pb2

from data_tools.errors import DataError
from data_tools.record import add_hashes, check_record, describe_inputs, read_record
from data_tools.jsonl import (
    BadLine,
    Chunk,
    Intake,
    LineCounts,
    chunk_digest,
    find_inputs,
    plan_chunks,
    read_chunk,
)
from data_tools.progress import Progress
from data_tools.publish import write_file, write_json
from data_tools.tokenizer import CLS, EOD, MASK, PAD, SEP, UNK, Tokenizer

MODEL_TYPES = ("unigram", "bpe")
SMALLEST_VOCAB = 6 + 2 + 256
"""Special ids, newline and tab, and the 256 bytes; a vocabulary must be larger than this."""

_LONGEST_LINE = 4000  # bytes; sentencepiece silently drops training lines of more than 4192
_SCORE_STEPS = 64  # of a unit of log probability; finer ones stop being exact within long documents
_THREADS = 2  # fixed: sentencepiece sums in thread order, so the number of threads changes the model


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerOptions:
    """What determines a tokenizer, besides its input."""

    vocab_size: int
    """Ids, special ids included."""
    model_type: str = "unigram"
    """"unigram", which encodes five times as fast, or "bpe"."""
    character_coverage: float = 0.9995
    """Share of the characters that get an id of their own; the rest is spelled in bytes."""
    max_train_bytes: int = 100_000_000
    """Of a larger corpus, a sample of the documents of about this size is used."""
    json_key: str = "text"
    """Key of the text in each JSON line."""
    seed: int = 1234
    """Selects the sample."""


def train_tokenizer(
    inputs: Sequence[Path], out: Path, options: TokenizerOptions, max_bad_fraction: float = 0.01
) -> tuple[Tokenizer, bool]:
    """Train on JSON-lines files and write the model to `out`, its record beside it (`OUT.json`).

    Returns:
        The tokenizer, and whether it was trained now (False: it was complete already).

    Raises:
        DataError: bad options or input, no text, a vocabulary that the corpus cannot fill, or an
            `out` that was made from something else.
    """
    _check_options(options)
    files = find_inputs(inputs)
    record_path = out.with_name(out.name + ".json")
    record = read_record(record_path)
    if out.exists():
        if record is None:
            raise DataError(f"{out} exists, not made by this command: remove it or choose another --out")
        check_record(record, asdict(options), files, out)
        tokenizer = Tokenizer.load(out)
        if tokenizer.sha256 != record["sha256"]:
            raise DataError(f"{out} changed since it was trained: remove it and run again")
        return tokenizer, False
    described = describe_inputs(files)
    chunks = plan_chunks(files)
    if not chunks:
        raise DataError(f"the corpus is empty: {files[0]} holds no text")
    intake = Intake()
    model = _train(_training_lines(chunks, options, intake, max_bad_fraction), options)
    tokenizer = Tokenizer(model, out)
    add_hashes(described, chunks, [chunk_digest(chunk) for chunk in chunks])
    content: dict[str, Any] = {"sha256": tokenizer.sha256, "options": asdict(options), "inputs": described}
    write_json(record_path, content | {"counts": asdict(intake.counts)})
    write_file(out, model)  # last: the model marks the pair as complete
    return tokenizer, True


def _check_options(options: TokenizerOptions) -> None:
    if options.model_type not in MODEL_TYPES:
        raise DataError(f"--model-type must be one of {', '.join(MODEL_TYPES)}, not {options.model_type}")
    if options.vocab_size <= SMALLEST_VOCAB:
        raise DataError(f"--vocab-size must be larger than {SMALLEST_VOCAB}: so many ids are fixed")
    if not 0.9 <= options.character_coverage <= 1.0:
        raise DataError(f"--character-coverage must lie in [0.9, 1], not {options.character_coverage:g}")


def _training_lines(
    chunks: Sequence[Chunk], options: TokenizerOptions, intake: Intake, max_bad_fraction: float
) -> Iterator[str]:
    """Lines of the sampled documents, none longer than sentencepiece takes.

    Raises:
        DataError: too many bad lines, or no document at all.
    """
    total = sum(chunk.stop - chunk.start for chunk in chunks)
    keep = math.ceil(min(1.0, options.max_train_bytes / total) * 2**64)
    with Progress("read", total) as progress:
        for chunk in chunks:
            position = chunk.start
            counts = LineCounts()
            bad_lines: list[BadLine] = []
            for item in read_chunk(chunk, options.json_key, counts):
                progress.add(item.offset - position)
                position = item.offset
                if isinstance(item, BadLine):
                    bad_lines.append(item)
                elif xxhash.xxh3_64_intdigest(item.text.encode(), seed=options.seed) < keep:
                    yield from _short_lines(item.text)
            intake.add(chunk, counts, bad_lines)
    intake.check(max_bad_fraction)
    if not intake.counts.documents:
        raise DataError(f"the corpus is empty: no document in {chunks[0].path}")


def _short_lines(text: str) -> Iterator[str]:
    """Non-empty lines of a text; a long one is cut at spaces, or anywhere if it has none.

    A NUL would end the line inside sentencepiece; such characters are spelled in bytes anyway.
    """
    for line in text.replace("\0", "").split("\n"):
        if len(line) * 4 <= _LONGEST_LINE or len(line.encode()) <= _LONGEST_LINE:
            if line:
                yield line
            continue
        limit = _LONGEST_LINE // 4  # characters; each has at most 4 bytes
        yield from (
            match[0] for match in re.finditer(rf".{{1,{limit}}}(?= |$)|.{{1,{limit}}}", line, re.DOTALL)
        )


def _train(lines: Iterator[str], options: TokenizerOptions) -> bytes:
    """Run sentencepiece; returns the serialized model."""
    model = io.BytesIO()
    failure: list[DataError] = []
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_keep_error(lines, failure),
            model_writer=model,
            vocab_size=options.vocab_size,
            model_type=options.model_type,
            character_coverage=options.character_coverage,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            byte_fallback=True,
            user_defined_symbols=["\n", "\t"],
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
        if failure:
            raise failure[0] from error
        raise DataError(_explain(str(error), options)) from error
    return _with_exact_scores(model.getvalue()) if options.model_type == "unigram" else model.getvalue()


def _with_exact_scores(model: bytes) -> bytes:
    """Round the scores of a unigram model to multiples of 1/64, whose float32 sums are exact.

    sentencepiece adds scores along the whole text in float32. Where two segmentations score the same, the
    rounding noise would decide, and other implementations (Hugging Face adds in float64) would differ.
    Newline and tab become ordinary pieces, because user-defined ones get a score that is not exact; no other
    piece contains them, so texts are cut at them as before.
    """
    proto: Any = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model)
    best = max(piece.score for piece in proto.pieces if piece.type == piece.NORMAL)
    for piece in proto.pieces:
        if piece.type in (piece.NORMAL, piece.USER_DEFINED):
            score = piece.score if piece.type == piece.NORMAL else best
            piece.score = round(score * _SCORE_STEPS) / _SCORE_STEPS
            piece.type = piece.NORMAL
    serialized: bytes = proto.SerializeToString()
    return serialized


def _keep_error(lines: Iterator[str], failure: list[DataError]) -> Iterator[str]:
    """Pass lines on, and keep a DataError that sentencepiece would turn into one of its own."""
    try:
        yield from lines
    except DataError as error:
        failure.append(error)
        raise


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
