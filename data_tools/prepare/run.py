"""Make a corpus: run the tasks that are missing, stage by stage, and publish it.

    read -> gather -> dedup -> cluster -> pack -> finish

Tasks are stateless: each reads the plan and the outputs of earlier stages from the work directory, and leaves
outputs and a record there. So a run that was killed goes on where it stopped, and who runs a task does not
matter.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from data_tools.errors import DataError
from data_tools.prepare.finish_task import RECORD_NAME, publish
from data_tools.prepare.gather_task import add_task
from data_tools.prepare.lock import Hold, hold_directory
from data_tools.prepare.options import RunOptions
from data_tools.prepare.plan import FINISH, GATHER, PACK, READ, Plan
from data_tools.prepare.read_task import EARLY_CHECK_RECORDS
from data_tools.prepare.tasks import Task
from data_tools.prepare.work import Work
from data_tools.progress import Progress
from data_tools.publish import require_absent
from data_tools.reading import Intake
from data_tools.record import check_record, read_record
from data_tools.shard_format import load_manifest

_WAIT_SECONDS, _REPORT_SECONDS = 1.0, 60.0


class Executor(Protocol):
    """Runs tasks somewhere."""

    def map(self, tasks: Sequence[Task]) -> Iterator[int]:
        """Run tasks and yield their numbers as they finish; an exception of one ends the iteration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Outcome of `prepare`: the content of prepare.json, and whether the work was done now."""

    record: dict[str, Any]
    fresh: bool


def run_plan(plan: Plan, tokenizer: Path, out: Path, executor: Executor, options: RunOptions) -> Prepared:
    """Make the corpus directory `out`, or find it complete already.

    Args:
        plan: what to make.
        tokenizer: its tokenizer's file.
        out: where.
        executor: who runs the tasks.
        options: which of them, and when to give up.

    Raises:
        DataError: too many bad records, no document, an input that cannot be read, or an `out` or unfinished
            work that belongs to another plan. Finished tasks are kept.
    """
    work = Work.of(out)
    if (existing := find_complete(plan, out)) is not None:
        work.remove_published()
        return Prepared(record=existing, fresh=False)
    with hold_directory(work.path, shared=options.count > 1) as hold:
        if (existing := find_complete(plan, out)) is not None:  # another run made it while this one began
            return Prepared(record=existing, fresh=False)
        begin(work, hold, plan, tokenizer, options.restart)
        if options.count > 1:
            hold.share()
        with work.telling_others(options.index):
            for stage, count in plan.stages():
                if stage != FINISH or options.index == 0:
                    _run(work, plan, stage, executor, options)
                    _wait_for_others(work, partial(_missing, work, stage, count))
            if options.index == 0:
                publish(work, work.out)
    _wait_for_others(work, lambda: "" if find_complete(plan, out) else f"{out}, which process 0 makes,")
    work.remove_published()  # the last process that leaves succeeds
    record = find_complete(plan, out)
    assert record is not None  # it was just there
    return Prepared(record=record, fresh=True)


def find_complete(plan: Plan, out: Path) -> dict[str, Any] | None:
    """The record of a complete corpus at `out`; None if nothing is there.

    Raises:
        DataError: a corpus of another plan is there, or one that is not whole.
    """
    record = read_record(out / RECORD_NAME)
    if record is not None:
        check_record(record, plan.identity(), plan.inputs, plan.all_chunks(), out)
        for split in record["splits"]:
            load_manifest(out / split)
    return record


def begin(work: Work, hold: Hold, plan: Plan, tokenizer: Path, restart: bool) -> None:
    """Store the plan in the work directory, or check that the one that is there is the same.

    Args:
        work: the work directory.
        hold: of this directory.
        plan: the plan.
        tokenizer: its tokenizer's file.
        restart: throw away what belongs to another plan.

    Raises:
        DataError: something else is in the way.
    """
    require_absent(work.out)
    if work.out.is_mount():
        raise DataError(f"{work.out} is a mount point, which no corpus can replace: choose a directory in it")
    if hold.alone:
        work.remove_leftovers()
    if restart and work.has_plan() and not work.holds(plan):
        if not hold.alone:
            raise DataError(f"other processes are at work in {work.path}: --restart must wait for them")
        work.clear()
    if work.has_plan():
        found = work.plan()
        entries = {"options": found.identity(), "inputs": [asdict(file) for file in found.inputs]}
        what, advice = f"the unfinished work in {work.path}", "--restart throws it away"
        check_record(entries, plan.identity(), plan.inputs, plan.all_chunks(), what, advice)
        return
    work.corpus.mkdir(exist_ok=True)
    with work.writing(work.corpus / plan.tokenizer_name) as (path,):
        path.write_bytes(tokenizer.read_bytes())
    work.write_plan(plan)


def _run(work: Work, plan: Plan, stage: str, executor: Executor, options: RunOptions) -> None:
    """Run this process's share of the missing tasks of a stage."""
    count = dict(plan.stages())[stage]
    numbers = [n for n in work.missing(stage, count) if n % options.count == options.index]
    tasks = [Task(work, stage, number, options.max_bad_fraction) for number in numbers]
    intake = _EarlyIntake(work, plan, options.max_bad_fraction) if stage == READ else None
    with _progress(work, plan, stage, tasks) as progress:
        for number in executor.map(tasks):
            record = work.finished(stage, number)
            if stage == READ:
                read = sum(chunk.cost for chunk in plan.chunks(number))
                progress.add(read, sum(entry["counts"]["documents"] for entry in record["chunks"]))
            elif stage == PACK:
                progress.add(record["text_bytes"] + record["duplicate_bytes"], record["documents"])
            if intake is not None:
                intake.check()


