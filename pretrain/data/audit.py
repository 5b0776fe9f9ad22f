"""`headwater data audit`: proof from the cursors of a run that no sample was repeated or skipped.

What a step read follows from the state of its attempt. So the audit checks that each attempt begins exactly
where the kept part of the one before it ends (the same phases, batch sizes and count; a new phase at the
place in each corpus that follows from the old one), and that every count in the ledger, the metrics and the
checkpoints is that of its step. Then it walks through the order itself and counts what every epoch gave.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.errors import DataError
from pretrain.data.ledger import LEDGER, Attempt, effective, read_ledger
from pretrain.data.order import WINDOW_GROUPS
from pretrain.data.phases import CorpusShare, Phase
from pretrain.data.philox import I64, derive_key
from pretrain.data.state import StreamState
from pretrain.data.token_order import TokenOrder, TokenStart, group_tokens

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
    report.problems += _count_problems(run_dir, attempts, kept)
    if consumed <= WALKED_SAMPLES or full:
        _walk(replace(kept[-1][0].state, consumed_samples=consumed), report)
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


def _count_problems(
    run_dir: Path, attempts: Sequence[Attempt], kept: Sequence[tuple[Attempt, int]]
) -> Iterator[str]:
    """Recorded counts that are not those of their step."""
    for attempt in attempts:
        for line in attempt.lines:
            if "consumed_samples" in line:
                yield from _compare(f"{LEDGER}, attempt {attempt.number}", attempt, line)
    rows = _json_lines(run_dir / "metrics.jsonl")
    manifests = [
        json.loads(path.read_text(encoding="utf-8"))["trainer"]
        for path in sorted((run_dir / "checkpoints").glob("step-????????/manifest.json"))
    ]
    states = [{"step": one["step"], **one["stream"]} for one in manifests if "stream" in one]
    for source, records in (("metrics.jsonl", rows), ("checkpoints", states)):
        for record in records:
            step = int(record["step"])
            owner = next((one for one, last in kept if one.step < step <= last), None)
            if owner is not None and "consumed_samples" in record:
                yield from _compare(source, owner, record)
            elif owner is None and 0 < step:
                yield f"{source}: step {step} is in no attempt that the ledger kept"


def _compare(source: str, attempt: Attempt, record: dict[str, Any]) -> Iterator[str]:
    expected = attempt.table.samples_before(int(record["step"]))
    if record["consumed_samples"] != expected:
        yield f"{source}: step {record['step']} has {record['consumed_samples']} samples, not {expected}"


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue  # torn when its attempt was killed; the next one drops it


def _walk(state: StreamState, report: Report) -> None:
    """Go through all samples of a run in their order, and count what each epoch of each corpus gave."""
    found: dict[tuple[str, int], list[I64]] = {}
    sizes: dict[tuple[str, int], tuple[int, str]] = {}
    allowed: Counter[tuple[str, int]] = Counter()
    ends = [*(phase.first_sample for phase in state.phases[1:]), state.consumed_samples]
    for phase, end in zip(state.phases, ends, strict=True):
        for share, epoch, pieces in _read_by_phase(phase, end - phase.first_sample, state.seed):
            found.setdefault((share.name, epoch), []).append(pieces)
            sizes[share.name, epoch] = share.size, share.unit
            allowed[share.name, epoch] += _left_out(share, phase.seq_length)
        for share in phase.corpora:
            if share.start.epoch and not share.start.done and _is_cut(state, phase, share.name):
                allowed[share.name, share.start.epoch - 1] = share.size
    for (name, epoch), parts in sorted(found.items()):
        pieces = np.concatenate(parts)
        pieces = pieces[np.argsort(pieces[:, 0], kind="stable")]
        size, unit = sizes[name, epoch]
        read = int(pieces[:, 1].sum())
        twice = int((pieces[1:, 0] < pieces[:-1].sum(axis=1)).sum())
        report.facts.append(f"corpus {name}, epoch {epoch}: {read} of {size} {unit}")
        if twice:
            report.problems.append(f"corpus {name}, epoch {epoch}: {twice} ranges of {unit} were read twice")
        if (name, epoch + 1) in found and size - read > allowed[name, epoch]:
            report.problems.append(f"corpus {name}, epoch {epoch}: {size - read} {unit} were skipped")


def _left_out(share: CorpusShare, seq_length: int) -> int:
    """What a phase leaves out of an epoch: under seq_length tokens of each window and each rest."""
    if not isinstance(share.start, TokenStart):
        return 0
    windows = -(-share.size // (group_tokens(seq_length) * WINDOW_GROUPS))
    return (windows + len(share.start.stretches or ())) * seq_length


def _is_cut(state: StreamState, phase: Phase, name: str) -> bool:
    """Whether a phase ended an epoch of a corpus early, as another seq_length may have to."""
    earlier = [one for one in state.phases if one.first_sample < phase.first_sample]
    used = [one.seq_length for one in earlier if any(share.name == name for share in one.corpora)]
    return bool(used) and used[-1] != phase.seq_length


def _read_by_phase(phase: Phase, samples: int, seed: int) -> Iterator[tuple[CorpusShare, int, I64]]:
    """(corpus, epoch, [n, 2] first unit and number of units of each range read) in the first samples."""
    read = phase.mixture(seed).consumed(samples).tolist()
    for share, count in zip(phase.corpora, read, strict=True):
        order = share.order(phase.seq_length, derive_key(seed, "corpus", share.name))
        epoch, sample = order.locate(np.arange(count))
        if isinstance(order, TokenOrder):
            spans = order.spans(epoch, sample) if count else None
            if spans is None:
                continue
            epoch, sample, length = epoch[spans.row], spans.start, spans.length
        else:
            length = np.ones_like(sample)
        for one in np.unique(epoch).tolist():
            mine = epoch == one
            yield share, one, np.stack([sample[mine], length[mine]], axis=1)


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
