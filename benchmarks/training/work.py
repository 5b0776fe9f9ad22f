"""What every candidate does: the same model sizes on the same batches, and the protocol of the rounds."""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

ADAMW = {"lr": 1e-4, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
CLIP_GRAD = 1.0
IGNORED = -100
"""Label of a position that is not predicted, in torch and transformers."""


@dataclass(frozen=True)
class Work:
    """Sizes of the model and of one step's batch."""

    kind: str
    seq_length: int
    batch_size: int
    vocab_size: int
    num_layers: int = 6
    hidden_size: int = 512
    num_attention_heads: int = 8
    precision: str = "bf16"
    update_only: bool = False
    """The loss is a sum over weights: nothing but gradients, clipping and the update of the whole model."""

    @property
    def ffn_hidden_size(self) -> int:
        """Width inside the MLP; with a gate two thirds of it, rounded up to a multiple of 32."""
        return 4 * self.hidden_size if self.kind != "llama" else -(-self.hidden_size * 8 // 3 // 32) * 32


WORKS = {
    "gpt": Work("gpt", 512, 4, 32_000),
    "gpt-fp32": Work("gpt", 512, 4, 32_000, precision="fp32"),
    "llama": Work("llama", 512, 4, 32_000),
    "llama-fp32": Work("llama", 512, 4, 32_000, precision="fp32"),
    "update": Work("gpt", 512, 4, 32_000, update_only=True),
    "update-fp32": Work("gpt", 512, 4, 32_000, precision="fp32", update_only=True),
    "bert-128": Work("bert", 128, 16, 30_522),
    "bert-512": Work("bert", 512, 4, 30_522),
    "bert-128-fp32": Work("bert", 128, 16, 30_522, precision="fp32"),
    "bert-512-fp32": Work("bert", 512, 4, 30_522, precision="fp32"),
}


def batch(work: Work, step: int) -> dict[str, np.ndarray]:
    """The samples of a step, as our streams give them."""
    rng = np.random.default_rng([17, step])
    shape = (work.batch_size, work.seq_length)
    tokens = rng.integers(6, work.vocab_size, (shape[0], shape[1] + 1))
    if work.kind != "bert":
        inputs, labels = tokens[:, :-1].copy(), tokens[:, 1:].copy()
        return {"tokens": inputs, "labels": labels, "loss_mask": np.ones(shape, np.float32)}
    lengths = sample_lengths(rng, work)
    real = np.arange(shape[1]) < lengths[:, None]
    chosen = real & (rng.random(shape) < 0.15)
    chosen[:, 1] = True  # at least one a sample
    positions = np.flatnonzero(chosen)
    return {
        "tokens": np.where(real, tokens[:, :-1], 0),
        "token_types": ((np.arange(shape[1]) >= lengths[:, None] // 2) & real).astype(np.int64),
        "padding_mask": real,
        "masked_positions": positions,
        "masked_labels": tokens[:, 1:].reshape(-1)[positions],
        "next_sentence_labels": rng.integers(0, 2, shape[0]),
    }


def sample_lengths(rng: np.random.Generator, work: Work) -> np.ndarray:
    """[batch_size] real tokens of BERT samples: documents of 400 tokens in the median, cut at seq_length.

    Log-normal with sigma 1, as lengths of web and encyclopedia articles are; one sample in ten is cut shorter
    on purpose, as in BERT's recipe (Devlin et al., 2019, short_seq_prob).
    """
    documents = np.exp(rng.normal(np.log(400.0), 1.0, work.batch_size))
    limits = np.where(
        rng.random(work.batch_size) < 0.1, rng.integers(8, work.seq_length, work.batch_size), work.seq_length
    )
    return np.clip(documents, 8, limits).astype(np.int64)


class Rounds:
    """Steps in rounds that the driver asks for, one line each over stdin and stdout.

    A candidate says "ready" before its first step. The driver writes the number of steps of the next round;
    the answer is a line of JSON. A closed stdin ends the candidate.
    """

    def __init__(self) -> None:
        self._left = 0
        self._started: float | None = None
        self._cpu = 0.0
        self._faults = 0
        self._steps = 0
        self.base_rss = peak_rss()
        self.loss = float("nan")

    def another(self) -> bool:
        """To be called before every step; False when there are no more."""
        if self._left == 0:
            if self._started is None:
                print("ready", flush=True)
            else:
                self._report(time.perf_counter() - self._started)
            line = sys.stdin.readline()
            if not line:
                return False
            self._left = self._steps = int(line)
            self._faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            self._cpu = time.process_time()
            self._started = time.perf_counter()
        self._left -= 1
        return True

    def _report(self, seconds: float) -> None:
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - self._faults
        answer: dict[str, Any] = {
            "seconds": seconds / self._steps,
            "cpu_seconds": (time.process_time() - self._cpu) / self._steps,
            "peak_rss": peak_rss(),
            "base_rss": self.base_rss,
            "faults": faults / self._steps,
            "loss": self.loss,
        }
        print("round " + json.dumps(answer), flush=True)


def peak_rss() -> int:
    """Most memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
