"""How fast the data stream is, next to webdataset, Megatron-core's datasets and mosaicml-streaming.

    python -m benchmarks.data_loading --streaming-python STREAMING_VENV/bin/python

One process, everything in the page cache; every repeat runs each competitor once. Rates are per second of the
process' CPU time, all its threads together, so that other work on the machine has little part in them; what
mosaicml-streaming's iterator spends asleep does not count against it.

- Reading: shuffled samples of 2,048 tokens (uint16 on disk), each as an array of int64. Stock webdataset has
  one `.bin` a sample and a shuffle buffer of 1,000; Megatron's IndexedDataset has them in one file and gets a
  permutation; mosaicml-streaming has them as `bytes` in MDS shards.
- GPT: what a training step needs (tokens, labels, loss mask), next to Megatron's GPTDataset in a DataLoader.
- BERT: sentence pairs with whole-word masking of 15 % at 512 tokens, next to Megatron's BERT dataset. The
  text is the documentation of Python.
- Training: `headwater launch local --config configs/gpt/tiny.yaml`, and what its stream takes of a step.

mosaicml-streaming is left out without --streaming-python: python -m venv STREAMING_VENV;
STREAMING_VENV/bin/pip install mosaicml-streaming==0.13.0
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import webdataset
from megatron.core.datasets.indexed_dataset import IndexedDataset

from benchmarks import corpora, megatron_peers
from benchmarks.machine import describe
from benchmarks.table import Run, interleave, print_table
from data_tools.tokenizer import load_tokenizer
from pretrain.config.data import CorpusConfig, DataConfig
from pretrain.config.schema import PretrainBatchConfig
from pretrain.data import Stream, StreamConfig, open_stream
from pretrain.data.objectives import Vocabulary

SEQ_LENGTH, BERT_LENGTH = 2048, 512
MICRO_BATCH, GLOBAL_BATCH = 8, 256
SHUFFLE_BUFFER = 1000
PEER = Path(__file__).with_name("streaming_peer.py")
OURS, INDEXED = "headwater", "Megatron IndexedDataset, random access"


def headwater(*words: str) -> None:
    """Run a command and wait for it."""
    subprocess.run([sys.executable, "-m", "launch.cli", *words], check=True, stdout=subprocess.DEVNULL)


def stream(kind: str, corpus: Path, seq_length: int) -> Stream:
    """The data of one rank, without a thread."""
    config = StreamConfig(
        kind=kind,
        seed=1,
        batch=PretrainBatchConfig(
            micro_batch_size=MICRO_BATCH, global_batch_size=GLOBAL_BATCH, seq_length=seq_length
        ),
        data=DataConfig(corpora=[CorpusConfig(name="corpus", path=str(corpus))], prefetch_steps=0),
        cache=str(corpus.with_name("cache")),
    )
    return open_stream(config)


def of_stream(opened: Stream, samples: int) -> Run:
    """Whole training batches."""

    def run() -> float:
        begin = time.process_time()
        for _ in range(samples // GLOBAL_BATCH):
            next(opened)
        return samples / (time.process_time() - begin)

    run()  # checks the hash of every block once
    return run


def of_rows(opened: Stream, samples: int) -> Run:
    """Order and reading of the stream alone, tokens as int64."""
    feed, position = opened._feed, 0

    def run() -> float:
        nonlocal position
        begin = time.process_time()
        for at in range(position, position + samples, 16 * GLOBAL_BATCH):
            located = feed.locate(np.arange(at, at + 16 * GLOBAL_BATCH))
            for first in range(0, 16 * GLOBAL_BATCH, GLOBAL_BATCH):
                (rows,) = feed._read(located.take(first, first + GLOBAL_BATCH))
                for row in range(0, GLOBAL_BATCH, MICRO_BATCH):
                    rows[row : row + MICRO_BATCH, :-1].astype(np.int64)
        position += samples
        return samples / (time.process_time() - begin)

    run()
    return run


def counted(samples: Iterable[object], done: int = 0) -> float:
    """Samples per CPU second of an iterator."""
    begin = time.process_time()
    for _ in samples:
        done += 1
    return done / (time.process_time() - begin)


def reading(root: Path, samples: int, streaming_python: str | None) -> tuple[dict[str, Run], dict[str, Run]]:
    """Competitors in reading, and in whole GPT batches."""
    rows = corpora.random_tokens(samples, SEQ_LENGTH) % 8000 + 6
    tokenizer = load_tokenizer(root / "tokenizer.model")
    corpora.write_headwater(root / "tokens", rows, tokenizer.sha256)
    shutil.copy(root / "tokenizer.model", root / "tokens")
    tars = corpora.write_webdataset(root / "webdataset", rows)
    prefix = corpora.write_indexed(root / "indexed", list(rows), list(range(samples + 1)))
    indexed, order = IndexedDataset(prefix), np.random.default_rng(0).permutation(samples).tolist()
    pieces = megatron_peers.WordPieces(Vocabulary.of(tokenizer), corpora.EOD)
    gpt = megatron_peers.gpt_dataset(prefix, SEQ_LENGTH, pieces, root / "megatron")
    opened = stream("gpt", root / "tokens", SEQ_LENGTH)

    def from_tars() -> float:
        dataset = webdataset.WebDataset(tars, shardshuffle=False).shuffle(SHUFFLE_BUFFER)
        return counted(np.frombuffer(sample["bin"], np.uint16).astype(np.int64) for sample in dataset)

    read: dict[str, Run] = {
        OURS: of_rows(opened, samples),
        INDEXED: lambda: counted(indexed[i].astype(np.int64) for i in order),
        f"webdataset, .bin, shuffle({SHUFFLE_BUFFER})": from_tars,
    }
    if streaming_python:
        np.save(root / "rows.npy", rows)
        mds = [streaming_python, str(PEER)]
        subprocess.run([*mds, "write", str(root / "rows.npy"), str(root / "mds")], check=True)
        for name, key in (("shuffled iteration", "iterated"), ("random access", "picked")):
            read[f"mosaicml-streaming, {name}"] = lambda key=key: json.loads(
                subprocess.run(
                    [*mds, "read", str(root / "mds"), "8000"], check=True, capture_output=True, text=True
                ).stdout.splitlines()[-1]
            )[key]

    def from_gpt_dataset() -> float:
        loader = torch.utils.data.DataLoader(gpt, batch_size=MICRO_BATCH)
        return MICRO_BATCH * counted(loader)

    batches: dict[str, Run] = {
        OURS: of_stream(opened, samples),
        "Megatron GPTDataset, DataLoader": from_gpt_dataset,
    }
    return read, batches


def bert(root: Path, samples: int) -> dict[str, Run]:
    """Competitors in BERT batches."""
    tokenizer = load_tokenizer(root / "tokenizer.model")
    sentences = corpora.read_sentences(root / "text" / "train")
    prefix = corpora.write_indexed(root / "sentences", sentences.tokens, sentences.documents.tolist())
    pieces = megatron_peers.WordPieces(Vocabulary.of(tokenizer), corpora.EOD)
    runs: dict[str, Run] = {OURS: of_stream(stream("bert", root / "text", BERT_LENGTH), 4 * samples)}
    for max_ngram in (1, 3):
        dataset = megatron_peers.bert_dataset(prefix, BERT_LENGTH, pieces, max_ngram, root / "megatron")
        numbers = np.random.default_rng(0).permutation(len(dataset))[:samples].tolist()
        runs[f"Megatron BERT dataset, n-grams up to {max_ngram}"] = lambda dataset=dataset, numbers=numbers: (
            counted(dataset[i] for i in numbers)
        )
    return runs


def take_turns(runs: dict[str, Run], repeats: int) -> dict[str, list[float]]:
    """Rates of each competitor. In reading, two have more rounds: one round of theirs may take 30 ms."""
    if INDEXED not in runs:
        return interleave(runs, repeats)
    quick = {name: runs[name] for name in (OURS, INDEXED)}
    return interleave(quick, 9 * repeats) | interleave(
        {name: run for name, run in runs.items() if name not in quick}, repeats
    )


def training(root: Path, repeats: int) -> None:
    """Run the tiny configuration and print what its stream took of each step."""
    waits, makes, steps = [], [], []
    settings = [
        f"data.corpora.0.path={root / 'text'}",
        "training.eval_interval=0",
        "training.train_steps=100",
    ]
    for repeat in range(repeats):
        run_dir = root / f"run-{repeat}"
        words = [word for setting in [*settings, f"run_dir={run_dir}"] for word in ("--set", setting)]
        headwater("launch", "local", "--nproc", "1", "--config", "configs/gpt/tiny.yaml", *words)
        rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()][2:]
        steps.append(statistics.median(row["step_seconds"] for row in rows))
        waits.append(statistics.median(row["data_wait_seconds"] for row in rows))
        with open_stream(_tiny(root)) as opened:
            next(opened)
            begin = time.process_time()
            for _ in range(256):
                next(opened)
            makes.append((time.process_time() - begin) / 256)
    print("\nTraining with configs/gpt/tiny.yaml, one rank\n")
    print("| | ms a step, median | least to most | of a step |\n|---|---|---|---|")
    named = {"step": steps, "the loop waits for data": waits, "making the batch, without a thread": makes}
    for name, values in named.items():
        middle, low, high = (1e3 * value for value in (statistics.median(values), min(values), max(values)))
        share = statistics.median(values) / statistics.median(steps)
        print(f"| {name} | {middle:.3f} | {low:.3f} to {high:.3f} | {share:.2%} |")


def _tiny(root: Path) -> StreamConfig:
    batch = PretrainBatchConfig(micro_batch_size=4, global_batch_size=16, seq_length=128)
    data = DataConfig(corpora=[CorpusConfig(name="corpus", path=str(root / "text"))], prefetch_steps=0)
    return StreamConfig(kind="gpt", batch=batch, data=data)


def main() -> None:
    """Prepare everything, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streaming-python", help="interpreter that has mosaicml-streaming")
    parser.add_argument("--samples", type=int, default=24_576, help="of 2,048 tokens: 4 KB each on disk")
    parser.add_argument("--bert-samples", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=".") as name:
        root = Path(name).resolve()
        headwater("data", "python-docs", "--out", str(root / "docs"))
        source = ["--input", str(root / "docs" / "corpus.jsonl")]
        model = str(root / "tokenizer.model")
        headwater("data", "tokenizer", *source, "--vocab-size", "8192", "--out", model)
        headwater(
            "data", "prepare", *source, "--tokenizer", model, "--sentences", "--out", str(root / "text")
        )
        read, batches = reading(root, arguments.samples, arguments.streaming_python)
        masked = bert(root, arguments.bert_samples)
        print(describe(("numpy", "torch", "webdataset", "megatron-core")))
        for title, runs in (
            (f"Reading, shuffled, {SEQ_LENGTH} tokens", read),
            (f"GPT batches, {SEQ_LENGTH} tokens", batches),
            (f"BERT batches, {BERT_LENGTH} tokens", masked),
        ):
            print_table(title, "samples per CPU second", take_turns(runs, arguments.repeats), OURS)
        training(root, min(3, arguments.repeats))


if __name__ == "__main__":
    main()
