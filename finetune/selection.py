"""The best evaluation of a run: its checkpoint is kept apart, and a run that gets no better ends early."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping

from finetune.config import SelectionConfig
from pretrain.checkpoint import save_checkpoint
from pretrain.checkpoint.manifest import checkpoints_directory
from pretrain.job import Job
from pretrain.parallel.collectives import broadcast_from_main

BEST = "best"
"""Directory in a run that is itself like a run: `--checkpoint runs/my-run/best`."""

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
        """See the evaluations up to a step again; all ranks together."""
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
        """Save the weights in the directory of the best, and only then remove what was the best before."""
        directory = job.run_dir / BEST
        config = job.config.model_copy(update={"run_dir": str(directory)})
        kept = save_checkpoint(job.engine, config, {"step": step}, job.extra_files)
        if job.topology.is_main:
            for other in checkpoints_directory(directory).iterdir():
                if other.name != kept.name:
                    shutil.rmtree(other)

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
