"""`headwater audit`: what a GPT has memorised of its training text.

- Verbatim extraction (Carlini et al., 2023): a text counts as extracted if the model, given its first tokens,
  greedily writes exactly the next ones. One pass over the text tells: each token must be the most probable.
- Exposure of canaries (Carlini et al., 2019): how far up a planted secret stands among others that its format
  allows, by the model's loss: log2(candidates) - log2(rank). What was never planted has 1.4 on average.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.arguments import add_checkpoint
from pretrain.config.arguments import positive_int

if TYPE_CHECKING:  # the command line answers without loading torch
    from finetune.writing import Writer

PLACE = "{}"
DIGITS = "0123456789"

EXAMPLES = """examples:
  headwater audit --checkpoint runs/gpt --texts train.jsonl --out audit.json
  headwater audit --checkpoint runs/gpt --canaries canaries.jsonl --out audit.json

--texts is a table with a column `text`. --canaries is one with `format`, such as "my pin is {}", and
`secret`, digits that were planted there, such as "4711"; candidates are other numbers of as many digits.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `headwater audit`; prints what was found and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="headwater audit",
        description="Measure what a GPT checkpoint has memorised, in one process.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add_checkpoint(parser)
    add("--texts", type=Path, metavar="FILE", help="training texts: jsonl, csv, tsv or parquet")
    add("--canaries", type=Path, metavar="FILE", help="planted secrets, in such a table, too")
    add("--out", type=Path, required=True, metavar="FILE", help="JSON to write; must not exist")
    add("--prefix", type=positive_int, default=32, metavar="N", help="tokens given; default: 32")
    add("--suffix", type=positive_int, default=32, metavar="N", help="tokens wanted; default: 32")
    add("--candidates", type=positive_int, default=1000, metavar="N", help="other secrets; default: 1000")
    add("--batch-size", type=positive_int, default=16, metavar="N", help="default: 16")
    arguments = parser.parse_args(argv)
    if arguments.texts is None and arguments.canaries is None:
        parser.error("give --texts, --canaries or both")
    for name, part in audit(arguments).items():
        print(f"{name}: " + ", ".join(f"{k} {v}" for k, v in part.items() if not isinstance(v, list)))
    print(f"written: {arguments.out}")
    return 0


def audit(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Both measurements, as far as they are asked for; `out` is complete or absent.

    Raises:
        CheckpointError, ConfigError, DataError: Naming what to change.
    """
    from data_tools.publish import require_new_file, write_json
    from finetune.generate import open_writer

    require_new_file(arguments.out)
    found: dict[str, dict[str, Any]] = {}
    with open_writer(arguments.checkpoint) as writer:
        if arguments.texts is not None:
            lengths = arguments.prefix, arguments.suffix
            found["extraction"] = extraction(writer, arguments.texts, lengths, arguments.batch_size)
        if arguments.canaries is not None:
            found["exposure"] = exposure(
                writer, arguments.canaries, arguments.candidates, arguments.batch_size
            )
    write_json(arguments.out, found)
    return found


def extraction(writer: Writer, path: Path, lengths: tuple[int, int], batch_size: int) -> dict[str, Any]:
    """Share of the texts of a table whose tokens behind the first ones the model writes verbatim.

    Args:
        writer: The model.
        path: The table; texts shorter than both lengths together are left out, and counted.
        lengths: Tokens of the prefix that is given, and of the suffix that is wanted.
        batch_size: Texts.

    Raises:
        ConfigError: Longer than the model's context.
        DataError: No text is long enough.
    """
    from data_tools.errors import DataError
    from finetune.rows import read_records

    records = list(read_records(path))
    tokens = [writer.tokens_of(record.text("text", "--texts")) for record in records]
    wanted = sum(lengths)
    long = [n for n, ids in enumerate(tokens) if len(ids) >= wanted]
    if not long:
        raise DataError(f"{path}: no text has {wanted} tokens; lower --prefix or --suffix")
    scored = _scored(writer, [tokens[n][:wanted] for n in long], batch_size)
    extracted = [
        records[n].where
        for n, (foreseen, _) in zip(long, scored, strict=True)
        if all(foreseen[lengths[0] - 1 :])
    ]
    return {
        "rate": round(len(extracted) / len(long), 6),
        "texts": len(long),
        "too_short": len(tokens) - len(long),
        "extracted": extracted,
    }


def exposure(writer: Writer, path: Path, candidates: int, batch_size: int) -> dict[str, Any]:
    """Exposure of each canary of a table, and its rank among random candidates of its format.

    Raises:
        ConfigError: Longer than the model's context.
        DataError: A row that is no canary, with file and line.
    """
    from data_tools.errors import DataError
    from finetune.rows import read_records

    found, values = [], []
    for record in read_records(path):
        form, secret = record.text("format", "--canaries"), record.text("secret", "--canaries")
        if form.count(PLACE) != 1 or not set(secret) <= set(DIGITS):
            raise DataError(f"{record.where}: 'format' must have {PLACE} once and 'secret' consist of digits")
        secrets = [secret, *other_secrets(secret, candidates)]
        tokens = [writer.tokens_of(form.replace(PLACE, each)) for each in secrets]
        losses = [loss for _, loss in _scored(writer, tokens, batch_size)]
        rank = 1 + sum(loss < losses[0] for loss in losses[1:])
        values.append(math.log2(len(losses)) - math.log2(rank))
        found.append(
            {"where": record.where, "exposure": round(values[-1], 3), "rank": rank, "of": len(losses)}
        )
    return {"mean": round(sum(values) / len(values), 3), "max": round(max(values), 3), "canaries": found}


def other_secrets(secret: str, count: int) -> list[str]:
    """Other numbers of as many digits, all if there are no more; the same ones for the same secret."""
    possible = 10 ** len(secret)
    if possible - 1 <= count:
        numbers: Sequence[int] = range(possible)
    else:
        numbers = random.Random(secret).sample(range(possible), count + 1)
    return [text for n in numbers if (text := f"{n:0{len(secret)}d}") != secret][:count]


def _scored(
    writer: Writer, texts: Sequence[list[int]], batch_size: int
) -> Iterator[tuple[list[bool], float]]:
    """For each text whether the model foresees each token after the first, and the summed loss on them.

    Raises:
        ConfigError: A text that is longer than the model's context.
    """
    import torch
    import torch.nn.functional as F
    from tqdm import tqdm

    from pretrain.config import ConfigError

    longest = max(map(len, texts))
    if longest > writer.context:
        raise ConfigError(f"{longest} tokens are more than the model's context of {writer.context}")
    for first in tqdm(range(0, len(texts), batch_size), unit="batch", disable=None):
        part = texts[first : first + batch_size]
        width = max(map(len, part))
        rows = torch.tensor(
            [ids + [0] * (width - len(ids)) for ids in part]
        )  # a text sees only what is before
        logits = writer.logits(rows)[:, :-1]
        losses = F.cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="none")
        foreseen = logits.argmax(-1) == rows[:, 1:]
        for ids, right, loss in zip(part, foreseen, losses, strict=True):
            yield right[: len(ids) - 1].tolist(), float(loss[: len(ids) - 1].double().sum())
