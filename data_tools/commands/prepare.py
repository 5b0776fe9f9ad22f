"""`headwater data prepare`."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_tools.commands.common import add_input_arguments, read_options, state
from data_tools.errors import DataError

if TYPE_CHECKING:
    from data_tools.prepare import Plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_input_arguments(parser)
    parser.add_argument(
        "--token-key", default="", help="key or column of integers: documents that are tokenised already"
    )
    parser.add_argument(
        "--tokenizer",
        type=Path,
        required=True,
        help="tokenizer.model of `data tokenizer`, a Hugging Face tokenizer.json, or a vocabulary.json",
    )
    parser.add_argument("--out", type=Path, required=True, help="corpus directory to create")
    parser.add_argument("--name", help="name of the corpus (default: that of the directory)")
    parser.add_argument(
        "--clean", type=Path, help="YAML file of cleaning steps, e.g. configs/data/light.yaml (default: none)"
    )
    parser.add_argument("--sentences", action="store_true", help="record sentences, which BERT needs")
    parser.add_argument(
        "--validation-fraction", type=float, default=0.01, help="share of the documents (default: 0.01)"
    )
    parser.add_argument(
        "--block-bytes", type=int, default=1 << 20, help="bytes of tokens in a block (default: 1 MiB)"
    )
    parser.add_argument(
        "--shard-bytes", type=int, help="bytes of text per shard (default: a 32nd, within 4 and 512 MiB)"
    )
    _add_running_arguments(parser.add_argument_group("where it runs; the result does not depend on it"))


def _add_running_arguments(running: argparse._ArgumentGroup) -> None:
    running.add_argument("--workers", type=int, default=1, help="processes on this machine (default: 1)")
    running.add_argument(
        "--executor", default="local", choices=("local", "slurm", "ray"), help="(default: local)"
    )
    running.add_argument(
        "--sbatch",
        default="",
        help='more options for sbatch with --executor slurm, e.g. "--partition=cpu --time=4:00:00"',
    )
    running.add_argument(
        "--task-index",
        type=int,
        default=0,
        help="number of this process among --task-count that share the work",
    )
    running.add_argument(
        "--task-count",
        type=int,
        default=1,
        help="processes started at the same time, or jobs in the SLURM array",
    )
    running.add_argument(
        "--restart", action="store_true", help="throw away unfinished work of other inputs or options"
    )


def run(arguments: argparse.Namespace) -> None:
    """Carry the command out; prints what came of it."""
    from data_tools.prepare import PrepareOptions, RunOptions, make_plan, open_executor, run_plan
    from data_tools.tokenizer import SentencePieceTokenizer, load_tokenizer
    from data_tools.tokenizer.segments import NOT_COMPILED, is_compiled

    options = PrepareOptions(
        name=arguments.name or arguments.out.resolve().name,
        read=read_options(arguments, token_key=arguments.token_key),
        clean=_clean(arguments.clean) if arguments.clean else None,
        sentences=arguments.sentences,
        validation_fraction=arguments.validation_fraction,
        seed=arguments.seed,
        block_bytes=arguments.block_bytes,
        shard_bytes=arguments.shard_bytes,
    )
    start = time.monotonic()
    tokenizer = load_tokenizer(arguments.tokenizer)
    if isinstance(tokenizer, SentencePieceTokenizer) and not is_compiled():
        print(f"headwater: note: {NOT_COMPILED}", file=sys.stderr)
    plan = make_plan(arguments.input, options, tokenizer)
    if arguments.executor == "slurm":
        if arguments.task_index:
            raise DataError("--task-index does not go with --executor slurm: the array numbers its own tasks")
        _submit(plan, tokenizer.path, arguments)
        return
    with _stoppable(), open_executor(arguments.executor, arguments.workers) as executor:
        running = RunOptions(
            index=arguments.task_index,
            count=arguments.task_count,
            max_bad_fraction=arguments.max_bad_fraction,
            restart=arguments.restart,
        )
        result = run_plan(plan, tokenizer.path, arguments.out, executor, running)
    _report(result.record, result.fresh, arguments, time.monotonic() - start)


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Let SIGTERM and Ctrl-C end the block like an exception: workers end, and other processes are told."""

    def stop(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except SystemExit:
        print("headwater: stopped; the same command goes on from here", file=sys.stderr)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _clean(path: Path) -> dict[str, Any]:
    from data_tools.clean import load_clean_config

    config = load_clean_config(path)
    for warning in config.warnings():
        print(f"headwater: warning: {warning}", file=sys.stderr)
    return config.model_dump(mode="json")


def _submit(plan: Plan, tokenizer: Path, arguments: argparse.Namespace) -> None:
    from data_tools.prepare.slurm import SlurmOptions, logs_directory, submit

    options = SlurmOptions(
        sbatch=arguments.sbatch,
        workers=arguments.workers,
        max_bad_fraction=arguments.max_bad_fraction,
        restart=arguments.restart,
        **({"array_size": arguments.task_count} if arguments.task_count > 1 else {}),
    )
    jobs = submit(plan, tokenizer, arguments.out, options)
    if not jobs:
        print(f"{arguments.out}: already complete")
        return
    print(f"submitted {len(jobs)} jobs: {' '.join(jobs)}; logs in {logs_directory(arguments.out)}")
    print(f"watch: squeue --jobs={','.join(jobs)}   stop: scancel {' '.join(jobs)}")
    print(f"{arguments.out} appears when the last one is done; after a failure run the same command again")


def _report(record: dict[str, Any], fresh: bool, arguments: argparse.Namespace, seconds: float) -> None:
    from data_tools.prepare import QUARANTINE_NAME

    counts, splits, duplicates = record["records"], record["splits"], record["duplicates"]
    parts = [f"{split} {t['documents']:,} documents, {t['tokens']:,} tokens" for split, t in splits.items()]
    if fresh:
        read = sum(entry["size"] for entry in record["inputs"])
        parts.append(f"{read / 1e6:.1f} MB in {seconds:.1f} s ({read / 1e6 / seconds:.1f} MB/s)")
    print(f"{arguments.out}: {state(fresh)}" + "; ".join(parts))
    if counts["bad"] or counts["empty"]:
        print(
            f"left out: {counts['empty']} empty documents, {counts['bad']} bad records"
            + (f" (see {arguments.out / QUARANTINE_NAME})" if counts["bad"] else ""),
            file=sys.stderr,
        )
    if (funnel := record["funnel"]) is not None:
        dropped = ", ".join(
            f"{step['name']} {step['documents_dropped']:,}"
            for step in funnel["steps"]
            if step["name"] != "dedup"
        )
        kept = f"{funnel['documents_out']:,} of {funnel['documents_in']:,} documents"
        print(f"cleaning kept {kept}; dropped: {dropped}", file=sys.stderr)
    if duplicates is not None:
        print(
            f"dropped as duplicates: {duplicates['exact']:,} exact, {duplicates['near_only']:,} near",
            file=sys.stderr,
        )
    if arguments.validation_fraction and "validation" not in splits:
        print("no document fell into the validation split: raise --validation-fraction", file=sys.stderr)
