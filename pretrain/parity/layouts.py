"""Layouts to compare, and a configuration laid out in one of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import combinations, product
from typing import Any

from pretrain.config import RunConfig
from pretrain.config.layouts import EXTRAS, refusals
from pretrain.config.load import parse_section

SAMPLES = 8
"""Samples in a global batch, whatever the layout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One way to lay a model over ranks."""

    tp: int = 1
    dp: int = 1
    zero: int = 1
    sequence_parallel: bool = False
    recompute: str = "none"
    accumulation: int = 1
    precision: str = "fp32"
    extra: str = ""
    """A key of `config.layouts.EXTRAS`: offload and ZeRO++."""

    @classmethod
    def parse(cls, text: str) -> Layout:
        """Read what `str` writes; words may be left out.

        Raises:
            ValueError: A word means nothing.
        """
        numbers = {"tp": "tp", "dp": "dp", "zero": "zero", "acc": "accumulation"}
        settings: dict[str, Any] = {}
        for word in text.split():
            name = word.rstrip("0123456789")
            if name in numbers and word != name:
                settings[numbers[name]] = int(word[len(name) :])
            elif word in ("fp32", "bf16", "fp16"):
                settings["precision"] = word
            elif word == "sp":
                settings["sequence_parallel"] = True
            elif word in ("recompute-selective", "recompute-full"):
                settings["recompute"] = word.removeprefix("recompute-")
            elif word in EXTRAS:
                settings["extra"] = word
            else:
                raise ValueError(f"{word!r} in {text!r} is not a setting of a layout")
        layout = cls(**settings)
        if not (layout.tp in (1, 2, 4, 8) and SAMPLES % max(1, layout.dp * layout.accumulation) == 0):
            raise ValueError(f"{text!r}: tp is 1, 2, 4 or 8, and dp x acc divides {SAMPLES}")
        return layout

    @property
    def world_size(self) -> int:
        """Ranks that it takes."""
        return self.tp * self.dp

    def __str__(self) -> str:
        words = [
            f"tp{self.tp}",
            f"dp{self.dp}",
            f"zero{self.zero}",
            f"acc{self.accumulation}",
            self.precision,
        ]
        words += ["sp"] * self.sequence_parallel + [f"recompute-{self.recompute}"] * (
            self.recompute != "none"
        )
        return " ".join([*words, self.extra] if self.extra else words)

    def refusals(self) -> list[str]:
        """Why it is not allowed; empty when it is."""
        return refusals(self.parallel(), self.precision, self.deepspeed())

    def parallel(self) -> dict[str, Any]:
        """The `parallel` section."""
        return {
            "tensor_model_parallel_size": self.tp,
            "zero_stage": self.zero,
            "sequence_parallel": self.sequence_parallel,
        }

    def deepspeed(self) -> dict[str, Any]:
        """The `deepspeed` section."""
        extra = {"zero_optimization": EXTRAS[self.extra]} if self.extra else {}
        # So many steps never find a scale that starts at 2^16.
        return extra | ({"fp16": {"initial_scale_power": 10}} if self.precision == "fp16" else {})


def laid_out(config: RunConfig, layout: Layout) -> RunConfig:
    """The configuration at a layout: the same global batch, cut into other micro-batches."""
    data = config.model_dump()
    data["parallel"], data["precision"], data["deepspeed"] = (
        layout.parallel(),
        layout.precision,
        layout.deepspeed(),
    )
    data["training"]["recompute"] = layout.recompute
    data["batch"]["micro_batch_size"] = SAMPLES // (layout.dp * layout.accumulation)
    return parse_section(RunConfig, data, str(layout))


def product_of_layouts(precisions: tuple[str, ...] = ("fp32", "bf16")) -> Iterator[Layout]:
    """TP x DP x ZeRO x SP x recompute x accumulation x precision, without what is refused."""
    for tp, dp, zero, split, recompute, accumulation, precision in product(
        (1, 2, 4), (1, 2), (0, 1, 2, 3), (False, True), ("none", "selective", "full"), (1, 4), precisions
    ):
        layout = Layout(
            tp=tp,
            dp=dp,
            zero=zero,
            sequence_parallel=split,
            recompute=recompute,
            accumulation=accumulation,
            precision=precision,
        )
        if not layout.refusals():
            yield layout


def pairwise(layouts: Sequence[Layout]) -> list[Layout]:
    """Some of the layouts that have, between them, every pair of settings that any of them has; greedy."""
    missing = {pair for layout in layouts for pair in _pairs(layout)}
    chosen = []
    while missing:
        best = max(layouts, key=lambda layout: len(missing & _pairs(layout)))
        chosen.append(best)
        missing -= _pairs(best)
    return chosen


def _pairs(layout: Layout) -> set[frozenset[tuple[str, Any]]]:
    settings = [(field.name, getattr(layout, field.name)) for field in fields(layout)]
    return {frozenset(pair) for pair in combinations(settings, 2)}
