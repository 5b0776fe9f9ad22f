"""`make demo`: the whole path on this machine; each step is one `headwater` command, printed before it runs.

A step whose result is there is skipped, so a second call is fast; a call after an interruption goes on where
it ended, because every command does.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from launch.demo_summary import last_step, summary
from pretrain.config import load_config
from pretrain.config.exit_codes import STOPPED

CONFIGS = Path("configs/demo")
FINETUNE_CONFIG = CONFIGS / "finetune.yaml"
STOP_POLL_SECONDS = 0.2
COMMAND = (sys.executable, "-m", "launch.cli")
PROMPT = "Return the"
SMALL = ("training.train_steps=40", "training.eval_interval=20", "schedule.lr_warmup_steps=4")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of the demo."""

    title: str
    words: tuple[str, ...]
    """What follows `headwater`."""
    stop_in: Path | None = None
    """A run directory: its first attempt is stopped midway, by a signal, and started again."""
    stop_at: int = 0
    """The optimizer step after which it is stopped."""
    makes: Path | None = None
    """The last thing that the command writes, complete or not at all: where it exists, the step is done."""


class StepFailed(Exception):
    """A command of the demo ended early; it has said why itself."""

    def __init__(self, step: Step, code: int) -> None:
        stopped = code == STOPPED or code > 128
        how = "was stopped" if stopped else f"failed with exit code {code}"
        after = "the same command goes on from here" if stopped else "its message stands above"
        super().__init__(f"`headwater {step.words[0]}` {how}; {after}")
        self.exit_code = code


def demo_steps(out: Path, small: bool) -> list[Step]:
    """The steps of the demo, in order.

    Args:
        out: Directory that everything is written to.
        small: The shortest form, for continuous integration: the same steps with fewer optimizer steps.
    """
    return [
        *_data_steps(out),
        _pretraining("gpt", "pretrain a GPT on 2 ranks, each with half of every layer (TP=2)", out, small),
        _pretraining(
            "bert", "pretrain a BERT on 2 ranks, each with half of every batch (ZeRO-1)", out, small
        ),
        _finetuning("pretrained", "finetune the BERT: which package is a docstring from?", out, small),
        _finetuning("random", "the same from random weights, to see what pretraining was worth", out, small),
        Step(
            title="let the GPT write",
            words=(
                "generate",
                "--checkpoint",
                str(out / "gpt"),
                "--prompt",
                PROMPT,
                *("--max-new-tokens", "60", "--temperature", "0.8", "--top-k", "40"),
            ),
        ),
        *(_export(kind, out) for kind in ("gpt", "bert")),
    ]


def _data_steps(out: Path) -> list[Step]:
    docs, tokenizer, corpus = out / "docs", out / "tokenizer.model", out / "corpus"
    source = ("--input", str(docs / "corpus.jsonl"))
    vocab_size = str(load_config(CONFIGS / "gpt.yaml").model.vocab_size)
    return [
        Step(
            title="collect the documentation that comes with Python",
            words=("data", "python-docs", "--out", str(docs)),
        ),
        Step(
            title="train a tokenizer on it",
            words=("data", "tokenizer", *source, "--vocab-size", vocab_size, "--out", str(tokenizer)),
        ),
        Step(
            title="write token shards",
            words=(
                *("data", "prepare", *source, "--tokenizer", str(tokenizer), "--sentences"),
                *("--validation-fraction", "0.05", "--workers", "2", "--out", str(corpus)),
            ),
        ),
    ]


def _pretraining(kind: str, title: str, out: Path, small: bool) -> Step:
    config, run_dir = CONFIGS / f"{kind}.yaml", out / kind
    settings = [f"run_dir={run_dir}", f"data.corpora.0.path={out / 'corpus'}", *(SMALL if small else ())]
    train_steps = load_config(config, settings).training.train_steps
    return Step(
        title=title,
        words=("launch", "local", "--nproc", "2", "--config", str(config), *_set(settings)),
        # One interrupted run is enough to see that nothing is lost.
        stop_in=run_dir if kind == "gpt" else None,
        stop_at=train_steps // 2,
        makes=run_dir / "checkpoints" / f"step-{train_steps:08d}",
    )


def _finetuning(start: str, title: str, out: Path, small: bool) -> Step:
    settings = [
        f"run_dir={out / f'finetune-{start}'}",
        f"pretrained={out / 'bert'}",
        f"from_scratch={'true' if start == 'random' else 'false'}",
        f"data.train={out / 'docs/classification/train.jsonl'}",
        f"data.validation={out / 'docs/classification/validation.jsonl'}",
        *(SMALL if small else ()),
    ]
    return Step(
        title=title,
        words=("finetune", "--config", str(FINETUNE_CONFIG), *_set(settings)),
        makes=out / f"finetune-{start}" / "results.json",
    )


def _export(kind: str, out: Path) -> Step:
    exported = out / "hf" / kind
    return Step(
        title=f"export the {kind.upper()} to the Hugging Face format and compare its logits with ours",
        words=("export", "--checkpoint", str(out / kind), "--out", str(exported)),
        makes=exported,
    )


def _set(settings: Sequence[str]) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def run_step(step: Step) -> None:
    """Run a step, with the interruption if it has one.

    Raises:
        StepFailed: The command failed or was stopped by the user.
    """
    if step.makes is not None and step.makes.exists():
        print(f"  done before: {step.makes} is there")
        return
    if step.stop_in is not None and last_step(step.stop_in) < step.stop_at:
        code = _run(step, stop_in=step.stop_in)
        if code not in (0, STOPPED):
            raise StepFailed(step, code)
        if code == STOPPED:
            print("  stopped midway on purpose; the same command again goes on from the checkpoint")
    code = _run(step)
    if code != 0:
        raise StepFailed(step, code)


def _run(step: Step, stop_in: Path | None = None) -> int:
    """Run the command; with `stop_in`, send SIGTERM, as a cluster would, when its metrics reach the step.

    Raises:
        StepFailed: The user interrupted it.
    """
    print(f"  $ headwater {shlex.join(step.words)}", flush=True)
    process = subprocess.Popen([*COMMAND, *step.words])
    interrupts: list[int] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        interrupts.append(number)
        if number == signal.SIGTERM:  # Ctrl-C has reached the command from the terminal already
            process.terminate()

    previous = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if stop_in is not None:
            while process.poll() is None and last_step(stop_in) < step.stop_at:
                time.sleep(STOP_POLL_SECONDS)
            process.terminate()
        code = process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if interrupts:
        raise StepFailed(step, STOPPED)
    return 128 - code if code < 0 else code


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit code."""
    args = _parser().parse_args(argv)
    out = args.out or Path("runs/demo-small" if args.small else "runs/demo")
    steps = demo_steps(out, args.small)
    timings: list[tuple[str, float]] = []
    began = time.monotonic()
    for number, step in enumerate(steps, 1):
        print(f"\n[{number}/{len(steps)}] {step.title}", flush=True)
        step_began = time.monotonic()
        try:
            run_step(step)
        except StepFailed as error:
            print(f"headwater: demo: {error}", file=sys.stderr)
            return error.exit_code
        timings.append((step.title, time.monotonic() - step_began))
        print(f"  {timings[-1][1]:.1f} s", flush=True)
    print(summary(out, timings, time.monotonic() - began))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m launch.demo",
        description="Corpus, pretraining, finetuning, generation and export on this machine, in minutes.",
    )
    parser.add_argument("--small", action="store_true", help="the shortest form, with fewer optimizer steps")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: runs/demo)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
