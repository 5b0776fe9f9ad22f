"""One finetuning run of ours, timed."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from benchmarks.finetune_speed import RESULT, Clock
from finetune import session, train
from finetune.import_hf import import_hf


def main(wanted: dict[str, Any]) -> None:
    """Import once, train, print accuracy and seconds of the loop, a checkpoint at its end included."""
    out = Path(wanted["out"])
    if not (out / "imported").exists():
        import_hf(Path(wanted["hf"]), out / "imported")
    run_dir = out / f"headwater-{wanted['seed']}-{time.time_ns()}"
    config = {
        "run_dir": str(run_dir),
        "seed": wanted["seed"],
        "pretrained": str(out / "imported"),
        "task": {"kind": "classification"},
        "data": {split: wanted[split] for split in ("train", "validation")},
        "batch": {
            "micro_batch_size": wanted["batch"],
            "global_batch_size": wanted["batch"],
            "seq_length": wanted["seq_length"],
        },
        "optimizer": {"lr": wanted["lr"], "weight_decay": 0.01, "beta2": 0.999, "clip_grad": 1.0},
        "schedule": {"kind": "linear", "lr_warmup_steps": wanted["warmup"]},
        "precision": "fp32",
        "training": {"train_steps": wanted["steps"], "log_interval": 10},
    }
    path = run_dir.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config))
    loop, spent = session.run, dict[str, float]()

    def timed(job: Any) -> int:
        clock = Clock()
        code = loop(job)
        spent.update(clock.read())
        return code

    session.run = timed
    if train.main(["--config", str(path)]):
        raise SystemExit("the run did not end")
    results = json.loads((run_dir / "results.json").read_text())
    print(RESULT, json.dumps({"accuracy": results["accuracy"], **spent}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
