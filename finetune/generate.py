"""`headwater generate`: write text with a GPT checkpoint, in one process, from a checkpoint of any layout."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.arguments import add_checkpoint
from pretrain.config.arguments import positive_int

if TYPE_CHECKING:  # the command line answers without loading torch
    from finetune.sampling import SamplingOptions
    from finetune.text import TextCodec
    from finetune.writing import Writer, WritingOptions

COLUMN = "text"
"""Of the continuations of a table's prompts."""

SEEDS = range(-(2**63), 2**63)
"""What torch takes is twice as much upwards: the n-th text of a file has the seed + n."""

EXAMPLES = """examples:
  headwater generate --checkpoint runs/gpt-tiny --prompt "Return the"
  headwater generate --checkpoint runs/gpt-tiny --prompt "Return the" --temperature 0.8 --top-p 0.95 --seed 7
  headwater generate --checkpoint runs/gpt-tiny --prompts prompts.jsonl --out texts.jsonl --stop "."

One --prompt is written to the terminal as it grows. --prompts is a table with a column `prompt`; each line of
--out is its row with "text" added; a table with such a column is refused.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `headwater generate`; prints the prompt with its continuation and returns the exit code."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if (arguments.prompts is None) != (arguments.out is None):
        parser.error("--prompts and --out belong together")
    from finetune.sampling import SamplingOptions
    from finetune.writing import WritingOptions

    options = WritingOptions(
        sampling=SamplingOptions(
            temperature=arguments.temperature,
            top_k=arguments.top_k,
            top_p=arguments.top_p,
            repetition_penalty=arguments.repetition_penalty,
        ),
        max_new_tokens=arguments.max_new_tokens,
        stop=tuple(arguments.stop),
        seed=arguments.seed,
    )
    if arguments.prompts is not None:
        count = generate_all(
            arguments.checkpoint, arguments.prompts, arguments.out, options, arguments.batch_size
        )
        print(f"{count} texts in {arguments.out}")
        return 0
    with open_writer(arguments.checkpoint) as writer:
        writer.require_room(writer.tokens_of(arguments.prompt), options)  # an error comes before any text
        print(arguments.prompt, end="", flush=True)
        writer.continue_texts(
            [arguments.prompt], options, lambda _number, piece: print(piece, end="", flush=True)
        )
    print()
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
    from finetune.writing import WritingOptions

    writing = WritingOptions(sampling=options, max_new_tokens=max_new_tokens, seed=seed)
    with open_writer(checkpoint) as writer:
        return prompt + writer.continue_texts([prompt], writing)[0]


def generate_all(checkpoint: Path, prompts: Path, out: Path, options: WritingOptions, batch_size: int) -> int:
    """Continue the prompts of a table, in batches; returns their number.

    Raises:
        CheckpointError, ConfigError, DataError: Naming what to change; `out` is complete or absent.
    """
    from tqdm import tqdm

    from data_tools.publish import require_new_file, write_file
    from finetune.output_rows import output_line, require_free
    from finetune.rows import read_records

    require_new_file(out)
    records = list(read_records(prompts))
    texts = [record.text("prompt", "--prompts") for record in records]
    for record in records:
        require_free(record.where, record.fields, COLUMN)
    lines: list[bytes] = []
    with open_writer(checkpoint) as writer, tqdm(total=len(texts), unit="text", disable=None) as progress:
        tokens = [writer.tokens_of(text) for text in texts]
        for record, prompt in zip(records, tokens, strict=True):  # before hours are spent on those before it
            writer.require_room(prompt, options, f"{record.where}: ")
        for first in range(0, len(texts), batch_size):
            own = replace(options, seed=options.seed + first)  # whatever the size of a batch
            for text in writer.continue_tokens(tokens[first : first + batch_size], own):
                lines.append(output_line(records[len(lines)].fields, COLUMN, text))
                progress.update()
    write_file(out, b"".join(lines))
    return len(lines)


@contextmanager
def open_writer(checkpoint: Path) -> Iterator[Writer]:
    """A GPT ready to write, for as long as the block runs.

    Raises:
        CheckpointError: No usable checkpoint.
        ConfigError: Not a GPT.
    """
    from finetune.writing import Writer

    with open_gpt(checkpoint) as (model, codec):
        yield Writer(model, codec)


@contextmanager
def open_gpt(checkpoint: Path) -> Iterator[tuple[Any, TextCodec]]:
    """A GPT, whole, in fp32 and without dropout, with its tokenizer, for as long as the block runs.

    Raises:
        CheckpointError: No usable checkpoint.
        ConfigError: Not a GPT.
    """
    from finetune.kinds import build
    from finetune.single_rank import single_rank
    from finetune.source import read_source
    from finetune.text import open_text_codec
    from pretrain.checkpoint import load_parameters
    from pretrain.config import ConfigError

    source = read_source(checkpoint)
    if source.architecture.model.kind != "gpt":
        raise ConfigError(
            f"{source.directory} is a {source.architecture.model.kind}; only a gpt can generate text"
        )
    with single_rank() as topology:
        model = build(source.architecture)
        load_parameters(model, source.parameters, topology)
        model.to(topology.device).eval()
        yield model, open_text_codec(source.directory, source.architecture.model.vocab_size)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headwater generate",
        description="Write text with a GPT checkpoint.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_checkpoint(parser)
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", help="text to continue")
    prompt.add_argument("--prompts", type=Path, metavar="FILE", help="many, in jsonl, csv, tsv or parquet")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON lines for --prompts; must not exist")
    parser.add_argument(
        "--batch-size", type=positive_int, default=8, metavar="N", help="of --prompts; default: 8"
    )
    parser.add_argument("--max-new-tokens", type=positive_int, default=50, metavar="N", help="default: 50")
    parser.add_argument(
        "--stop",
        type=_not_empty,
        action="append",
        default=[],
        metavar="TEXT",
        help="end before this text; repeatable",
    )
    parser.add_argument(
        "--temperature", type=_not_negative, default=0.0, metavar="T", help="0 (default) is greedy"
    )
    parser.add_argument(
        "--top-k", type=_not_negative_int, default=0, metavar="K", help="0 (default): all tokens"
    )
    parser.add_argument("--top-p", type=_probability, default=1.0, metavar="P", help="default: 1, all tokens")
    parser.add_argument(
        "--repetition-penalty", type=_at_least_one, default=1.0, metavar="R", help="default: 1, none"
    )
    parser.add_argument("--seed", type=_seed, default=0, help="default: 0")
    return parser


def _not_empty(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("an empty text would end every text at once; leave it out")
    return text


def _seed(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
    if value not in SEEDS:
        raise argparse.ArgumentTypeError(f"{value} is not in {SEEDS[0]} to {SEEDS[-1]}")
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


def _at_least_one(text: str) -> float:
    value = float(text)
    if not 1.0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{value} is not a number from 1 on")
    return value


def _probability(text: str) -> float:
    value = float(text)
    if not 0.0 < value <= 1.0:
        raise argparse.ArgumentTypeError(f"{value} is not in (0, 1]")
    return value
