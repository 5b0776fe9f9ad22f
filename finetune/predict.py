"""`headwater predict`: answers of a finetuned checkpoint to rows without labels."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.arguments import add_model_arguments

if TYPE_CHECKING:  # the command line answers without loading torch
    from finetune.finetuned import Finetuned
    from finetune.tasks.sft import Sft

COLUMN = "prediction"
ROWS_AT_A_TIME = 1024
LONGEST_RESPONSE = 256
"""Tokens; `headwater generate` writes longer ones."""

EXAMPLES = """examples:
  headwater predict --checkpoint runs/finetune-classification --input texts.jsonl --out answers.jsonl
  headwater predict --checkpoint runs/ner --input sentences.conll --out answers.jsonl --batch-size 64

Each line of --out is the row with "prediction" added; an input with such a column is refused. Labels in the
input are not looked at. NaN in the input is null in --out.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `headwater predict`; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="headwater predict",
        description="Answer rows with a finetuned checkpoint, in one process.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_arguments(parser)
    parser.add_argument("--input", type=Path, required=True, help="jsonl, csv, tsv, parquet, CoNLL or SQuAD")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines to write; must not exist")
    arguments = parser.parse_args(argv)
    count = predict(
        arguments.checkpoint, arguments.input, arguments.out, arguments.batch_size, arguments.column
    )
    print(f"{count} answers in {arguments.out}")
    return 0


def predict(checkpoint: Path, source: Path, out: Path, batch_size: int, columns: Sequence[str] = ()) -> int:
    """Answer all rows of a file; `out` is complete or absent.

    Returns:
        The number of rows.

    Raises:
        CheckpointError, ConfigError, DataError: Naming what to change.
    """
    from data_tools.publish import require_new_file
    from finetune.finetuned import open_finetuned
    from finetune.output_rows import output_line, require_free

    require_new_file(out)
    with open_finetuned(checkpoint, columns) as finetuned:
        rows = finetuned.task.read(source, labelled=False)
        for row in rows:
            require_free(row.where, row.fields, COLUMN)
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = out.with_name(f".{out.name}.partial")
        try:
            with partial.open("wb") as lines:
                for row, answer in _answers(finetuned, rows, batch_size):
                    lines.write(output_line(row.fields, COLUMN, answer))
            partial.rename(out)
        finally:
            partial.unlink(missing_ok=True)
    return len(rows)


def _answers(
    finetuned: Finetuned, rows: Sequence[Any], batch_size: int
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Rows and answers, a part of the file at a time, so that memory does not grow with it."""
    from tqdm import tqdm

    from finetune.evaluation import run_alone
    from finetune.tasks.sft import Sft

    task = finetuned.task
    if isinstance(task, Sft):
        yield from _responses(finetuned, task, rows, batch_size)
        return
    with tqdm(total=len(rows), unit="row", disable=None) as progress:
        for first in range(0, len(rows), ROWS_AT_A_TIME):
            part = rows[first : first + ROWS_AT_A_TIME]
            examples = task.encode(part, finetuned.encoder)
            found = run_alone(finetuned.model, examples, batch_size).logits
            outputs = [found[number] for number in range(len(examples))]
            yield from zip(part, task.answers(outputs, examples, part, finetuned.labels), strict=True)
            progress.update(len(part))


def _responses(
    finetuned: Finetuned, task: Sft, rows: Sequence[Any], batch_size: int
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Greedy responses to prompts, until the end of text or as long as the context allows."""
    from tqdm import tqdm

    from finetune.writing import Writer, WritingOptions

    writer = Writer(finetuned.model, finetuned.encoder.codec)
    options = WritingOptions(max_new_tokens=LONGEST_RESPONSE, cut_at_context=True)
    with tqdm(total=len(rows), unit="row", disable=None) as progress:
        for first in range(0, len(rows), batch_size):
            part = rows[first : first + batch_size]
            prompts = [ids.tolist() for ids in task.prompt_ids(part, finetuned.encoder.codec)]
            for row, prompt in zip(part, prompts, strict=True):
                writer.require_room(prompt, options, f"{row.where}: ")
            texts = writer.continue_tokens(prompts, options)
            yield from zip(part, ({"response": text} for text in texts), strict=True)
            progress.update(len(part))
