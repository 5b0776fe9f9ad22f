"""The best evaluation of a run: its checkpoint is kept apart, and a run that gets no better ends early."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence

from finetune.config import SelectionConfig
from finetune.source import BEST
from pretrain.checkpoint import save_checkpoint
from pretrain.checkpoint.manifest import list_checkpoints, step_directory, step_of, verify
from pretrain.checkpoint.publish import remove
from pretrain.job import Job
from pretrain.parallel.collectives import broadcast_from_main

_ALL = {"keep_last": 10**9}
"""What is not needed here is not for retention to say."""
LOWER_IS_BETTER = ("loss", "perplexity", "rmse", "mae")


class Selection:
    """What `pretrain.loop` asks after each evaluation.

    Its state is the evaluations in metrics.jsonl, of which a resumed run keeps those up to its checkpoint.

    Attributes:
        finished: No better evaluation for `patience` of them: the run ends.
        best_step: Optimizer step of the best one; None before the first.
    """

    def __init__(self, wanted: SelectionConfig) -> None:
        self.finished = False
        self.best_step: int | None = None
        self._best, self._since_best = 0.0, 0
        self._wanted = wanted

    def resume(self, job: Job, step: int) -> None:
        """See the evaluations up to a step again; all ranks together.

        Only one whose checkpoint is there can be the best; where a better one has lost its own, that is told.
        """
        history: list[tuple[int, float | None]] = []
        if job.topology.is_main and step:
            history = self._history(job, step)
            kept = list_checkpoints(job.run_dir / BEST)
            sound = {step_of(directory) for directory in kept if not verify(directory)}
            wanted = _best_of(self._wanted, history)
            history = [(seen, value if seen in sound else None) for seen, value in history]
            if wanted is not None and wanted not in sound:
                lost = step_directory(job.run_dir / BEST, wanted)
                print(
                    f"{lost}: missing or damaged; it was the best so far, now the best of the others counts. "
                    "To have it again, start in another run_dir",
                    flush=True,
                )
        for seen, value in broadcast_from_main(history):
            self._is_better(seen, value)

    def settle(self, job: Job) -> None:
        """The run is complete: keep nothing but the best."""
        if job.topology.is_main:
            _keep_only(job, {self.best_step})

    def _history(self, job: Job, step: int) -> list[tuple[int, float | None]]:
        path = job.run_dir / "metrics.jsonl"
        if not path.exists():
            return []
        # The last line may be torn, by a kill; it is behind the checkpoint then.
        complete = path.read_text(encoding="utf-8").rpartition("\n")[0]
        rows = [json.loads(line) for line in complete.splitlines()]
        name = f"eval/{self._wanted.metric}"
        return [(row["step"], row[name]) for row in rows if name in row and row["step"] <= step]

    def evaluated(self, job: Job, step: int, scores: Mapping[str, float]) -> str:
        """Judge an evaluation; all ranks together, with the same scores.

        Args:
            job: Whose weights are kept if it is the best.
            step: Optimizer steps so far.
            scores: Of the evaluation.

        Returns:
            What there is to tell about it; "" for nothing.
        """
        metric = self._wanted.metric
        if self._is_better(step, scores[metric]):
            self._keep(job, step)
            return f"best {metric} so far: kept in {job.run_dir / BEST}"
        if self.finished:
            return (
                f"no better {metric} than {self._best:.4f} of step {self.best_step} in {self._since_best} "
                "evaluations: the run ends here"
            )
        return ""

    def _keep(self, job: Job, step: int) -> None:
        """Save the weights in the directory of the best, and only then remove what is not needed any more.

        What was the best at a checkpoint of the run, or at the one that may be being written, stays: a killed
        run goes on from there, and may find no better one after it.
        """
        checkpoint = job.config.checkpoint
        changed = {"run_dir": str(job.run_dir / BEST), "checkpoint": checkpoint.model_copy(update=_ALL)}
        save_checkpoint(job.engine, job.config.model_copy(update=changed), {"step": step}, job.extra_files)
        if job.topology.is_main:
            begun = (step - 1) // checkpoint.save_interval * checkpoint.save_interval
            resumed = [begun, *map(step_of, list_checkpoints(job.run_dir))]
            kept = list(map(step_of, list_checkpoints(job.run_dir / BEST)))
            then = {max((best for best in kept if best <= point), default=step) for point in resumed}
            _keep_only(job, {step} | then)

    def _is_better(self, step: int, value: float | None) -> bool:
        sign = -1.0 if self._wanted.metric in LOWER_IS_BETTER else 1.0
        if value is None:  # JSON's for a number that is none
            value = math.nan
        better = not math.isnan(value) and (self.best_step is None or sign * value > sign * self._best)
        if better:
            self._best, self.best_step, self._since_best = value, step, 0
        else:
            self._since_best += 1
        self.finished = self._wanted.patience is not None and self._since_best >= self._wanted.patience
        return better


def _best_of(wanted: SelectionConfig, history: Sequence[tuple[int, float | None]]) -> int | None:
    """The best step of a history, whatever became of its checkpoint."""
    judge = Selection(wanted)
    for step, value in history:
        judge._is_better(step, value)
    return judge.best_step


def _keep_only(job: Job, steps: Collection[int | None]) -> None:
    for directory in list_checkpoints(job.run_dir / BEST):
        if step_of(directory) not in steps:
            remove(directory)
