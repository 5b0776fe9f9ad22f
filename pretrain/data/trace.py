"""`headwater data trace`: what a step of a run read, rank by rank, down to the byte and the text."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_tools.errors import DataError
from data_tools.tokenizer import Tokenizer
from pretrain.config.arguments import non_negative_int, positive_int
from pretrain.data.feed import Corpus, Feed, Located
from pretrain.data.gpt_samples import GptSamples
from pretrain.data.ledger import Attempt, effective, read_ledger
from pretrain.data.opening import open_feed, open_tokenizer
from pretrain.data.philox import I64
from pretrain.data.settings import CACHE_DIRECTORY
from pretrain.data.skip import SKIPPED_DIRECTORY, SkipLog
from pretrain.data.steps import RankPlan


class Place(NamedTuple):
    """Tokens of one block that a sample is made of.

    Attributes:
        shard: its path or URL.
        block: its number in the shard.
        offset: byte in the shard.
        tokens: how many.
    """

    shard: str
    block: int
    offset: int
    tokens: int


class TracedSample(NamedTuple):
    """One sample that a step read.

    Attributes:
        rank: data-parallel rank.
        number: global sample number.
        corpus: its name.
        epoch: passes over the corpus before this one.
        places: where its text lies, in order.
        texts: its text; A and B for sentence pairs.
        left_out: (shard, block) whose damage kept it out of the loss; then it has no places and texts.
    """

    rank: int
    number: int
    corpus: str
    epoch: int
    places: list[Place]
    texts: list[str]
    left_out: tuple[str, int] | None = None


def trace_step(run_dir: Path, step: int) -> Iterator[TracedSample]:
    """What a step read, by rank and position in the batch.

    Args:
        run_dir: the run.
        step: optimizer step, 1 for the first.

    Raises:
        DataError: the run did not get so far, or its corpora are not there.
    """
    attempt = _attempt_of(run_dir, step)
    table, size = attempt.table, attempt.layout["data_parallel_size"]
    first = table.samples_before(step - 1)
    batch_size = table.samples_before(step) - first
    skips = SkipLog(run_dir / CACHE_DIRECTORY / SKIPPED_DIRECTORY, "train", 0, 1)
    left_out = skips.left_out(first + batch_size)
    feed = open_feed(attempt.config, "train").at(attempt.state.phases[-1])
    try:
        tokenizer = open_tokenizer(attempt.config)
        for rank in range(size):
            plan = RankPlan(batch_size, attempt.config.batch.micro_batch_size, rank, size)
            numbers = plan.numbers(first, 1)
            located = feed.locate(numbers)
            for index, number in enumerate(numbers.tolist()):
                traced = TracedSample(
                    rank, number, *_origin(feed, located, index), [], [], left_out.get(number)
                )
                yield (
                    traced
                    if traced.left_out
                    else _read(feed, tokenizer, located.take(index, index + 1), traced)
                )
    finally:
        feed.close()


def _attempt_of(run_dir: Path, step: int) -> Attempt:
    kept = effective(read_ledger(run_dir))
    for attempt, last in kept:
        if attempt.step < step <= last:
            return attempt
    raise DataError(f"--step {step}: the ledger of {run_dir} has steps 1 to {kept[-1][1]}")


def _origin(feed: Feed, located: Located, index: int) -> tuple[str, int]:
    """(name of the corpus, epoch) of a sample."""
    return feed.corpora[int(located.corpus[index])].share.name, int(located.ids.epoch[index])


def _read(feed: Feed, tokenizer: Tokenizer, located: Located, traced: TracedSample) -> TracedSample:
    """Add places and texts to one sample."""
    corpus = feed.corpora[int(located.corpus[0])]
    for part in _parts(corpus, located):
        starts, lengths = np.array(part, dtype=np.int64).T
        traced.texts.append(_text(tokenizer, corpus.reader.read(starts, lengths).astype(np.int64)))
        traced.places.extend(place for start, length in part for place in _places(corpus, start, length))
    return traced


def _parts(corpus: Corpus, located: Located) -> list[list[tuple[int, int]]]:
    """(first token in the corpus stream, tokens) of the ranges of each text of one sample."""
    if not isinstance(corpus.samples, GptSamples):
        return corpus.samples.parts(located.ids)
    assert located.spans is not None
    return [list(zip(located.spans.start.tolist(), located.spans.length.tolist(), strict=True))]


def _places(corpus: Corpus, start: int, length: int) -> Iterator[Place]:
    """The parts of a range of the corpus stream that lie in one block each."""
    starts, manifest = corpus.reader.token_starts, corpus.reader.manifest
    while length:
        start %= int(starts[-1])
        block = int(np.searchsorted(starts, start, side="right")) - 1
        row, inside = manifest.blocks[block], start - int(starts[block])
        count = min(length, int(row["tokens"]) - inside)
        shard = f"{manifest.origin}/{manifest.shards[int(row['shard'])].path}"
        yield Place(
            shard, int(row["key"]), int(row["offset"]) + inside * manifest.token_dtype.itemsize, count
        )
        start, length = start + count, length - count


def _text(tokenizer: Tokenizer, tokens: I64) -> str:
    """Text with <|endoftext|> between documents, which decoding would leave out."""
    ends = np.flatnonzero(tokens == (-1 if tokenizer.eod_id is None else tokenizer.eod_id))
    parts = enumerate(np.split(tokens, ends))
    return "<|endoftext|>".join(tokenizer.decode(part[index > 0 :]) for index, part in parts)


def main(argv: Sequence[str]) -> int:
    """Run `headwater data trace ARGV`."""
    parser = argparse.ArgumentParser(
        prog="headwater data trace",
        description="Show what a step of a run read, by rank: corpus, shard, block, byte, text.",
        epilog="example:\n  headwater data trace --run runs/gpt-tiny --step 100 --rank 0",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="run directory")
    parser.add_argument(
        "--step", type=positive_int, required=True, metavar="N", help="optimizer step, from 1"
    )
    parser.add_argument("--rank", type=non_negative_int, metavar="R", help="only this data-parallel rank")
    parser.add_argument(
        "--chars",
        type=non_negative_int,
        default=200,
        metavar="N",
        help="characters of each text; 0 for all (200)",
    )
    arguments = parser.parse_args(argv)
    ranks = 0
    for sample in trace_step(arguments.run, arguments.step):
        ranks = sample.rank + 1
        if arguments.rank in (None, sample.rank):
            print("\n".join(_lines(sample, arguments.chars)))
    if arguments.rank is not None and arguments.rank >= ranks:
        raise DataError(
            f"--rank {arguments.rank}: step {arguments.step} had data-parallel ranks 0 to {ranks - 1}"
        )
    return 0


def _lines(sample: TracedSample, chars: int) -> Iterator[str]:
    yield f"rank {sample.rank}  sample {sample.number}  corpus {sample.corpus}  epoch {sample.epoch}"
    if sample.left_out:
        shard, block = sample.left_out
        yield f"  left out of the loss: block {block:06d} of {shard} is damaged (data.on_bad_block: skip)"
    for place in sample.places:
        yield f"  {place.shard}  block {place.block:06d}  byte {place.offset}  {place.tokens} tokens"
    for text in sample.texts:
        cut = f"{text[:chars]}..." if chars and len(text) > chars else text
        yield f"  | {cut!r}"
