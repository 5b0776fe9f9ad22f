"""`headwater evaluate`: scores of a finetuned checkpoint on labelled rows, or of a GPT on lm-eval's tasks."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from finetune.arguments import add_model_arguments
from pretrain.config.arguments import positive_int

EXAMPLES = """examples:
  headwater evaluate --checkpoint runs/finetune-classification
  headwater evaluate --checkpoint runs/sentiment --data test.csv --column text=review --out scores

  headwater evaluate --checkpoint runs/gpt-tiny --lm-eval lambada_openai hellaswag --limit 100 --out scores
  headwater evaluate --checkpoint runs/gpt-tiny --lm-eval my_task --lm-eval-path DIR

--out gets metrics.json, errors.jsonl (the worst answers) and, for one label a row, confusion.png.
--lm-eval is for GPTs of any kind and needs the extra `harness`; --out gets its results as metrics.json.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `headwater evaluate`; prints the scores and returns the exit code."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.lm_eval is None:
        if arguments.lm_eval_path is not None or arguments.limit is not None:
            parser.error("--lm-eval-path and --limit belong to --lm-eval")
        lines = evaluate(
            arguments.checkpoint, arguments.data, arguments.out, arguments.batch_size, arguments.column
        )
    else:
        if arguments.data is not None or arguments.column:
            parser.error("tasks of --lm-eval bring their data: leave --data and --column out")
        from finetune.harness import run_harness

        lines = run_harness(
            arguments.checkpoint,
            arguments.lm_eval,
            arguments.lm_eval_path,
            arguments.limit,
            arguments.out,
            arguments.batch_size,
        )
    for line in lines:
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
    from data_tools.publish import require_directory
    from finetune.evaluation import Labelled, judge, run_alone
    from finetune.finetuned import open_finetuned, require_libraries
    from finetune.report import write_report
    from pretrain.config import ConfigError

    require_libraries()
    if out is not None:
        require_directory(out)
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headwater evaluate",
        description="Score a finetuned checkpoint on labelled rows, or a GPT on lm-eval tasks, "
        "in one process.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_arguments(parser)
    parser.add_argument("--data", type=Path, metavar="FILE", help="default: the run's own data.validation")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write the report here, too")
    parser.add_argument(
        "--lm-eval", nargs="+", metavar="TASK", help="names or patterns of lm-eval's tasks, for a GPT"
    )
    parser.add_argument(
        "--lm-eval-path", type=Path, metavar="DIR", help="YAML files of further tasks for --lm-eval"
    )
    parser.add_argument(
        "--limit", type=positive_int, metavar="N", help="rows of each task of --lm-eval; default: all"
    )
    return parser
