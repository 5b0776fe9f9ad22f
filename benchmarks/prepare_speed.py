"""How fast `headwater data prepare` is, next to bare sentencepiece and Megatron-LM's preprocess_data.py.

    python -m benchmarks.prepare_speed --megatron-lm PATH_TO_CHECKOUT

Every round runs each of them once, with the same text, vocabulary and number of workers:

- sentencepiece alone: batches of documents that are in memory already, in threads and in processes;
- `headwater data prepare` and Megatron-LM's tools/preprocess_data.py: the whole command, on all documents and
  on every third one. "as a whole" is the rate of the command on all documents, start-up included. "steady" is
  the difference in text over the difference in time: the rate without what does not grow with the text.

Rates "by CPU second" count processor time, of all processes: other work on the machine hardly changes them.

In the first round the ids of prepare and of preprocess_data.py are compared, document by document.

The text is documentation of Debian (`debian_docs`) or --text, a jsonl file. The vocabulary is trained on it
first. Both stay in --directory, if that is given. Megatron-LM needs a checkout of release core_v0.16.1 and
the package triton.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import sentencepiece

from benchmarks.debian_docs import PACKAGES, collect
from benchmarks.machine import describe
from benchmarks.timing import Seconds, taken
from data_tools.provenance import read_provenance
from data_tools.shard_format import load_manifest
from data_tools.shard_reader import iterate_documents

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
SAMPLE = 3
"""Every third document makes the smaller text."""
BATCH = 256
OURS = "headwater data prepare"
MEGATRON = "Megatron-LM preprocess_data.py"


class Text(NamedTuple):
    """A jsonl file and its size in MB of text."""

    path: Path
    size: float


@dataclass(frozen=True)
class Setting:
    """What all commands have in common.

    Attributes:
        directory: where to work.
        whole, part: all documents; every third.
        model: the vocabulary.
        workers: processes.
        megatron: checkout of Megatron-LM, or None.
    """

    directory: Path
    whole: Text
    part: Text
    model: Path
    workers: int
    megatron: Path | None

    def prepare(self, text: Text, out: Path, *options: str) -> list[str]:
        """The command that makes a corpus."""
        return [
            sys.executable, "-m", "launch.cli", "data", "prepare", "--input", str(text.path),
            "--tokenizer", str(self.model), "--out", str(out), "--workers", str(self.workers), *options,
        ]  # fmt: skip

    def preprocess(self, text: Text, prefix: Path) -> list[str]:
        """Megatron-LM's command."""
        return [
            sys.executable, f"{self.megatron}/tools/preprocess_data.py", "--input", str(text.path),
            "--output-prefix", str(prefix), "--tokenizer-type", "SentencePieceTokenizer",
            "--tokenizer-model", str(self.model), "--workers", str(self.workers), "--log-interval", "100000",
        ]  # fmt: skip


def seconds_of(command: list[str]) -> Seconds:
    """Run a command; what it took."""
    with taken() as seconds:
        done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return seconds[0]


def texts_of(text: Text) -> list[str]:
    """The documents."""
    with text.path.open() as lines:
        return [json.loads(line)["text"] for line in lines]


def bare_threads(setting: Setting) -> Seconds:
    """One process with so many threads."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(setting.model))
    texts = texts_of(setting.part)
    with taken() as seconds:
        for start in range(0, len(texts), BATCH):
            processor.encode_as_numpy(texts[start : start + BATCH], num_threads=setting.workers)
    return seconds[0]


def bare_processes(setting: Setting) -> Seconds:
    """So many processes: the slowest by the clock, all of them in processor time; without their start."""
    texts, workers = texts_of(setting.part), setting.workers
    barrier = multiprocessing.Barrier(workers)
    results: multiprocessing.Queue[Seconds] = multiprocessing.Queue()

    def work(share: list[str]) -> None:
        processor = sentencepiece.SentencePieceProcessor(model_file=str(setting.model))
        barrier.wait()
        with taken() as seconds:
            for start in range(0, len(share), BATCH):
                processor.encode_as_numpy(share[start : start + BATCH], num_threads=1)
        results.put(seconds[0])

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work, args=(texts[i::workers],)) for i in range(workers)]
    for process in processes:
        process.start()
    found = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return Seconds(max(seconds.clock for seconds in found), sum(seconds.cpu for seconds in found))


def rates(name: str, size: float, seconds: Seconds) -> dict[str, float]:
    """MB a second of the clock, and of processors."""
    return {name: size / seconds.clock, f"{name}, by CPU second": size / seconds.cpu}


def rates_of(setting: Setting, name: str, command: Callable[[Text], list[str]]) -> dict[str, float]:
    """Rates of a command as a whole, and steady."""
    whole, part = (seconds_of(command(text)) for text in (setting.whole, setting.part))
    difference = Seconds(*(more - less for more, less in zip(whole, part, strict=True)))
    return {
        **rates(f"{name}, as a whole", setting.whole.size, whole),
        **rates(f"{name}, steady", setting.whole.size - setting.part.size, difference),
    }


def compare_ids(corpus: Path, prefix: Path) -> int:
    """Compare the ids of every document in a corpus of ours with Megatron-LM's; returns how many ids."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    ours = sorted(stored(corpus), key=lambda document: document[0])
    theirs = IndexedDataset(f"{prefix}_text_document")
    if len(ours) != len(theirs):
        raise SystemExit(f"{len(ours)} documents of ours, {len(theirs)} of Megatron-LM")
    for number, (_, tokens) in enumerate(ours):
        if not np.array_equal(tokens, theirs[number]):
            raise SystemExit(f"document {number}: the ids differ")
    return sum(len(tokens) for _, tokens in ours)


