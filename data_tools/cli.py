"""`headwater data`: collect text, train a tokenizer, prepare a corpus, look at it, check it.

Each command imports what it needs when it runs, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data_tools.errors import DataError

_EXAMPLES = """\
examples, in order:
  headwater data python-docs --out runs/data/python-docs
  headwater data tokenizer --input runs/data/python-docs/corpus.jsonl \\
      --vocab-size 8192 --out runs/data/tokenizer.model
  headwater data prepare --input runs/data/python-docs/corpus.jsonl --tokenizer runs/data/tokenizer.model \\
      --sentences --validation-fraction 0.05 --workers 2 --out runs/data/corpus
  headwater data stats runs/data/corpus
  headwater data show runs/data/corpus --document 3
  headwater data verify runs/data/corpus

A command that finds its output complete, made from the same inputs and options, is done at once.
"""

Handler = Callable[[argparse.Namespace], None]
Subparsers = Any  # argparse keeps the class of `add_subparsers` private


def main(argv: Sequence[str]) -> int:
    """Run `headwater data ARGV`.

    Returns:
        0; a bad option ends the process with argparse's code 2.

    Raises:
        DataError: what the user got wrong, or an operating system error that names its file.
    """
    arguments = _parser().parse_args(argv)
    handler: Handler = arguments.handler
    try:
        handler(arguments)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise DataError(f"{error.filename or 'input or output'}: {error.strerror or error}") from error
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headwater data",
        description="Build a corpus: collect text, train a tokenizer, write token shards.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_python_docs(commands)
    _add_tokenizer(commands)
    _add_prepare(commands)
    _add_show(commands)
    _add_stats(commands)
    _add_verify(commands)
    return parser


def _command(commands: Subparsers, name: str, handler: Handler, summary: str, example: str) -> Any:
    parser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example:\n  headwater data {name} {example}\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(handler=handler)
    return parser


def _add_input(parser: Any) -> None:
    parser.add_argument(
        "--input", nargs="+", type=Path, required=True, help="JSON-lines files, or directories of *.jsonl"
    )
    parser.add_argument("--json-key", default="text", help="key of the text in each line (default: text)")
    parser.add_argument(
        "--max-bad-fraction",
        type=float,
        default=0.01,
        help="give up if more of the lines hold no document (default: 0.01)",
    )
    parser.add_argument("--seed", type=int, default=1234, help="(default: 1234)")


def _add_python_docs(commands: Subparsers) -> None:
    summary = "collect the docstrings of this Python: a small real corpus and a classification set"
    parser = _command(commands, "python-docs", _python_docs, summary, "--out runs/data/python-docs")
    parser.add_argument("--out", type=Path, required=True, help="directory to create")


def _add_tokenizer(commands: Subparsers) -> None:
    summary = "train a lossless sentencepiece tokenizer"
    example = "--input docs.jsonl --vocab-size 32000 --out tokenizer.model"
    parser = _command(commands, "tokenizer", _tokenizer, summary, example)
    _add_input(parser)
    parser.add_argument("--out", type=Path, required=True, help="model file to create")
    parser.add_argument("--vocab-size", type=int, required=True, help="ids, special ids included")
    parser.add_argument("--model-type", default="unigram", help="unigram (default; encodes faster) or bpe")
    parser.add_argument(
        "--character-coverage",
        type=float,
        default=0.9995,
        help="share of characters with an id of their own, the rest in bytes (default: 0.9995)",
    )
    parser.add_argument(
        "--max-train-mb", type=float, default=100.0, help="train on a sample of this size (default: 100)"
    )


def _add_prepare(commands: Subparsers) -> None:
    summary = "tokenise documents into shards, shuffled, with a validation split"
    example = "--input docs.jsonl --tokenizer tokenizer.model --sentences --workers 8 --out corpus"
    parser = _command(commands, "prepare", _prepare, summary, example)
    _add_input(parser)
    parser.add_argument("--tokenizer", type=Path, required=True, help="model file of `data tokenizer`")
    parser.add_argument("--out", type=Path, required=True, help="corpus directory to create")
    parser.add_argument("--name", help="name of the corpus (default: that of the directory)")
    parser.add_argument("--sentences", action="store_true", help="record sentences, which BERT needs")
    parser.add_argument(
        "--validation-fraction", type=float, default=0.01, help="share of the documents (default: 0.01)"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes; the result does not depend on it")
    parser.add_argument(
        "--block-bytes", type=int, default=1 << 20, help="bytes of tokens in a block (default: 1 MiB)"
    )
    parser.add_argument(
        "--shard-bytes", type=int, help="bytes of input per shard (default: a 16th, within 16 and 512 MiB)"
    )


def _add_show(commands: Subparsers) -> None:
    summary = "show stored documents as text"
    parser = _command(commands, "show", _show, summary, "runs/data/corpus --document 3 --count 2")
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--split", default="train", help="train (default) or validation")
    parser.add_argument("--document", type=int, default=0, help="number of the first one (default: 0)")
    parser.add_argument("--count", type=int, default=1, help="how many (default: 1)")
    parser.add_argument("--pieces", action="store_true", help="show the tokenizer's pieces")


def _add_stats(commands: Subparsers) -> None:
    summary = "print sizes and length percentiles of a corpus"
    parser = _command(commands, "stats", _stats, summary, "runs/data/corpus")
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--json", action="store_true", help="as JSON")


def _add_verify(commands: Subparsers) -> None:
    summary = "check every byte of a corpus against its hashes and the rules of the format"
    parser = _command(commands, "verify", _verify, summary, "runs/data/corpus")
    parser.add_argument("corpus", type=Path)


def _python_docs(arguments: argparse.Namespace) -> None:
    from data_tools.python_corpus import build_python_corpus

    record, fresh = build_python_corpus(arguments.out)
    classes = record["classification"]["train"]
    examples = {split: sum(found.values()) for split, found in record["classification"].items()}
    size = f"{record['documents']} documents, {record['text_bytes'] / 1e6:.2f} MB"
    print(
        f"{arguments.out}: {_state(fresh)}{size}; "
        f"classification: {examples['train']} train and {examples['validation']} validation docstrings "
        f"of {len(classes)} packages"
    )


def _tokenizer(arguments: argparse.Namespace) -> None:
    from data_tools.train_tokenizer import TokenizerOptions, train_tokenizer

    options = TokenizerOptions(
        vocab_size=arguments.vocab_size,
        model_type=arguments.model_type,
        character_coverage=arguments.character_coverage,
        max_train_bytes=int(arguments.max_train_mb * 1e6),
        json_key=arguments.json_key,
        seed=arguments.seed,
    )
    start = time.monotonic()
    tokenizer, fresh = train_tokenizer(arguments.input, arguments.out, options, arguments.max_bad_fraction)
    print(
        f"{arguments.out}: {_state(fresh)}{tokenizer.vocab_size} ids, {options.model_type}"
        + (f", trained in {time.monotonic() - start:.1f} s" if fresh else "")
    )


def _prepare(arguments: argparse.Namespace) -> None:
    from data_tools.prepare import QUARANTINE_NAME, PrepareOptions, prepare

    options = PrepareOptions(
        name=arguments.name or arguments.out.resolve().name,
        json_key=arguments.json_key,
        sentences=arguments.sentences,
        validation_fraction=arguments.validation_fraction,
        seed=arguments.seed,
        block_bytes=arguments.block_bytes,
        shard_bytes=arguments.shard_bytes,
    )
    start = time.monotonic()
    result = prepare(
        arguments.input,
        arguments.tokenizer,
        arguments.out,
        options,
        arguments.workers,
        arguments.max_bad_fraction,
    )
    seconds = time.monotonic() - start
    lines, splits = result.record["lines"], result.record["splits"]
    parts = [f"{split} {t['documents']:,} documents, {t['tokens']:,} tokens" for split, t in splits.items()]
    if result.fresh:
        read = sum(entry["bytes"] for entry in result.record["inputs"])
        parts.append(f"{read / 1e6:.1f} MB in {seconds:.1f} s ({read / 1e6 / seconds:.1f} MB/s)")
    print(f"{arguments.out}: {_state(result.fresh)}" + "; ".join(parts))
    if lines["bad"] or lines["empty"]:
        print(
            f"left out: {lines['empty']} empty documents, {lines['bad']} bad lines"
            + (f" (see {arguments.out / QUARANTINE_NAME})" if lines["bad"] else ""),
            file=sys.stderr,
        )
    if arguments.validation_fraction and "validation" not in splits:
        print("no document fell into the validation split: raise --validation-fraction", file=sys.stderr)


def _show(arguments: argparse.Namespace) -> None:
    from data_tools.show import show_documents

    documents = show_documents(
        arguments.corpus, arguments.split, arguments.document, arguments.count, arguments.pieces
    )
    for line in documents:
        print(line)


def _stats(arguments: argparse.Namespace) -> None:
    import json

    from data_tools.stats import corpus_stats, format_stats

    stats = corpus_stats(arguments.corpus)
    print(json.dumps(stats, indent=1) if arguments.json else format_stats(stats))


def _verify(arguments: argparse.Namespace) -> None:
    from data_tools.verify import verify_corpus

    start = time.monotonic()
    problems = verify_corpus(arguments.corpus)
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        advice = "restore it or prepare again"
        raise DataError(f"{arguments.corpus} has {len(problems)} problem(s), listed above: {advice}")
    print(f"{arguments.corpus}: every file is as it was written ({time.monotonic() - start:.1f} s)")


def _state(fresh: bool) -> str:
    return "" if fresh else "already complete: "
