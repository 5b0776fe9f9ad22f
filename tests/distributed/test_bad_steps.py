"""A bad step leaves no trace: weights, moments and later losses are those of a run that never saw it."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pretrain.data.audit import audit_run
from tests.support.ranks import RankPool
from tests.support.training import Layout, tiny_config

TRAIN = "tests.support.training:train"
ATTEMPT = "tests.support.data_chain:attempt"
STEPS, BAD = 6, 3
LAYOUTS = {
    "z0-tp1-dp2": Layout(1, 0),
    "z0-tp2-dp1": Layout(2, 0),
    "z1-tp1-dp2": Layout(1, 1),
    "z2-tp1-dp2": Layout(1, 2),
    "z3-tp1-dp2": Layout(1, 3),
    "z3-tp2-dp1": Layout(2, 3),
    "z1-tp2-dp1-bf16": Layout(2, 1, "bf16"),
    "z3-tp1-dp2-bf16": Layout(1, 3, "bf16"),
}
QUICK = ("z0-tp2-dp1", "z2-tp1-dp2", "z3-tp1-dp2-bf16")
CASES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in LAYOUTS]
pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def pool() -> Iterator[RankPool]:
    with RankPool(2) as two:
        yield two


@pytest.mark.parametrize("name", CASES)
def test_a_discarded_step_never_was(pool: RankPool, name: str) -> None:
    arguments = {"kind": "gpt", "layout": LAYOUTS[name], "steps": STEPS}
    without = pool.run(TRAIN, **arguments, leave_out=(BAD,))[0]
    discarded = pool.run(TRAIN, **arguments, discard=(BAD,))[0]
    assert discarded["applied"] == [step != BAD for step in range(STEPS)]
    assert discarded["losses"][:BAD] + discarded["losses"][BAD + 1 :] == without["losses"]
    assert discarded["norms"][BAD + 1 :] == without["norms"][BAD:]


@pytest.mark.parametrize("name", CASES)
def test_a_nan_in_the_gradients_of_one_rank_is_not_applied_on_any(pool: RankPool, name: str) -> None:
    arguments = {"kind": "gpt", "layout": LAYOUTS[name], "steps": STEPS}
    without = pool.run(TRAIN, **arguments, leave_out=(BAD,))
    poisoned = pool.run(TRAIN, **arguments, poison={BAD: 1})
    for ours, theirs in zip(poisoned, without, strict=True):
        assert ours["applied"] == [step != BAD for step in range(STEPS)]
        assert ours["losses"][:BAD] + ours["losses"][BAD + 1 :] == theirs["losses"]
        assert ours["replicated"] == theirs["replicated"]


def settings(corpus: Path, run_dir: Path, steps: int, **bad_steps: Any) -> dict[str, Any]:
    config = tiny_config("gpt", Layout(1, 1), str(run_dir)).model_dump(mode="json")
    config["data"] = {"corpora": [{"name": "corpus", "path": str(corpus)}]}
    config["batch"]["seq_length"] = 32
    config["checkpoint"] = {"save_interval": 4, "keep_last": 9}
    config["training"] = {"train_steps": steps, "log_interval": 1}
    config["schedule"] = {"kind": "constant"}
    config["bad_steps"] = bad_steps
    return config


def rows(run_dir: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    timing = (
        *("step_seconds", "data_wait_seconds", "tokens_per_second"),
        *("model_tflops", "mfu", "save_stall_seconds"),
    )
    return [{name: value for name, value in row.items() if name not in timing} for row in found]


def test_a_nan_loss_on_one_rank_is_skipped_recorded_and_replayed(
    corpus: Path, pool: RankPool, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    config = settings(corpus, run_dir, 8)
    assert pool.run(ATTEMPT, config=config, planted={6: (1, math.nan)}) == [0, 0]
    first = rows(run_dir)
    assert [row["step"] for row in first] == list(range(1, 9))
    assert first[5]["loss"] is None and [row["skipped_steps"] for row in first] == [0] * 5 + [1] * 3
    kinds = [json.loads(line)["kind"] for line in (run_dir / "ledger.jsonl").read_text().splitlines()]
    assert kinds.count("bad_step") == 1
    manifest = json.loads((run_dir / "checkpoints/step-00000008/manifest.json").read_text())
    assert manifest["trainer"]["bad_steps"]["skipped"] == 1
    # The fault does not come again; the record makes the replay from step 4 leave out the same update.
    shutil.rmtree(run_dir / "checkpoints/step-00000008")
    assert pool.run(ATTEMPT, config=config) == [0, 0]
    again = rows(run_dir)
    assert [row["loss"] for row in again[6:]] == [row["loss"] for row in first[6:]]
    assert [row["skipped_steps"] for row in again] == [row["skipped_steps"] for row in first]
    assert audit_run(run_dir).problems == []


def test_too_many_bad_steps_go_back_to_the_checkpoint_and_pass_its_data(
    corpus: Path, pool: RankPool, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    config = settings(corpus, run_dir, 11, max_in_a_row=3, spike_zscore=8.0, spike_window=4)
    planted = {step: (-1, 50.0) for step in (6, 7, 8)}
    assert pool.run(ATTEMPT, config=config, planted=planted) == [0, 0]
    after = rows(run_dir)
    assert [row["skipped_steps"] for row in after][4:] == [0, 1, 2, 3, 3, 3, 3]
    assert [row["rollbacks"] for row in after][7:] == [0, 1, 1, 1]
    record = [json.loads(line) for line in (run_dir / "bad_steps.jsonl").read_text().splitlines()]
    assert [line["step"] for line in record if line["kind"] == "skip"] == [6, 7, 8]
    assert record[-1] == {"kind": "rollback", "step": 8, "to_step": 4}
    assert "median" in record[0]["reason"]
    assert (run_dir / "checkpoints/step-00000008").is_dir()
    # Step 9 has the weights of step 4: so has that of a run in which steps 5 to 8 had no update.
    other = tmp_path / "other"
    planted = {step: (0, math.nan) for step in (5, 6, 7, 8)}
    config = settings(corpus, other, 11, max_in_a_row=9)
    assert pool.run(ATTEMPT, config=config, planted=planted) == [0, 0]
    assert [row["loss"] for row in rows(other)][8:] == [row["loss"] for row in after][8:]


def test_bad_steps_before_any_checkpoint_end_the_run(corpus: Path, pool: RankPool, tmp_path: Path) -> None:
    config = settings(corpus, tmp_path / "run", 8, max_in_a_row=2)
    assert pool.run(ATTEMPT, config=config, planted={2: (0, math.nan), 3: (1, math.inf)}) == [3, 3]
    assert not list((tmp_path / "run/checkpoints").glob("step-*"))
