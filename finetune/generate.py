"""`headwater generate`: write text with a GPT checkpoint, in one process, from a checkpoint of any layout."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command line answers without loading torch
    from finetune.sampling import SamplingOptions

EXAMPLES = """examples:
  headwater generate --checkpoint runs/gpt-tiny --prompt "Return the"
  headwater generate --checkpoint runs/gpt-tiny --prompt "Return the" --temperature 0.8 --top-p 0.95 --seed 7
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `headwater generate`; prints the prompt with its continuation and returns the exit code."""
    arguments = _parser().parse_args(argv)
    from finetune.sampling import SamplingOptions

    options = SamplingOptions(temperature=arguments.temperature, top_k=arguments.top_k, top_p=arguments.top_p)
    print(generate(arguments.checkpoint, arguments.prompt, arguments.max_new_tokens, options, arguments.seed))
    return 0


def generate(
    checkpoint: Path, prompt: str, max_new_tokens: int, options: SamplingOptions, seed: int = 0
) -> str:
    """The prompt and its continuation.

    Args:
        checkpoint: Run or checkpoint directory of a GPT.
        prompt: An empty one starts a new document.
        max_new_tokens: Fewer where the model ends the document.
        options: How tokens are chosen.
        seed: Of the choice; greedy needs none.

    Raises:
        CheckpointError: No usable checkpoint.
        ConfigError: Not a GPT, or prompt and continuation do not fit into its context.
    """
    import torch

    from finetune.kinds import build
    from finetune.sampling import continue_text
    from finetune.single_rank import single_rank
    from finetune.source import read_source
    from finetune.text import encode_prompt, open_text_codec
    from pretrain.checkpoint import load_parameters
    from pretrain.config import ConfigError

    source = read_source(checkpoint)
    model_config = source.architecture.model
    if model_config.kind != "gpt":
        raise ConfigError(f"{source.directory} is a {model_config.kind}; only a gpt can generate text")
    codec = open_text_codec(source.directory)
    tokens = encode_prompt(codec, prompt)
    context = model_config.max_position_embeddings
    if len(tokens) + max_new_tokens > context:
        raise ConfigError(
            f"the prompt has {len(tokens)} tokens; with --max-new-tokens {max_new_tokens} that is longer "
            f"than the model's context of {context}; shorten the prompt or generate less"
        )
    with single_rank() as topology, torch.no_grad():
        model = build(source.architecture)
        load_parameters(model, source.parameters, topology)
        model.eval()

        def next_token(sequence: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = model(sequence[None])["logits"][0, -1]
            return logits[: model_config.vocab_size]  # the padded rows behind were never trained

        generator = torch.Generator().manual_seed(seed)
        new = list(continue_text(next_token, tokens, max_new_tokens, options, generator, codec.eod_id))
    return prompt + codec.decode(new)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headwater generate",
        description="Write text with a GPT checkpoint.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="run or checkpoint directory")
    parser.add_argument("--prompt", required=True, help="text to continue")
    parser.add_argument("--max-new-tokens", type=_positive, default=50, metavar="N", help="default: 50")
    parser.add_argument(
        "--temperature", type=_not_negative, default=0.0, metavar="T", help="0 (default) is greedy"
    )
    parser.add_argument(
        "--top-k", type=_not_negative_int, default=0, metavar="K", help="0 (default): all tokens"
    )
    parser.add_argument("--top-p", type=_probability, default=1.0, metavar="P", help="default: 1, all tokens")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def _not_negative_int(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is negative")
    return value


def _not_negative(text: str) -> float:
    value = float(text)
    if not 0.0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{value} is not a number from 0 on")
    return value


def _probability(text: str) -> float:
    value = float(text)
    if not 0.0 < value <= 1.0:
        raise argparse.ArgumentTypeError(f"{value} is not in (0, 1]")
    return value
