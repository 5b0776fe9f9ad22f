"""A finetuning run on every rank of a RankPool."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def finetune(config: str, overrides: list[str]) -> dict[str, Any]:
    """Run the job of a config file; its results."""
    import os

    import torch.distributed as dist

    from finetune import session
    from finetune.config import load_finetune_config
    from pretrain.stop import StopSignals

    loaded = load_finetune_config(Path(config), overrides, int(os.environ["WORLD_SIZE"]))
    leave, session.leave_process_group = session.leave_process_group, lambda: None  # the pool leaves it
    try:
        assert session.finetune(loaded, StopSignals()) == 0
    finally:
        session.leave_process_group = leave
    dist.barrier()  # the main rank writes the results last
    results: dict[str, Any] = json.loads((Path(loaded.run_dir) / "results.json").read_text())
    return results
