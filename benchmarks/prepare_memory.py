"""Whether the memory of `headwater data prepare` depends on the size of its input.

    python -m benchmarks.prepare_memory --gigabytes 1 4 --cases plain dedup

For each size, jsonl of lines of Python's standard library, drawn at random, so that no documents are alike
but for one in --copies-every, which is a copy of an earlier one. The tokenizer is a small one. Printed is
the largest resident set of any one process (VmHWM of the kernel, file pages that it maps included), and the
largest sum over all processes at one moment. Needs free disk of about three times the largest size.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

CASES = {
    "plain": "",
    "dedup": "dedup: {exact: true, near: {bands: 14, rows: 8, ngram_words: 5, seed: 1}}\n",
}
HEADWATER = [sys.executable, "-c", "import sys; from launch.cli import main; sys.exit(main(sys.argv[1:]))"]
POLL_SECONDS = 0.05
LINES_IN_DOCUMENT = (5, 120)


@dataclass
class Peak:
    """Bytes."""

    process: int = 0
    tree: int = 0

    def sample(self, root: psutil.Process) -> None:
        """Take in what the processes below `root` have, and have had."""
        total = 0
        with contextlib.suppress(psutil.Error, OSError):
            for process in (root, *root.children(recursive=True)):
                status = Path(f"/proc/{process.pid}/status").read_text()
                sizes = {
                    line.split()[0]: int(line.split()[1]) << 10
                    for line in status.splitlines()
                    if line.startswith(("VmHWM", "VmRSS"))
                }
                self.process = max(self.process, sizes.get("VmHWM:", 0))
                total += sizes.get("VmRSS:", 0)
        self.tree = max(self.tree, total)


def write_input(path: Path, size: int, copies_every: int) -> None:
    """Write about `size` bytes of documents, of which some are copies of one from the first half so far."""
    library = Path(sysconfig.get_paths()["stdlib"])
    sources = (p.read_text(errors="replace") for p in sorted(library.glob("**/*.py")) if "bad" not in p.name)
    lines = [json.dumps(line)[1:-1] for text in sources for line in text.splitlines() if line.strip()]
    written = number = 0
    with path.open("w", buffering=1 << 20) as file:
        while written < size:
            draw = random.Random(number // 2 if number % copies_every == 1 else number)
            text = "\\n".join(draw.choices(lines, k=draw.randint(*LINES_IN_DOCUMENT)))
            written += file.write(f'{{"text": "{text}", "id": "{number}"}}\n')
            number += 1


def measure(command: list[str]) -> tuple[Peak, float]:
    """Run a command; its peaks and its seconds."""
    peak, begun = Peak(), time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        root = psutil.Process(process.pid)
        while process.poll() is None:
            peak.sample(root)
            time.sleep(POLL_SECONDS)
    if process.returncode:
        sys.exit(f"{' '.join(command)}: exit code {process.returncode}")
    return peak, time.monotonic() - begun


def main() -> None:
    """Measure every case at every size and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[1.0, 4.0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--copies-every", type=int, default=50)
    parser.add_argument("--workers", default="2")
    parser.add_argument("--directory", type=Path, help="where to work (default: the temporary directory)")
    arguments = parser.parse_args()
    print("case    input     largest process   all processes   time")
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
        directory = Path(name)
        sample, tokenizer = directory / "sample.jsonl", directory / "tokenizer.model"
        write_input(sample, 3_000_000, arguments.copies_every)
        train = ["--vocab-size", "1000", "--max-train-mb", "1", "--out", str(tokenizer)]
        measure([*HEADWATER, "data", "tokenizer", "--input", str(sample), *train])
        for gigabytes in arguments.gigabytes:
            source = directory / "input.jsonl"
            write_input(source, int(gigabytes * 1e9), arguments.copies_every)
            for case in arguments.cases:
                clean = directory / "clean.yaml"
                clean.write_text(CASES[case])
                out = directory / f"{case}-{gigabytes:g}"
                command = [*HEADWATER, "data", "prepare", "--input", str(source), "--out", str(out)]
                command += ["--tokenizer", str(tokenizer), "--workers", arguments.workers]
                peak, seconds = measure(command + (["--clean", str(clean)] if CASES[case] else []))
                print(
                    f"{case:<8}{gigabytes:g} GB{peak.process / 1e6:16.0f} MB{peak.tree / 1e6:13.0f} MB"
                    f"{seconds:9.0f} s",
                    flush=True,
                )
                subprocess.run(["rm", "-r", str(out)], check=True)


if __name__ == "__main__":
    main()
