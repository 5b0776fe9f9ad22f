"""`headwater evaluate`: scores of a finetuned checkpoint on labelled rows, with its errors."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from finetune.arguments import add_model_arguments

EXAMPLES = """examples:
  headwater evaluate --checkpoint runs/finetune-classification
  headwater evaluate --checkpoint runs/sentiment --data test.csv --column text=review --out scores

--out gets metrics.json, errors.jsonl (the worst answers) and, for one label a row, confusion.png.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `headwater evaluate`; prints one score a line and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="headwater evaluate",
        description="Score a finetuned checkpoint on labelled rows, in one process.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_arguments(parser)
    parser.add_argument("--data", type=Path, metavar="FILE", help="default: the run's own data.validation")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write the report here, too")
    arguments = parser.parse_args(argv)
    for line in evaluate(
        arguments.checkpoint, arguments.data, arguments.out, arguments.batch_size, arguments.column
    ):
        print(line)
    return 0


def evaluate(
    checkpoint: Path, data: Path | None, out: Path | None, batch_size: int, columns: Sequence[str]
) -> list[str]:
    """Score a checkpoint.

    Returns:
        What there is to tell, line by line.

    Raises:
        CheckpointError, ConfigError, DataError: Naming what to change.
    """
    from finetune.evaluation import Labelled, judge, run_alone
    from finetune.finetuned import open_finetuned, require_libraries
    from finetune.report import write_report
    from pretrain.config import ConfigError

    require_libraries()
    with open_finetuned(checkpoint, columns) as finetuned:
        if data is None:
            own = (finetuned.config.get("data") or {}).get("validation")
            if own is None:
                raise ConfigError(f"{finetuned.checkpoint} has no data of its own: give --data")
            data = Path(own)
        task = finetuned.task
        rows = task.read(data)
        labelled = Labelled(rows, task.encode(rows, finetuned.encoder))
        outputs = run_alone(finetuned.model, labelled.examples, batch_size)
        evaluation = judge(task, finetuned.labels, labelled, [outputs])
        told = [f"{name} {value:.4f}" for name, value in evaluation.scores.items()]
        told.append(f"{len(rows)} rows of {data}, {finetuned.checkpoint}")
        if out is not None:
            written = write_report(out, task, finetuned.labels, rows, evaluation)
            told.append(f"written: {', '.join(str(path) for path in written)}")
    return told
