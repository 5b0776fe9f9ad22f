"""Writing a rank's state as safetensors, hashed on the way.

The library's own writer copies every tensor to a bytes object, holds the interpreter lock meanwhile and
leaves the file to be read again for its hash: six times slower than this, measured, while training waits.
Files are read with the library.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
import xxhash
from torch import Tensor

from pretrain.faults import fault

CHUNK_BYTES = 16 * 1024 * 1024
_ALIGNMENT = 8


def write_state_file(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> dict[str, int | str]:
    """Write 1-D fp32 tensors and flush them to the disk.

    Args:
        path: of the file.
        tensors: on the host, contiguous.
        metadata: texts in the file's header.

    Returns:
        Size in bytes and xxh3_128, as a manifest has them.

    Raises:
        OSError: It could not be written; what was written is removed.
    """
    digest, size = xxhash.xxh3_128(), 0
    try:
        with path.open("wb", buffering=0) as file:
            for piece in _pieces(tensors, metadata):
                written = 0
                while written < len(piece):
                    written += file.write(piece[written:])
                digest.update(piece)
                size += len(piece)
                fault("save.state")
            os.fsync(file.fileno())
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return {"bytes": size, "xxh3": digest.hexdigest()}


def _pieces(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Iterator[memoryview]:
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or tensor.dim() != 1:
            raise ValueError(f"{name}: {tensor.dtype} of {tensor.dim()} dimensions, not fp32 of one")
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": "F32", "shape": [tensor.numel()], "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    yield memoryview(len(text).to_bytes(8, "little") + text)
    for tensor in tensors.values():
        content = tensor.numpy().data.cast("B") if tensor.numel() else memoryview(b"")
        for at in range(0, len(content), CHUNK_BYTES):
            yield content[at : at + CHUNK_BYTES]
