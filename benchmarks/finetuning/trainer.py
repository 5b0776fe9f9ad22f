"""One finetuning run of transformers' Trainer, timed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

from benchmarks.finetune_speed import RESULT, Clock


def main(wanted: dict[str, Any]) -> None:
    """Train, print accuracy and seconds of `train()`, a checkpoint at its end included."""
    set_seed(wanted["seed"])
    tokenizer = AutoTokenizer.from_pretrained(wanted["hf"])
    rows = {split: _rows(Path(wanted[split])) for split in ("train", "validation")}
    labels = sorted({row["label"] for row in rows["train"]})
    encoded = {
        split: [
            dict(tokenizer(row["text"], truncation=True, max_length=wanted["seq_length"]))
            | {"labels": labels.index(row["label"])}
            for row in of
        ]
        for split, of in rows.items()
    }
    model = AutoModelForSequenceClassification.from_pretrained(wanted["hf"], num_labels=len(labels))
    arguments = TrainingArguments(
        output_dir=str(Path(wanted["out"]) / "trainer"),
        seed=wanted["seed"],
        learning_rate=wanted["lr"],
        per_device_train_batch_size=wanted["batch"],
        per_device_eval_batch_size=wanted["batch"],
        max_steps=wanted["steps"],
        warmup_steps=wanted["warmup"],
        lr_scheduler_type="linear",
        weight_decay=0.01,
        adam_beta2=0.999,
        max_grad_norm=1.0,
        save_strategy="steps",
        save_steps=wanted["steps"],
        save_total_limit=1,
        report_to=[],
        logging_steps=10,
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, DataCollatorWithPadding(tokenizer), train_dataset=encoded["train"])
    clock = Clock()
    trainer.train()
    spent = clock.read()
    found = trainer.predict(encoded["validation"]).predictions.argmax(-1)
    accuracy = float(np.mean(found == [row["labels"] for row in encoded["validation"]]))
    print(RESULT, json.dumps({"accuracy": accuracy, **spent}))


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
