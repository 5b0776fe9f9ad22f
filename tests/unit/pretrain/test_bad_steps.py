"""Which steps are bad, and when a run goes back."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from pretrain.bad_steps import NOT_FINITE, RECORDED, SPIKE, BadSteps, append_record, read_record
from pretrain.config.schema import BadStepsConfig
from pretrain.step import StepMetrics, TrainingError


def good(loss: float) -> StepMetrics:
    return StepMetrics({"loss": loss}, 1.0, True)


def after(losses: list[float], known: dict[int, str] | None = None, **config: float) -> BadSteps:
    bad = BadSteps(BadStepsConfig.model_validate({"spike_zscore": 6.0} | config), known or {})
    for step, loss in enumerate(losses, 1):
        assert not bad.condemn(step, loss, bad.suspicion(step, loss))
        assert bad.count(step, good(loss)) == ""
    return bad


def noisy(count: int = 64) -> list[float]:
    return list(np.random.default_rng(3).normal(5.0, 0.1, count))


def test_a_spike_is_what_lies_many_deviations_above_the_median() -> None:
    losses = noisy()
    bad = after(losses)
    # The reference: numpy's median, and the deviation that these numbers were drawn with.
    assert bad.suspicion(65, float(np.median(losses)) + 4 * 0.1) == 0
    assert bad.suspicion(65, float(np.median(losses)) + 9 * 0.1) == SPIKE
    assert bad.suspicion(65, 0.1) == 0  # a loss that falls is no spike
    assert after(losses, spike_zscore=0.0).suspicion(65, 1e9) == 0


def test_earlier_spikes_do_not_hide_the_next() -> None:
    bad = after(noisy())
    for step in range(65, 69):
        assert bad.condemn(step, 50.0, bad.suspicion(step, 50.0))
        assert "far above" in bad.count(step, StepMetrics({"loss": 50.0}, math.nan, False))
    assert bad.suspicion(69, 50.0) == SPIKE and bad.in_a_row == 4 and bad.skipped == 4


def test_few_losses_give_no_verdict() -> None:
    assert after(noisy(15)).suspicion(16, 100.0) == 0


def test_nan_on_another_rank_counts_here() -> None:
    bad = after(noisy())
    assert bad.suspicion(65, math.nan) == NOT_FINITE
    assert bad.condemn(65, 5.0, NOT_FINITE)
    assert bad.count(65, StepMetrics({"loss": 5.0}, math.nan, False)) == "loss not finite on another rank"


def test_an_infinite_gradient_counts() -> None:
    bad = after(noisy())
    assert not bad.condemn(65, 5.0, bad.suspicion(65, 5.0))
    assert bad.count(65, StepMetrics({"loss": 5.0}, math.inf, False)) == "gradient norm inf"


def test_a_replay_leaves_out_what_was_recorded(tmp_path: Path) -> None:
    append_record(tmp_path, "skip", step=3, reason="loss nan")
    append_record(tmp_path, "skip", step=7, reason="loss nan")
    append_record(tmp_path, "rollback", step=7, to_step=5)
    with (tmp_path / "bad_steps.jsonl").open("a") as file:
        file.write('{"kind": "sk')  # killed while writing
    append_record(tmp_path, "skip", step=9, reason="loss inf")
    known = read_record(tmp_path, after_step=3)
    assert known == {7: "loss nan", 9: "loss inf"}
    bad = after(noisy(6), known)
    assert bad.suspicion(7, 5.0) == RECORDED and bad.suspicion(8, 5.0) == 0
    assert bad.condemn(7, 5.0, RECORDED)
    assert bad.count(7, StepMetrics({"loss": 5.0}, math.nan, False)).startswith("loss nan (recorded")


def test_too_many_in_a_row_go_back_and_too_many_returns_end_the_run() -> None:
    bad = after(noisy(), max_in_a_row=2, max_rollbacks=1)
    saved = bad.state_dict()
    for step in (65, 66):
        assert not bad.must_roll_back
        bad.condemn(step, math.nan, NOT_FINITE)
        bad.count(step, StepMetrics({"loss": math.nan}, math.nan, False))
    assert bad.must_roll_back
    bad.rolled_back(saved)
    assert bad.in_a_row == 0 and bad.rollbacks == 1 and bad.skipped == 2
    with pytest.raises(TrainingError, match="1 times") as caught:
        bad.rolled_back(saved)
    assert caught.value.exit_code == 3


def test_the_state_comes_back() -> None:
    bad = after(noisy())
    bad.condemn(65, math.nan, NOT_FINITE)
    bad.count(65, StepMetrics({"loss": math.nan}, math.nan, False))
    other = BadSteps(BadStepsConfig(spike_zscore=6.0), {})
    other.load_state_dict(bad.state_dict())
    assert other.state_dict() == bad.state_dict()
    assert [other.suspicion(66, loss) for loss in (5.1, 7.0)] == [0, SPIKE]
