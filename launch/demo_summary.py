"""What the demo shows at its end, read from the files that its steps wrote."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

STARTS = ("pretrained", "random")
"""What the finetuned models start from; the run directories are called `finetune-<start>`."""


def metrics_rows(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl; none before the run has written any."""
    path = run_dir / "metrics.jsonl"
    if not path.exists():
        return []
    # The last line may be half written while the run goes on.
    complete = path.read_text(encoding="utf-8").rpartition("\n")[0]
    return [json.loads(line) for line in complete.splitlines()]


def last_step(run_dir: Path) -> int:
    """The newest optimizer step in a run's metrics; 0 before the first."""
    return max((int(row["step"]) for row in metrics_rows(run_dir)), default=0)


def summary(out: Path, timings: Sequence[tuple[str, float]], total_seconds: float) -> str:
    """The closing tables: time per step, losses per run, where to look."""
    width = max(len(title) for title, _ in timings)
    lines = ["", "time"]
    lines += [f"  {title:<{width}}  {seconds:7.1f} s" for title, seconds in timings]
    lines += [f"  {'in all':<{width}}  {total_seconds:7.1f} s", "", "runs"]
    lines += [_run_line(name, out / name) for name in ("gpt", "bert")]
    lines += ["", "finetuning: accuracy on held-out docstrings"]
    lines += [_accuracy_line(start, out / f"finetune-{start}" / "results.json") for start in STARTS]
    lines += [
        "",
        "where to look",
        f"  tensorboard --logdir {out}",
        f"  {out}/gpt/metrics.jsonl  one JSON line per log interval and evaluation",
        f"  {out}/gpt/checkpoints/   the newest checkpoints, each with its config and tokenizer",
        f"  {out}/gpt/logs/          the output of every rank; attempts.jsonl",
        f"  {out}/hf/                directories for from_pretrained()",
    ]
    return "\n".join(lines)


def _accuracy_line(start: str, path: Path) -> str:
    results = json.loads(path.read_text(encoding="utf-8"))
    return (
        f"  from {start + ' weights':<18} {results['accuracy']:.1%} of {results['n']} "
        f"(always the largest class: {results['majority_class_accuracy']:.1%})"
    )


def _run_line(name: str, run_dir: Path) -> str:
    rows = metrics_rows(run_dir)
    losses = [row["loss"] for row in rows if "loss" in row]
    evaluations = [row["eval/loss"] for row in rows if "eval/loss" in row]
    speeds = sorted(row["tokens_per_second"] for row in rows if "tokens_per_second" in row)
    if not losses or not evaluations:
        return f"  {name:<5} no metrics"
    return (
        f"  {name:<5} {last_step(run_dir)} steps, training loss {losses[0]:.3f} -> {losses[-1]:.3f}, "
        f"validation loss {evaluations[-1]:.3f}, {speeds[len(speeds) // 2]:,.0f} tokens/s (median)"
    )
