"""One candidate's process, started by the driver: `python -m benchmarks.training.candidate WORK NAME`."""

from __future__ import annotations

import sys
from collections.abc import Callable

from benchmarks.training.work import WORKS, Rounds, Work


def main(work_name: str, name: str) -> None:
    """Build the candidate and run its rounds."""
    run = CANDIDATES[name]
    work = WORKS[work_name]
    import_of(name)
    if name.endswith(KEPT_MEMORY):
        from pretrain.parallel.device import keep_freed_memory

        keep_freed_memory()
    run(work, Rounds())


def import_of(name: str) -> None:
    """Import first, so that memory before the model is that of the libraries."""
    if name.startswith("headwater") or name.startswith("megatron"):
        import benchmarks.training.ours  # noqa: F401
    else:
        import transformers  # noqa: F401

        import benchmarks.training.peers  # noqa: F401


def transformers_peer(arithmetic: str, compiled: bool = False) -> Callable[[Work, Rounds], None]:
    """The model of transformers."""

    def run(work: Work, rounds: Rounds) -> None:
        from benchmarks.training.peers import transformers_model

        transformers_model(work, rounds, arithmetic, compiled)

    return run


def plain_peer(arithmetic: str, compiled: bool = False) -> Callable[[Work, Rounds], None]:
    """The plain torch GPT."""

    def run(work: Work, rounds: Rounds) -> None:
        from benchmarks.training.peers import plain_gpt

        plain_gpt(work, rounds, arithmetic, compiled)

    return run


def bare(work: Work, rounds: Rounds) -> None:
    """Our model, without the engine and the loop."""
    from benchmarks.training.ours import bare_model

    bare_model(work, rounds)


def stock(work: Work, rounds: Rounds) -> None:
    """megatron-core's model and loss."""
    from benchmarks.training.ours import megatron_core

    megatron_core(work, rounds)


def ours(tp: int = 1, zero_stage: int = 1) -> Callable[[Work, Rounds], None]:
    """Everything."""

    def run(work: Work, rounds: Rounds) -> None:
        from benchmarks.training.ours import whole_loop

        whole_loop(work, rounds, tp, zero_stage)

    return run


KEPT_MEMORY = ", kept memory"
"""At the end of a name: it allocates as our ranks do."""

CANDIDATES: dict[str, Callable[[Work, Rounds], None]] = {
    "transformers amp": transformers_peer("amp"),
    "transformers bf16": transformers_peer("bf16"),
    "transformers bf16 compiled": transformers_peer("bf16", compiled=True),
    "torch amp": plain_peer("amp"),
    "torch bf16": plain_peer("bf16"),
    "torch bf16 compiled": plain_peer("bf16", compiled=True),
    "torch bf16 compiled" + KEPT_MEMORY: plain_peer("bf16", compiled=True),
    "transformers fp32": transformers_peer("fp32"),
    "transformers fp32 compiled": transformers_peer("fp32", compiled=True),
    "torch fp32": plain_peer("fp32"),
    "torch fp32 compiled": plain_peer("fp32", compiled=True),
    "torch fp32 compiled" + KEPT_MEMORY: plain_peer("fp32", compiled=True),
    "megatron-core": stock,
    "headwater model, plain loop": bare,
    "headwater": ours(),
    "headwater DP2": ours(),
    "headwater TP2": ours(tp=2),
    "headwater ZeRO-3 DP2": ours(zero_stage=3),
}
"""By the name in the table. A name with TP2 or DP2 at its end runs on two ranks."""
TWO_RANKS = ("TP2", "DP2")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
