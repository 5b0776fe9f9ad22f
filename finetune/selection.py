"""The best evaluation of a run: its checkpoint is kept apart, and a run that gets no better ends early."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping

from finetune.config import SelectionConfig
from finetune.source import BEST
from pretrain.checkpoint import save_checkpoint
from pretrain.checkpoint.manifest import list_checkpoints, step_directory, step_of, verify
from pretrain.job import Job
from pretrain.parallel.collectives import broadcast_from_main

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

        What a killed attempt kept of later steps is removed, as they are evaluated again. Where the best
        checkpoint is gone, the best is sought from here on.
        """
        path = job.run_dir / "metrics.jsonl"
        history: list[tuple[int, float]] = []
        if job.topology.is_main and step and path.exists():
            # The last line may be torn, by a kill; it is behind the checkpoint then.
            complete = path.read_text(encoding="utf-8").rpartition("\n")[0]
            rows = [json.loads(line) for line in complete.splitlines()]
            name = f"eval/{self._wanted.metric}"
            history = [(row["step"], row[name]) for row in rows if name in row and row["step"] <= step]
        for seen_step, value in broadcast_from_main(history):
            self._is_better(seen_step, value)
        if job.topology.is_main:
            self._remove(job, lambda kept: kept > step)
        if broadcast_from_main(job.topology.is_main and self._damage(job)):
            self.best_step, self._since_best, self.finished = None, 0, False

    def settle(self, job: Job) -> None:
        """The run is complete: keep nothing but the best."""
        if job.topology.is_main:
            self._remove(job, lambda kept: kept != self.best_step)

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
        """Save the weights in the directory of the best, and only then remove what was the best before.

        Up to the newest checkpoint of the run the best stays, too: a killed run goes on from there, and may
        find no better one after it.
        """
        config = job.config.model_copy(update={"run_dir": str(job.run_dir / BEST)})
        save_checkpoint(job.engine, config, {"step": step}, job.extra_files)
        if job.topology.is_main:
            resumed = max(map(step_of, list_checkpoints(job.run_dir)), default=0)
            before = [kept for kept in map(step_of, list_checkpoints(job.run_dir / BEST)) if kept <= resumed]
            wanted = {step, max(before, default=step)}
            self._remove(job, lambda kept: kept not in wanted)

    @staticmethod
    def _remove(job: Job, unwanted: Callable[[int], bool]) -> None:
        for directory in list_checkpoints(job.run_dir / BEST):
            if unwanted(step_of(directory)):
                shutil.rmtree(directory)

    def _damage(self, job: Job) -> bool:
        """Whether the best checkpoint cannot be used, which is told."""
        problems = self.best_step is not None and verify(step_directory(job.run_dir / BEST, self.best_step))
        if problems:
            print(
                f"{problems[0]}; it was the best of this run. From here on the best of what follows is kept; "
                "for the best of all start again in another run_dir",
                flush=True,
            )
        return bool(problems)

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
