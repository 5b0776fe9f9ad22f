"""What follows from how an attempt ended: pure rules, so that each of them can be tested."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pretrain.config.exit_codes import CRASH, DIVERGED, OK, REPLACED, STOPPED, STORAGE, WRONG_INPUT

GIVE_UP = {
    WRONG_INPUT: "refused its input",
    DIVERGED: "met losses that stay bad",
    STORAGE: "could not write (is the disk full?)",
    REPLACED: "was replaced by a newer attempt",
}
"""Exit codes of ranks that come again however often the run is started."""

Action = Literal["done", "requeue", "requeued", "stop", "give up"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How the ranks of an attempt ended."""

    codes: Mapping[int, int]
    """Exit codes by rank; a rank that left no word (its node was lost, it was killed) is absent."""
    world_size: int
    step_code: int
    """srun's own exit code."""
    asked: bool = False
    """The ranks were signalled to save."""
    stop_requested: bool = False
    """The user wants the run to rest: no requeue."""
    cancelled: bool = False
    """For the controller the job is over already: scancel, or the time limit."""
    requeued: bool = False
    """SLURM has put the job back into the queue by itself: a node was lost, a preemption, a person."""
    hosts: tuple[str, ...] = ()
    """The nodes, in the order of the ranks."""
    failures: int = 0
    """Crashes in a row before this attempt, without a new checkpoint."""
    max_failures: int = 3


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do, and the exit code of the job where it ends."""

    action: Action
    exit_code: int
    reason: str


def judge(ending: Ending) -> Verdict:
    """Success ends, a stop on a signal requeues, wrong input and divergence give up, a crash tries again."""
    refused = sorted((rank, code) for rank, code in ending.codes.items() if code in GIVE_UP)
    if refused:
        rank, code = refused[0]
        return Verdict("give up", code, f"rank {rank} {GIVE_UP[code]}; starting again would not help")
    crashed = sorted(rank for rank, code in ending.codes.items() if code not in (OK, STOPPED))
    lost = [rank for rank in range(ending.world_size) if rank not in ending.codes]
    if not crashed and not lost:
        if STOPPED not in ending.codes.values():
            return Verdict("done", OK, "the run is complete")
        return _after_stop(ending, "saved; ")
    signalled = (128 + signal.SIGUSR1, 128 + signal.SIGTERM)
    if ending.asked and not lost and all(ending.codes[rank] in signalled for rank in crashed):
        return _after_stop(ending, "ended before the first step; ")  # it came while the ranks still started
    what = _describe(ending, crashed, lost)
    code = ending.codes[crashed[0]] if crashed else CRASH
    if ending.requeued:
        return Verdict("requeued", code, f"{what}; SLURM has put the job back into the queue")
    if ending.cancelled or ending.stop_requested:
        return Verdict("stop", STOPPED, f"{what} while SLURM was ending the job; the last checkpoint stays")
    return crash(what, code, ending.failures, ending.max_failures)


def crash(what: str, code: int, failures: int, max_failures: int) -> Verdict:
    """An attempt that failed: again, so many times."""
    if failures >= max_failures:
        return Verdict("give up", CRASH, f"{what}, {failures + 1} times in a row without a new checkpoint")
    count = f"failure {failures + 1} in a row, {max_failures} are allowed"
    return Verdict("requeue", code, f"{what}; {count}")


def _after_stop(ending: Ending, what: str) -> Verdict:
    if ending.stop_requested:
        return Verdict("stop", STOPPED, f"{what}stopped as asked")
    if ending.requeued:
        return Verdict("requeued", STOPPED, f"{what}SLURM has put the job back into the queue")
    if ending.cancelled:
        return Verdict("stop", STOPPED, f"{what}the job was cancelled")
    return Verdict("requeue", STOPPED, f"{what}the time limit was near, or a preemption")


def _describe(ending: Ending, crashed: list[int], lost: list[int]) -> str:
    """What happened, the likelier cause first: ranks fail when those of a lost node fall silent."""
    found = []
    if lost:
        some = ", ".join(map(str, lost[:8])) + (", ..." if len(lost) > 8 else "")
        if ending.hosts:
            per_host = ending.world_size // len(ending.hosts)
            some += f" on {', '.join(dict.fromkeys(ending.hosts[rank // per_host] for rank in lost))}"
        found.append(f"rank {some} left no word, its node was lost or it was killed")
    if crashed:
        more = f" and {len(crashed) - 1} more" if len(crashed) > 1 else ""
        found.append(f"rank {crashed[0]} failed with exit code {ending.codes[crashed[0]]}{more}")
    return f"{'; '.join(found)} (srun: {ending.step_code})"
