"""Learning rate as a pure function of the optimizer step."""

from __future__ import annotations

import math

from pretrain.config.schema import JobConfig


def learning_rate(config: JobConfig, step: int) -> float:
    """Learning rate of optimizer step `step`, counted from 0.

    Linear warm-up to `optimizer.lr` over `lr_warmup_steps` (step 0 already moves), then by `schedule.kind`:
    cosine (Loshchilov & Hutter, 2017) or linear to `min_lr` at the last step; wsd (Hu et al., 2024), constant
    until the last `wsd_decay_steps`, then linear; or constant.
    """
    schedule, peak, floor = config.schedule, config.optimizer.lr, config.optimizer.min_lr
    warmup, total = schedule.lr_warmup_steps, config.training.train_steps
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule.kind == "constant":
        return peak
    start = total - schedule.wsd_decay_steps if schedule.kind == "wsd" else warmup
    progress = min(1.0, max(0.0, (step - start) / max(1, total - start)))
    share = 0.5 * (1.0 + math.cos(math.pi * progress)) if schedule.kind == "cosine" else 1.0 - progress
    return floor + (peak - floor) * share
