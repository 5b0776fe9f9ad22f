"""Write a tokenizer as Hugging Face's libraries load it, and prove on texts that the ids are the same."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from data_tools.errors import DataError
from data_tools.hf_tokenizer import PROBES, Compared, ModelKind, prove_same_ids, write_hf_files
from data_tools.publish import publish_directory, require_absent
from data_tools.reading import find_inputs
from data_tools.text_sample import SampleOptions, draw_sample, sample_chunks
from data_tools.tokenizer import load_tokenizer


def export_tokenizer(  # noqa: PLR0913 (what to write, and what to prove it on)
    model: Path,
    out: Path,
    *,
    kind: ModelKind,
    max_length: int | None,
    inputs: Sequence[str],
    sampling: SampleOptions,
) -> Compared:
    """Write `out`, which appears only if every text has the same ids on both sides.

    Args:
        model: Our sentencepiece model, or a tokenizer.json.
        out: Directory to create.
        kind: Of the model that will use it.
        max_length: Its longest input, in tokens; None leaves it open.
        inputs: Documents to compare on, besides the built-in texts.
        sampling: How much of them, and how they are read.

    Returns:
        How much was compared.

    Raises:
        DataError: a text has other ids (shows where), the model has no counterpart, or `out` is in the way.
    """
    require_absent(out)
    original = load_tokenizer(model)
    texts: list[str] = []
    if inputs:
        chunks = sample_chunks(find_inputs(inputs, sampling.read), sampling)
        if not chunks:
            raise DataError(f"{inputs[0]} holds no text")
        texts = draw_sample(chunks, sampling).texts
    with publish_directory(out) as directory:
        write_hf_files(original, kind, max_length, directory)
        return prove_same_ids(original, directory, chain(PROBES, texts))
