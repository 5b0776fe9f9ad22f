"""`headwater explain`: which tokens an answer about a text rests on, and its attention, as one HTML page.

Attributions are integrated gradients (Sundararajan et al., 2017) of an output with respect to the word
embeddings, from a text of [PAD] tokens to the real one, by captum. Their sum is the difference between the
two outputs; the page says how far it is off.

Legend: S tokens, L layers, N heads, D head size.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.arguments import add_checkpoint
from pretrain.config.arguments import positive_int

if TYPE_CHECKING:  # the command line answers without loading torch
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    from finetune.finetuned import Finetuned
    from finetune.text import TextCodec

KINDS = ("classification", "multi_label", "regression")
STEPS = 64
STEPS_AT_A_TIME = 16

EXAMPLES = """examples:
  headwater explain --checkpoint runs/sentiment --text "a fine film" --out page.html
  headwater explain --checkpoint runs/pairs --text "It rains." --text-pair "It is wet." --out page.html

For models of the kinds classification, multi_label and regression. Needs the extra `explain`.
"""


@dataclass(frozen=True, slots=True)
class Explanation:
    """What an answer rests on.

    Attributes:
        tokens: [S] text of each token.
        output: Name of the output that is explained.
        answer: Of the model, as `headwater predict` gives it.
        attributions: [S] share of each token in the output (a logit, or a regression's value), against a text
            of [PAD].
        error: Of their sum, against the difference between the two outputs.
        attention: [L, N, S, S], each row what a token attends to.
        truncated: Whether the text was longer than the model's sequences.
    """

    tokens: list[str]
    output: str
    answer: dict[str, Any]
    attributions: npt.NDArray[np.float64]
    error: float
    attention: npt.NDArray[np.float32]
    truncated: bool


def main(argv: Sequence[str] | None = None) -> int:
    """Run `headwater explain`; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="headwater explain",
        description="Token attributions and attention maps of an answer, in one process.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_checkpoint(parser)
    parser.add_argument("--text", required=True)
    parser.add_argument("--text-pair", help="the second text of a task on pairs")
    parser.add_argument("--label", help="explain this one; default: the most probable")
    parser.add_argument(
        "--steps", type=positive_int, default=STEPS, metavar="N", help=f"of the integral; default: {STEPS}"
    )
    parser.add_argument("--out", type=Path, required=True, help="HTML to write; must not exist")
    arguments = parser.parse_args(argv)
    from data_tools.publish import require_absent, write_file
    from finetune.explain_page import page

    require_absent(arguments.out)
    found = explain(
        arguments.checkpoint, (arguments.text, arguments.text_pair), arguments.label, arguments.steps
    )
    write_file(arguments.out, page(found).encode())
    if found.truncated:
        print("the text is longer than the model's sequences; what was cut off has no part in the answer")
    print(f"{found.answer}; what {found.output} rests on is in {arguments.out}")
    return 0


def explain(
    checkpoint: Path, texts: tuple[str, str | None], label: str | None = None, steps: int = STEPS
) -> Explanation:
    """Explain the answer to a text or a pair of texts.

    Args:
        checkpoint: Run or checkpoint directory.
        texts: The text, and the second one of a task on pairs.
        label: Explain the logit of this label; None takes the largest.
        steps: Points of the integral.

    Raises:
        CheckpointError: No usable checkpoint.
        ConfigError: Another kind of model, a label that it has not, or one text where two are wanted.
    """
    import captum.attr  # noqa: F401  (missing, it is named before a model is loaded)
    import torch

    from finetune.finetuned import open_finetuned
    from finetune.tasks.text_rows import TextRow

    with open_finetuned(checkpoint) as finetuned:
        _require_fitting(finetuned, texts, label)
        rows: list[TextRow[Any]] = [TextRow("--text", *texts)]
        examples = finetuned.task.encode(rows, finetuned.encoder)
        model: Any = finetuned.model
        device = next(model.parameters()).device
        batch = {name: torch.from_numpy(v).to(device) for name, v in examples.micro_batch([0]).items()}
        with torch.no_grad(), kept_attention(model) as attention:
            logits = model(**batch)["logits"].float()
        (answer,) = finetuned.task.answers(logits.cpu().numpy(), examples, rows, finetuned.labels)
        target = int(logits[0].argmax()) if label is None else finetuned.labels.index(label)
        found, delta = _integrated(model, finetuned.encoder.codec, batch, target, steps)
        return Explanation(
            tokens=[_shown(finetuned.encoder.codec, token) for token in batch["tokens"][0].tolist()],
            output=finetuned.labels[target] if finetuned.labels else "the value",
            answer=answer,
            attributions=found[0].sum(-1).double().cpu().numpy(),
            error=float(delta.abs().max()),
            attention=torch.stack(attention).float().cpu().numpy(),
            truncated=examples.truncated > 0,
        )


@contextmanager
def kept_attention(model: Any) -> Iterator[list[Tensor]]:
    """Collect the attention [N, S, S] of each layer to the first text of a batch, while the block runs.

    It is computed from queries and keys once more: the model's own attention never holds it.
    """
    kept: list[Tensor] = []

    def keep(_module: Any, inputs: Any) -> None:
        query, key, _, mask = inputs[:4]  # [S, B, N, D] twice; [B, 1, 1, S], True = may be attended to
        query, key = (part[:, 0].transpose(0, 1).float() for part in (query, key))  # [N, S, D]
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        kept.append(scores.masked_fill(~mask[0], float("-inf")).softmax(-1))

    hooks = [layer.attention.core_attention.register_forward_pre_hook(keep) for layer in model.encoder.layers]
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()


def _require_fitting(finetuned: Finetuned, texts: tuple[str, str | None], label: str | None) -> None:
    """Refuse what the model cannot answer.

    Raises:
        ConfigError: Naming the option.
    """
    from finetune.rows import listed
    from pretrain.config import ConfigError

    task: Any = finetuned.task
    kind = task.section.kind
    if kind not in KINDS:
        raise ConfigError(f"{finetuned.checkpoint} is a model for {kind}; explained are {', '.join(KINDS)}")
    if label is not None and label not in finetuned.labels:
        raise ConfigError(f"--label {label!r}: the model has {listed(finetuned.labels)}")
    wants_pair = bool(task.columns.text_pair)
    if wants_pair != (texts[1] is not None):
        raise ConfigError(
            f"{finetuned.checkpoint} answers pairs of texts: give --text-pair"
            if wants_pair
            else f"{finetuned.checkpoint} answers single texts: leave --text-pair out"
        )
    for option, text in zip(("--text", "--text-pair"), texts, strict=True):
        if text is not None and not text.strip():
            raise ConfigError(f"{option}: must be text that is not blank")


def _integrated(
    model: Any, codec: TextCodec, batch: dict[str, Tensor], target: int, steps: int
) -> tuple[Tensor, Tensor]:
    """Integrated gradients [1, S, H] of an output, and by how much their sum is off."""
    import torch
    from captum.attr import LayerIntegratedGradients

    from finetune.tasks.pairs import special_ids

    tokens = batch["tokens"]
    cls_id, sep_id, pad_id = special_ids(codec)
    special = (tokens == cls_id) | (tokens == sep_id)
    empty = torch.where(special, tokens, torch.full_like(tokens, pad_id))

    def output(ids: Tensor) -> Tensor:
        others = (batch[name].expand(len(ids), -1) for name in ("token_types", "padding_mask"))
        logits: Tensor = model(ids, *others)["logits"][:, target]
        return logits

    gradients = LayerIntegratedGradients(output, model.encoder.embeddings.word_embeddings)
    found: tuple[Tensor, Tensor] = gradients.attribute(
        tokens, empty, n_steps=steps, internal_batch_size=STEPS_AT_A_TIME, return_convergence_delta=True
    )
    return found


def _shown(codec: TextCodec, token: int) -> str:
    names = {codec.cls_id: "[CLS]", codec.sep_id: "[SEP]", codec.pad_id: "[PAD]"}
    return names.get(token) or codec.decode([token]) or "·"