def _progress(work: Work, plan: Plan, stage: str, tasks: Sequence[Task]) -> Progress:
    if stage == READ:
        return Progress("read", sum(chunk.cost for task in tasks for chunk in plan.chunks(task.number)))
    if stage == PACK and tasks:
        total = work.finished(GATHER, 0)["text_bytes"]
        return Progress("tokenise", total * len(tasks) // plan.sizes.shards)
    return Progress(stage, 0)


class _EarlyIntake:
    """Looks at the reading tasks as they finish, so that a corpus that is mostly bad ends early."""

    def __init__(self, work: Work, plan: Plan, max_bad_fraction: float) -> None:
        self._work, self._plan, self._max_bad_fraction = work, plan, max_bad_fraction
        self._intake, self._next = Intake(), 0

    def check(self) -> None:
        """Add the tasks that are finished by now, in order.

        Raises:
            DataError: too many of their records are bad.
        """
        while self._next < len(self._plan.read_tasks):
            record = self._work.record(READ, self._next)
            if record is None:
                break
            add_task(self._intake, self._plan.chunks(self._next), record)
            self._next += 1
        if self._intake.counts.records >= EARLY_CHECK_RECORDS:
            self._intake.check(self._max_bad_fraction)


def _missing(work: Work, stage: str, count: int) -> str:
    """What is missing of a stage, in words; "" if nothing is."""
    missing = work.missing(stage, count)
    return f"{len(missing)} of {count} tasks of stage {stage}, the first is {missing[0]}," if missing else ""


def _wait_for_others(work: Work, missing: Callable[[], str]) -> None:
    """Wait until nothing is missing that other processes make; in a single process nothing is.

    Raises:
        DataError: another process failed.
    """
    begun = last = time.monotonic()
    while what := missing():
        work.check_others()
        if time.monotonic() - last >= _REPORT_SECONDS:
            last = time.monotonic()
            waited = f"waited {last - begun:.0f} s for other processes: {what} still missing"
            print(waited, file=sys.stderr, flush=True)
        time.sleep(_WAIT_SECONDS)
