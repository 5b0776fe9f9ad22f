"""`headwater data audit`: proof from the cursors of a run that no sample was repeated or skipped.

What a step read follows from the state of its attempt. So the audit checks that each attempt begins exactly
where the kept part of the one before it ends (the same phases, batch sizes and count; a new phase at the
place in each corpus that follows from the old one), and that every count in the ledger, the metrics and the
checkpoints is that of its step. Then it walks through the order itself and counts what every epoch gave.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_tools.errors import DataError
from pretrain.data.ledger import LEDGER, Attempt, effective, read_ledger
from pretrain.data.phases import CorpusShare
from pretrain.data.settings import CACHE_DIRECTORY
from pretrain.data.skip import SKIPPED_DIRECTORY, SkipLog
from pretrain.data.state import StreamState
from pretrain.data.walk import walk

WALKED_SAMPLES = 5_000_000
"""A longer run is walked through only with --full: a million samples take about a second."""


@dataclass
class Report:
    """What an audit found.

    Attributes:
        facts: sentences about the run.
        problems: what is not as it must be.
    """

    facts: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def audit_run(run_dir: Path, full: bool = False) -> Report:
    """Audit the data of a run.

    Args:
        run_dir: the run.
        full: walk through every sample, however many there are.

    Raises:
        DataError: there is no readable ledger.
    """
    attempts = read_ledger(run_dir)
    kept = effective(attempts)
    report = Report()
    report.problems += _chain_problems(attempts)
    steps = kept[-1][1]
    consumed = kept[-1][0].table.samples_before(steps)
    report.facts.append(
        f"{len(attempts)} attempts, {len(kept)} of them kept in part; {steps} steps, {consumed} samples, "
        f"{kept[-1][0].state.phases[-1].tokens_at(consumed)} tokens"
    )
    _compare_counts(run_dir, attempts, kept, report)
    skipped = SkipLog(run_dir / CACHE_DIRECTORY / SKIPPED_DIRECTORY, "train", 0, 1).counts(consumed)
    if samples := int(skipped["data/skipped_samples"]):
        report.facts.append(
            f"{samples} samples of {int(skipped['data/skipped_blocks'])} damaged blocks had no part in the "
            "loss (data.on_bad_block: skip)"
        )
    if consumed <= WALKED_SAMPLES or full:
        facts, problems = walk(replace(kept[-1][0].state, consumed_samples=consumed))
        report.facts += facts
        report.problems += problems
    else:
        report.facts.append(f"{consumed} samples not walked through one by one; --full does")
    return report


def _chain_problems(attempts: Sequence[Attempt]) -> Iterator[str]:
    """Attempts that do not begin where the kept part before them ends."""
    for index, attempt in enumerate(attempts):
        name, state = f"attempt {attempt.number}", attempt.state
        before = [one for one, _ in effective(attempts[: index + 1])][:-1]
        if not before:
            fresh = attempt.step == state.consumed_samples == state.phases[0].first_sample == 0
            starts = [c.start for c in state.phases[0].corpora]
            if not fresh or any(start.epoch or start.done for start in starts):
                yield f"{name} begins at step {attempt.step}, and the ledger has nothing before it"
            continue
        previous = before[-1]
        expected = previous.table.samples_before(attempt.step)
        if state.consumed_samples != expected:
            yield (
                f"{name} begins at sample {state.consumed_samples}, attempt {previous.number} had read "
                f"{expected} by step {attempt.step}"
            )
        elif not _continues(replace(previous.state, consumed_samples=expected), state):
            yield (
                f"{name}: its phases or batch sizes do not continue those of attempt {previous.number} at "
                f"sample {expected}"
            )


def _continues(before: StreamState, after: StreamState) -> bool:
    """Whether a state is what `before` becomes with the data of `after`."""
    last = after.phases[-1]
    wanted = replace(last, first_sample=0, first_tokens=0, corpora=tuple(map(_at_zero, last.corpora)))
    fresh = replace(after, phases=(wanted,), batches=(after.batches[-1],))
    try:
        return before.continued_by(fresh) == after
    except DataError:
        return False


def _at_zero(share: CorpusShare) -> CorpusShare:
    return replace(share, start=type(share.start)())


def _compare_counts(
    run_dir: Path, attempts: Sequence[Attempt], kept: Sequence[tuple[Attempt, int]], report: Report
) -> None:
    """Find recorded counts that are not those of their step."""
    for attempt in attempts:
        for line in attempt.lines:
            if "consumed_samples" in line:
                report.problems += _compare(f"{LEDGER}, attempt {attempt.number}", attempt, line)
    for record in _json_lines(run_dir / "metrics.jsonl"):
        if "consumed_samples" in record and (owner := _owner(kept, int(record["step"]))):
            report.problems += _compare("metrics.jsonl", owner, record)
    for record in _checkpoints(run_dir, report):
        owner = _owner(kept, record["step"])
        found = _compare("checkpoints", owner, record) if owner else []
        # It may have been damaged: then a later attempt passed it over, and undid its steps.
        earlier = [one for one in attempts if owner and one.number < owner.number]
        if found and any(one.step < record["step"] and not _compare("", one, record) for one in earlier):
            report.facts.append(f"the checkpoint of step {record['step']} is of steps that were undone")
        else:
            report.problems += found


def _owner(kept: Sequence[tuple[Attempt, int]], step: int) -> Attempt | None:
    """The attempt that did a step. The last one may have done more than it recorded before it was killed."""
    return next((one for one, _ in reversed(kept) if one.step < step), None)


def _checkpoints(run_dir: Path, report: Report) -> Iterator[dict[str, Any]]:
    """Step and stream state of each checkpoint that can be read."""
    for path in sorted((run_dir / "checkpoints").glob("step-????????/manifest.json")):
        try:
            trainer = json.loads(path.read_text(encoding="utf-8"))["trainer"]
            record = {**trainer["stream"], "step": int(trainer["step"])}
            int(record["consumed_samples"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            report.facts.append(f"{path} was passed over, it cannot be read ({error!r})")
        else:
            yield record


def _compare(source: str, attempt: Attempt, record: dict[str, Any]) -> list[str]:
    expected = attempt.table.samples_before(int(record["step"]))
    if record["consumed_samples"] == expected:
        return []
    return [f"{source}: step {record['step']} has {record['consumed_samples']} samples, not {expected}"]


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue  # torn when its attempt was killed; the next one drops it


def main(argv: Sequence[str]) -> int:
    """Run `headwater data audit ARGV`.

    Raises:
        DataError: with everything that is wrong.
    """
    parser = argparse.ArgumentParser(
        prog="headwater data audit",
        description="Prove from the cursors of a run that no sample was repeated or skipped.",
        epilog="example:\n  headwater data audit --run runs/gpt-tiny",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="run directory")
    parser.add_argument("--full", action="store_true", help="walk through every sample of a long run, too")
    arguments = parser.parse_args(argv)
    report = audit_run(arguments.run, arguments.full)
    print("\n".join(report.facts))
    if report.problems:
        raise DataError("the audit failed:\n  " + "\n  ".join(report.problems))
    print("audit passed: nothing repeated, nothing skipped")
    return 0