def stored(corpus: Path) -> Iterator[tuple[int, npt.NDArray[np.integer]]]:
    """(place in the input, ids without the end of document) of each document."""
    for split in ("train", "validation"):
        manifest = load_manifest(corpus / split)
        paths = [shard.provenance.path for shard in manifest.shards if shard.provenance is not None]
        origins = (origin for path in paths for origin in read_provenance(corpus / split / path))
        for origin, (tokens, _) in zip(origins, iterate_documents(manifest), strict=True):
            yield origin.position, tokens[:-1]


def compare(setting: Setting, rounds: int) -> tuple[dict[str, list[float]], int]:
    """Rates by name, and how many ids were compared."""
    by_name: dict[str, list[float]] = {}
    ids, directory = 0, setting.directory / "made"
    for number in range(rounds):
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        commands: dict[str, Callable[[Text], list[str]]] = {
            OURS: lambda text: setting.prepare(text, directory / text.path.stem),
            f"{OURS} --sentences": lambda text: setting.prepare(
                text, directory / f"{text.path.stem}-sentences", "--sentences"
            ),
        }
        if setting.megatron:
            commands[MEGATRON] = lambda text: setting.preprocess(
                text, directory / f"{text.path.stem}-megatron"
            )
        found = {
            **rates("sentencepiece, threads", setting.part.size, bare_threads(setting)),
            **rates("sentencepiece, processes", setting.part.size, bare_processes(setting)),
        }
        for name, command in commands.items():
            found |= rates_of(setting, name, command)
        for name, rate in found.items():
            by_name.setdefault(name, []).append(rate)
            print(f"round {number + 1}: {name}: {rate:.1f} MB/s", flush=True)
        if setting.megatron and not number:
            stem = setting.whole.path.stem
            ids = compare_ids(directory / stem, directory / f"{stem}-megatron")
        shutil.rmtree(directory)
    return by_name, ids


def set_up(directory: Path, arguments: argparse.Namespace) -> Setting:
    """Collect the text and train the vocabulary, unless an earlier call did."""
    text, part, model = directory / "docs.jsonl", directory / "part.jsonl", directory / "tokenizer.model"
    if arguments.text:
        shutil.copy(arguments.text, text)
    elif not text.exists():
        collect(PACKAGES, text)
    if not model.exists():
        command = [sys.executable, "-m", "launch.cli", "data", "tokenizer", "--input", str(text)]
        command += ["--vocab-size", str(arguments.vocab_size), "--max-train-mb", "20", "--out", str(model)]
        seconds_of(command)
    whole, sizes = directory / "whole.jsonl", []
    with text.open() as lines, whole.open("w") as all_documents, part.open("w") as some:
        for number, line in enumerate(islice(lines, 0, None, arguments.every)):
            sizes.append(len(json.loads(line)["text"].encode()) / 1e6)
            all_documents.write(line)
            if number % SAMPLE == 0:
                some.write(line)
    texts = Text(whole, sum(sizes)), Text(part, sum(sizes[::SAMPLE]))
    print(
        f"{texts[0].size:.0f} MB of text, {len(sizes):,} documents, {arguments.workers} workers", flush=True
    )
    return Setting(directory, *texts, model, arguments.workers, arguments.megatron_lm)


def main() -> None:
    """Run the comparison and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--every",
        type=int,
        default=1,
        help="take every so many of the documents, for less text (default: all)",
    )
    parser.add_argument("--text", type=Path, help="jsonl to read instead of Debian's documentation")
    parser.add_argument("--directory", type=Path, help="keeps text and vocabulary for the next call")
    parser.add_argument("--megatron-lm", type=Path, help="checkout; without it that row is left out")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--vocab-size", type=int, default=32_000)
    parser.add_argument(
        "--set-up-only", action="store_true", help="make text and vocabulary, measure nothing"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as name:
        directory = (arguments.directory or Path(name)).absolute()
        directory.mkdir(parents=True, exist_ok=True)
        setting = set_up(directory, arguments)
        if arguments.set_up_only:
            return
        by_name, ids = compare(setting, arguments.repeats)
    print(f"{describe(('sentencepiece',))}{f'; equal ids in {ids:,} tokens of both' if ids else ''}")
    print_rates(by_name)


def print_rates(by_name: dict[str, list[float]]) -> None:
    """Print medians, and how many times as fast prepare is: whole against whole, else its steady rate."""
    middles = {name: statistics.median(values) for name, values in by_name.items()}
    print("\n| | MB/s, median | least to most | prepare / this |\n|---|---|---|---|")
    for name, values in by_name.items():
        ours = f"{OURS}, as a whole" if "as a whole" in name else f"{OURS}, steady"
        ours += ", by CPU second" if name.endswith("by CPU second") else ""
        spread = f"{min(values):.1f} to {max(values):.1f}"
        print(f"| {name} | {middles[name]:.1f} | {spread} | {middles[ours] / middles[name]:.2f} |")


if __name__ == "__main__":
    main()
