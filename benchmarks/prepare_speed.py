"""How fast `headwater data prepare` is, next to bare sentencepiece and Megatron-LM's preprocess_data.py.

    python -m benchmarks.prepare_speed --megatron-lm PATH_TO_CHECKOUT

Every repeat runs each of them once, with the same text, vocabulary and number of workers:

- sentencepiece alone, batches of documents that are in memory already, in threads and in processes;
- `headwater data prepare` as a whole: from the command to the published corpus, start-up included;
- Megatron-LM's tools/preprocess_data.py: as a whole, and the rate it reports itself, without its start-up.

The text is what is installed of Debian's linux-doc and python3-doc (or --documents): 100 MB and more. The
vocabulary is trained on it first. Megatron-LM needs a checkout of release core_v0.16.1 and the package
triton.
"""

from __future__ import annotations

import argparse
import gzip
import html
import json
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import sentencepiece

DOCUMENTS = [
    *sorted(Path("/usr/share/doc").glob("linux-doc-*")),
    *sorted(Path("/usr/share/doc").glob("python3.*")),
]
TEXT_SUFFIXES = {".txt", ".rst", ".html", ".dot", ".json", ""}
TAGS = re.compile(r"(?s)<(script|style).*?</\1>|<[^>]+>")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def collect(directories: list[Path], out: Path) -> float:
    """Write every text file below the directories as a line of JSON; returns MB of text."""
    size = 0
    with out.open("w") as file:
        for path in sorted(path for directory in directories for path in directory.rglob("*")):
            name = Path(path.stem if path.suffix == ".gz" else path.name)
            if path.is_symlink() or not path.is_file() or name.suffix not in TEXT_SUFFIXES:
                continue
            raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            text = raw.decode("utf-8", "ignore")
            if name.suffix == ".html":
                text = re.sub(r"\n\s*\n+", "\n\n", html.unescape(TAGS.sub("", text)))
            if text.strip():
                file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
                size += len(text.encode())
    return size / 1e6


def headwater(*arguments: str) -> None:
    """Run a command and wait for it."""
    subprocess.run([sys.executable, "-m", "launch.cli", "data", *arguments], check=True, env=ENVIRONMENT)


def bare_threads(model: Path, texts: list[str], workers: int) -> float:
    """Seconds to encode all texts in one process with so many threads."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    begin = time.perf_counter()
    for start in range(0, len(texts), 256):
        processor.encode_as_numpy(texts[start : start + 256], num_threads=workers)
    return time.perf_counter() - begin


def bare_processes(model: Path, texts: list[str], workers: int) -> float:
    """Seconds that the slowest of so many processes needs to encode its share, without its start."""
    barrier = multiprocessing.Barrier(workers)
    results: multiprocessing.Queue[float] = multiprocessing.Queue()

    def work(share: list[str]) -> None:
        processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
        barrier.wait()
        begin = time.perf_counter()
        for start in range(0, len(share), 256):
            processor.encode_as_numpy(share[start : start + 256], num_threads=1)
        results.put(time.perf_counter() - begin)

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work, args=(texts[i::workers],)) for i in range(workers)]
    for process in processes:
        process.start()
    seconds = max(results.get() for _ in processes)
    for process in processes:
        process.join()
    return seconds


def prepare(model: Path, source: Path, out: Path, workers: int, *options: str) -> float:
    """Seconds of `headwater data prepare`."""
    begin = time.perf_counter()
    headwater(
        "prepare", "--input", str(source), "--tokenizer", str(model), "--out", str(out),
        "--workers", str(workers), *options,
    )  # fmt: skip
    return time.perf_counter() - begin


def megatron(checkout: Path, model: Path, source: Path, out: Path, workers: int) -> tuple[float, float]:
    """(seconds as a whole, MB/s that it reports last) of preprocess_data.py."""
    command = [sys.executable, str(checkout / "tools" / "preprocess_data.py"), "--input", str(source)]
    command += ["--output-prefix", str(out), "--tokenizer-type", "SentencePieceTokenizer"]
    command += ["--tokenizer-model", str(model), "--workers", str(workers), "--log-interval", "20"]
    begin = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=1800)
    seconds = time.perf_counter() - begin
    rates = re.findall(r"([\d.]+) MB/s", done.stderr)
    if done.returncode or not rates:
        raise SystemExit(f"preprocess_data.py failed:\n{done.stderr[-2000:]}")
    return seconds, float(rates[-1]) * 1.048576  # it counts MiB


def main() -> None:
    """Run the comparison and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--documents", nargs="+", type=Path, default=DOCUMENTS, help="directories of text files"
    )
    parser.add_argument("--megatron-lm", type=Path, help="checkout; without it that row is left out")
    parser.add_argument("--megatron-mb", type=float, default=20.0, help="text for Megatron-LM, which is slow")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--vocab-size", type=int, default=32_000)
    arguments = parser.parse_args()
    if not arguments.documents:
        raise SystemExit("no text: apt-get install linux-doc python3-doc, or give --documents")
    with tempfile.TemporaryDirectory(dir=".") as name:
        compare(Path(name), arguments)


def compare(directory: Path, arguments: argparse.Namespace) -> None:
    """Measure everything in turn, `repeats` times."""
    source, model, workers = directory / "docs.jsonl", directory / "tokenizer.model", arguments.workers
    size = collect(arguments.documents, source)
    headwater(
        "tokenizer", "--input", str(source), "--vocab-size", str(arguments.vocab_size),
        "--max-train-mb", "20", "--out", str(model),
    )  # fmt: skip
    texts = [json.loads(line)["text"] for line in source.open()]
    small = directory / "small.jsonl"
    small_size = head(source, small, arguments.megatron_mb)
    runs: dict[str, Callable[[int], float]] = {
        "sentencepiece, threads": lambda _: size / bare_threads(model, texts, workers),
        "sentencepiece, processes": lambda _: size / bare_processes(model, texts, workers),
        "headwater data prepare": lambda n: size / prepare(model, source, directory / f"c{n}", workers),
        "headwater data prepare --sentences": lambda n: (
            size / prepare(model, source, directory / f"s{n}", workers, "--sentences")
        ),
    }
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(arguments.repeats):
        for name, run in runs.items():
            rates[name].append(run(repeat))
        if arguments.megatron_lm:
            prefix = directory / f"m{repeat}"
            seconds, reported = megatron(arguments.megatron_lm, model, small, prefix, workers)
            rates.setdefault("preprocess_data.py, as a whole", []).append(small_size / seconds)
            rates.setdefault("preprocess_data.py, its own figure", []).append(reported)
    print(
        f"\n{size:.0f} MB of text, {len(texts):,} documents, {workers} workers, {arguments.repeats} repeats\n"
    )
    ours = statistics.median(rates["headwater data prepare"])
    print("| | MB/s, median | least to most | ours / this |\n|---|---|---|---|")
    for name, values in rates.items():
        middle = statistics.median(values)
        print(f"| {name} | {middle:.1f} | {min(values):.1f} to {max(values):.1f} | {ours / middle:.2f} |")


def head(source: Path, out: Path, megabytes: float) -> float:
    """The first lines of a file, so many MB of text; returns how many they are."""
    size = 0
    with source.open() as lines, out.open("w") as file:
        for line in lines:
            file.write(line)
            size += len(json.loads(line)["text"].encode())
            if size >= megabytes * 1e6:
                break
    return size / 1e6


if __name__ == "__main__":
    main()
