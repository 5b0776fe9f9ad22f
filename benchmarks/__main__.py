"""One benchmark after the other: `python -m benchmarks [NAME ...]`, or `make bench`.

Each prints markdown, which goes to `--out` as well, with a plot of the training steps. The machine should
have nothing else to do. `prepare` and `finetuning` download their text and model.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

STEP = "benchmarks.training_step"
SUITE: dict[str, list[str]] = {
    **{work: [STEP, "--work", work] for work in ("gpt", "llama", "bert-128", "bert-512")},
    "ranks": [STEP, "--ranks"],
    "startup": ["benchmarks.training.startup"],
    "checkpoints": ["benchmarks.checkpoints"],
    "data": ["benchmarks.data_loading"],
    "prepare": ["benchmarks.prepare_speed", "--every", "4"],
    "finetuning": ["benchmarks.finetune_speed"],
}


def main() -> int:
    """Run what was asked for; the exit code is 1 if any failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(SUITE)}; none: all")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="directory (%(default)s)")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(SUITE))
    if unknown:
        parser.error(f"no benchmark {unknown[0]!r}; there are {', '.join(SUITE)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    failed = [name for name in arguments.names or SUITE if not run(name, arguments.out)]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def run(name: str, out: Path) -> bool:
    """One benchmark; its markdown on the terminal and in `out`. Returns whether it succeeded."""
    command = [sys.executable, "-m", *SUITE[name]]
    if SUITE[name][0] == STEP:
        command += ["--plot", str(out / f"{name}.png")]
    print(f"\n## {name}\n", flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    print(done.stdout, flush=True)
    (out / f"{name}.md").write_text(done.stdout)
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
