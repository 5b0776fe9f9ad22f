"""What follows from an attempt's end: each rule."""

from __future__ import annotations

import pytest

from launch.verdict import Ending, judge


def ending(*codes: int | None, **facts: object) -> Ending:
    known = {rank: code for rank, code in enumerate(codes) if code is not None}
    return Ending(codes=known, world_size=len(codes), step_code=1, **facts)


@pytest.mark.parametrize(
    ("end", "action", "code"),
    [
        (ending(0, 0), "done", 0),
        (ending(75, 75), "requeue", 75),
        (ending(75, 75, stop_requested=True), "stop", 75),
        (ending(75, 75, cancelled=True), "stop", 75),
        (ending(0, 75), "requeue", 75),
        # A wrong config, a diverged loss, a full disk, a newer attempt: the others crash or are killed.
        (ending(2, 2), "give up", 2),
        (ending(143, 3), "give up", 3),
        (ending(1, 74, None), "give up", 74),
        (ending(77, 1), "give up", 77),
        (ending(1, 143), "requeue", 1),
        (ending(0, 137), "requeue", 137),
        (ending(76, 76), "requeue", 76),
        (ending(75, None), "requeue", 1),
        (ending(None, None), "requeue", 1),
        (ending(1, 1, failures=2, max_failures=3), "requeue", 1),
        (ending(1, 1, failures=3, max_failures=3), "give up", 1),
        (ending(1, 1, max_failures=0), "give up", 1),
        (ending(None, None, cancelled=True), "stop", 75),
        (ending(1, 1, stop_requested=True), "stop", 75),
        # The signal came while the ranks were still importing: nothing failed.
        (ending(138, 138, asked=True, failures=3), "requeue", 75),
        (ending(143, 138, asked=True, cancelled=True), "stop", 75),
        (ending(138, 1, asked=True), "requeue", 138),
        # SLURM has requeued it by itself, so the job must not.
        (ending(1, None, requeued=True, cancelled=True), "requeued", 1),
        (ending(75, 75, requeued=True, cancelled=True), "requeued", 75),
    ],
)
def test_each_rule(end, action, code):
    verdict = judge(end)
    assert (verdict.action, verdict.exit_code) == (action, code), verdict.reason


def test_the_reason_names_the_rank():
    assert "rank 1 failed with exit code 9" in judge(ending(0, 9, 143)).reason
    assert "rank 1, 2 left no word" in judge(ending(0, None, None)).reason
    reason = judge(ending(1, 1, None, None, hosts=("a", "b"), requeued=True, cancelled=True)).reason
    assert reason == (
        "rank 2, 3 on b left no word, its node was lost or it was killed; rank 0 failed with exit code 1 and "
        "1 more (srun: 1); SLURM has put the job back into the queue"
    )
    assert "rank 1 refused its input" in judge(ending(143, 2)).reason
