"""Readers: documents out of files of many formats, in chunks that are read apart."""

from data_tools.reading.find import find_inputs, gives_tokens
from data_tools.reading.inputs import CHUNK_BYTES, Chunk, InputFile, ReadOptions, public_name
from data_tools.reading.intake import Intake, check_fraction
from data_tools.reading.plan import check_unchanged, chunk_digest, plan_chunks
from data_tools.reading.read import read_chunk

__all__ = [
    "CHUNK_BYTES",
    "Chunk",
    "InputFile",
    "Intake",
    "ReadOptions",
    "check_fraction",
    "check_unchanged",
    "chunk_digest",
    "find_inputs",
    "gives_tokens",
    "plan_chunks",
    "public_name",
    "read_chunk",
]
