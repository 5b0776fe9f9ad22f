"""`headwater explain`: which tokens an answer rests on, and its attention, as one HTML page.

Attributions are integrated gradients (Sundararajan et al., 2017) of an output with respect to the word
embeddings, from a text that says nothing ([PAD] tokens; for a GPT ends of text) to the real one, by captum.
Their sum is the difference between the two outputs; the page says how far it is off.

Legend: S tokens, L layers, N heads.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.arguments import add_checkpoint
from pretrain.config.arguments import positive_int

if TYPE_CHECKING:  # the command line answers without loading torch
    import numpy as np
    import numpy.typing as npt

    from finetune.explain_subjects import Asked

STEPS = 64

EXAMPLES = """examples:
  headwater explain --checkpoint runs/sentiment --text "a fine film" --out page.html
  headwater explain --checkpoint runs/pairs --text "It rains." --text-pair "It is wet." --out page.html
  headwater explain --checkpoint runs/ner --text "Peter lives in Rome" --word 4 --out page.html
  headwater explain --checkpoint runs/qa --text "The cat sat there." --question "Who sat?" --out page.html
  headwater explain --checkpoint runs/gpt-tiny --text "Return the" --out page.html

For models of the kinds classification, multi_label, regression, tagging and question_answering, and the next
token of any GPT. Needs the extra `explain`.
"""


@dataclass(frozen=True, slots=True)
class Attribution:
    """What an output rests on.

    Attributes:
        output: Its name.
        values: [S] share of each token in it (a logit, or a regression's value), against an empty text.
        error: Of their sum, against the difference between the two outputs.
    """

    output: str
    values: npt.NDArray[np.float64]
    error: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """What an answer rests on.

    Attributes:
        tokens: [S] text of each token.
        answer: Of the model, as `headwater predict` gives it; of a GPT the next token.
        attributions: Of each output that the answer comes from: one, or both ends of a found passage.
        attention: [L, N, S, S], each row what a token attends to.
        empty: What the text that says nothing is made of.
        note: What there is to tell about the text; "" for nothing.
    """

    tokens: list[str]
    answer: dict[str, Any]
    attributions: list[Attribution]
    attention: npt.NDArray[np.float32]
    empty: str
    note: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `headwater explain`; returns the exit code."""
    arguments = _parser().parse_args(argv)
    import captum.attr  # noqa: F401  (missing, it is named before a model is loaded)

    from data_tools.publish import require_new_file, write_file
    from finetune.explain_page import page
    from finetune.explain_subjects import Asked

    require_new_file(arguments.out)
    asked = Asked(arguments.text, arguments.text_pair, arguments.question, arguments.label, arguments.word)
    found = explain(arguments.checkpoint, asked, arguments.steps)
    write_file(arguments.out, page(found).encode())
    if found.note:
        print(found.note)
    answer = {name: value for name, value in found.answer.items() if name != "n_best"}
    outputs = " and ".join(one.output for one in found.attributions)
    print(f"{answer}; what {outputs} rests on is in {arguments.out}")
    return 0


def explain(checkpoint: Path, asked: Asked, steps: int = STEPS) -> Explanation:
    """Explain the answer to a text.

    Args:
        checkpoint: Run or checkpoint directory.
        asked: The text, and what about it.
        steps: Points of the integral.

    Raises:
        CheckpointError: No usable checkpoint.
        ConfigError: Another kind of model, or one that has not what is asked for.
    """
    import torch

    from finetune.attributions import empty_text, integrated, is_gpt, kept_attention
    from finetune.explain_subjects import open_subject, shown

    with open_subject(checkpoint, asked) as subject:
        with torch.no_grad(), kept_attention(subject.model) as attention:
            subject.model(**subject.batch)
        tokens = subject.batch["tokens"]
        empty = empty_text(subject.model, subject.codec, tokens)
        attributions = []
        for output in subject.outputs:
            values, error = integrated(subject.model, subject.batch, empty, output.index, steps)
            attributions.append(Attribution(output.name, values.double().cpu().numpy(), error))
        return Explanation(
            tokens=[shown(subject.codec, token) for token in tokens[0].tolist()],
            answer=subject.answer,
            attributions=attributions,
            attention=torch.stack(attention).float().cpu().numpy(),
            empty="end-of-text tokens" if is_gpt(subject.model) else "[PAD] tokens",
            note=subject.note,
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headwater explain",
        description="Token attributions and attention maps of an answer, in one process.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_checkpoint(parser)
    parser.add_argument("--text", required=True, help="to answer about; for a GPT the prompt")
    parser.add_argument("--text-pair", help="the second text of a task on pairs")
    parser.add_argument("--question", help="about the text, for question_answering")
    parser.add_argument(
        "--label", help="explain this label, tag or next token; default: the most probable one"
    )
    parser.add_argument(
        "--word",
        type=positive_int,
        metavar="N",
        help="explain the tag of this word, from 1; default: the surest that is not O",
    )
    parser.add_argument(
        "--steps", type=positive_int, default=STEPS, metavar="N", help=f"of the integral; default: {STEPS}"
    )
    parser.add_argument("--out", type=Path, required=True, help="HTML to write; must not exist")
    return parser
