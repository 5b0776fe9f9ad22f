"""mosaicml-streaming as a competitor of `data_loading`, which runs this file with another interpreter.

    python benchmarks/streaming_peer.py write TOKENS.npy DIRECTORY
    python benchmarks/streaming_peer.py read DIRECTORY SAMPLES

`read` prints the samples per second of CPU time of shuffled iteration and of random access, as JSON. The file
imports nothing of Headwater: mosaicml-streaming pins numpy 2.1 and other versions, so it lives in an
environment of its own.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import streaming


def write(tokens: str, directory: str) -> None:
    """Write each row of an array of 16-bit tokens as one MDS sample."""
    with streaming.MDSWriter(out=directory, columns={"tokens": "bytes"}, size_limit=1 << 26) as writer:
        for row in np.load(tokens):
            writer.write({"tokens": row.tobytes()})


def read(directory: str, samples: int) -> dict[str, float]:
    """Samples/s, each turned into an array of int64."""
    dataset = streaming.StreamingDataset(local=directory, shuffle=True, batch_size=32)
    begin, done = time.process_time(), 0
    for sample in dataset:
        np.frombuffer(sample["tokens"], np.uint16).astype(np.int64)
        done += 1
        if done == samples:
            break
    iterated = done / (time.process_time() - begin)
    order = np.random.default_rng(0).permutation(len(dataset)).tolist()
    begin = time.process_time()
    for index in order:
        np.frombuffer(dataset[index]["tokens"], np.uint16).astype(np.int64)
    picked = len(order) / (time.process_time() - begin)
    return {"iterated": iterated, "picked": picked, "version": streaming.__version__}


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(sys.argv[2], sys.argv[3])
    else:
        print(json.dumps(read(sys.argv[2], int(sys.argv[3]))))
