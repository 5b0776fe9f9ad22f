"""`headwater embed`: a vector for each text, from the hidden states of any BERT checkpoint."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from finetune.arguments import add_checkpoint
from pretrain.config.arguments import positive_int

if TYPE_CHECKING:  # the command line answers without loading torch
    import numpy as np
    import numpy.typing as npt

COLUMN = "embedding"
ROWS_AT_A_TIME = 1024
Pooling = Literal["mean", "cls"]

EXAMPLES = """examples:
  headwater embed --checkpoint runs/bert-tiny --input texts.jsonl --out vectors.jsonl
  headwater import --hf all-MiniLM-L6-v2 --out runs/minilm
  headwater embed --checkpoint runs/minilm --input texts.csv --text sentence --normalize --out vectors.jsonl

Each line of --out is the row with "embedding" added, a list of hidden_size numbers; an input with such a
column is refused.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `headwater embed`; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="headwater embed",
        description="Embed texts with a BERT checkpoint, in one process.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_checkpoint(parser)
    parser.add_argument("--input", type=Path, required=True, help="jsonl, csv, tsv or parquet")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines to write; must not exist")
    parser.add_argument("--text", default="text", metavar="COLUMN", help="column of the text; default: text")
    parser.add_argument(
        "--pooling",
        choices=("mean", "cls"),
        default="mean",
        help="mean of all tokens (default) or the first one",
    )
    parser.add_argument("--normalize", action="store_true", help="vectors of length 1, for cosine similarity")
    parser.add_argument("--batch-size", type=positive_int, default=32, metavar="N", help="default: 32")
    arguments = parser.parse_args(argv)
    count = _write(arguments)
    print(f"{count} vectors in {arguments.out}")
    return 0


def _write(arguments: argparse.Namespace) -> int:
    """Embed all rows of a file; `out` is complete or absent. Returns their number."""
    from data_tools.publish import require_new_file, write_file
    from finetune.output_rows import output_line, require_free
    from finetune.rows import read_records

    require_new_file(arguments.out)
    records = list(read_records(arguments.input))
    texts = [record.text(arguments.text, "--text") for record in records]
    for record in records:
        require_free(record.where, record.fields, COLUMN)
    lines: list[bytes] = []
    for vectors in embed(arguments.checkpoint, texts, arguments.pooling, arguments.batch_size):
        for vector in vectors / _lengths(vectors) if arguments.normalize else vectors:
            numbers = [round(float(x), 7) for x in vector]
            lines.append(output_line(records[len(lines)].fields, COLUMN, numbers))
    write_file(arguments.out, b"".join(lines))
    return len(lines)


def embed(
    checkpoint: Path, texts: Sequence[str], pooling: Pooling = "mean", batch_size: int = 32
) -> Iterator[npt.NDArray[np.float32]]:
    """Vectors [n, hidden_size] of texts, in parts and in their order; longer texts than the model's are cut.

    Raises:
        CheckpointError: No usable checkpoint.
        ConfigError: Not a BERT.
    """
    import numpy as np
    from tqdm import tqdm

    from finetune.evaluation import run_alone
    from finetune.single_rank import LAYOUT, single_rank
    from finetune.source import read_source
    from finetune.tasks.models import BertForEmbedding
    from finetune.tasks.pairs import encode_pairs
    from finetune.tasks.task import Encoder
    from finetune.text import open_text_codec
    from pretrain.checkpoint import load_parameters
    from pretrain.config import ConfigError
    from pretrain.config.model import BertModelConfig

    source = read_source(checkpoint)
    model_config = source.architecture.model
    if not isinstance(model_config, BertModelConfig):
        raise ConfigError(f"{source.directory} is a {model_config.kind}; embeddings are a bert's")
    codec = open_text_codec(source.directory, model_config.vocab_size)
    encoder = Encoder(codec, model_config.max_position_embeddings)
    with single_rank() as topology, tqdm(total=len(texts), unit="text", disable=None) as progress:
        model = BertForEmbedding(model_config, pooling, **LAYOUT)
        load_parameters(model, source.parameters, topology)
        model.to(topology.device)
        for first in range(0, len(texts), ROWS_AT_A_TIME):
            examples = encode_pairs(encoder, texts[first : first + ROWS_AT_A_TIME], None, {})
            found = run_alone(model, examples, batch_size).logits
            yield np.stack([found[number] for number in range(len(examples))])
            progress.update(len(examples))


def _lengths(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """[n, 1] Euclidean lengths."""
    import numpy as np

    lengths: npt.NDArray[np.float32] = np.linalg.norm(vectors, axis=1, keepdims=True)
    return lengths
