"""Runs a plan of fake ranks: `run_plan.py RUN_DIR NPROC`; a process of its own, to be signalled."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from launch import local
from launch.machine import free_port
from launch.plan import LaunchPlan, rank_environment


def main() -> int:
    run_dir, nproc = Path(sys.argv[1]), int(sys.argv[2])
    env = rank_environment(os.environ, cores=1, ranks_per_host=nproc, has_accelerator=False)
    plan = LaunchPlan(
        run_dir=run_dir,
        config=Path("run.yaml"),
        overrides=("a.b=x y",),
        python=sys.executable,
        hosts=("127.0.0.1",),
        ranks_per_host=nproc,
        master_port=free_port(),
        env=env,
        module="tests.unit.launch.fake_rank",
    )
    return local.run(plan)


if __name__ == "__main__":
    sys.exit(main())
