"""How well samples are mixed: shards in a batch, and what of a document's neighbourhood is left.

    python -m benchmarks.shuffle_quality --plot benchmarks/shuffle_quality.png

Orders of a simulated corpus of 1,000 shards with 3,072 samples of 2,048 tokens each; no tokens are read:

- Headwater: the order that training has (`TokenOrder`);
- stock webdataset: shards in random order, one reader, its own shuffle buffer (`webdataset.shuffle`, filled
  before it gives the first sample) of 1,000; and the same with eight readers in turn and a buffer of 10,000
  each, as DataLoader workers would do at best;
- a perfect shuffle: a random permutation.

Printed are the distinct shards in a batch of 256. The plot shows the autocorrelation of two markers, drawn at
random for each document of 16 samples and for each shard: 0 means that a sample says nothing about the ones
that come after it. The prepared corpus has its documents in random order already; the marker of a shard shows
what would be left if it had not.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
from webdataset.filters import _shuffle

from pretrain.data.philox import derive_key
from pretrain.data.token_order import TokenOrder

SHARDS, SHARD_SAMPLES, SEQ_LENGTH = 1000, 3072, 2048
SAMPLES = SHARDS * SHARD_SAMPLES
DOCUMENT_SAMPLES, BATCH = 16, 256
READ = 1 << 17  # samples that are looked at: two windows
LAGS = np.unique(np.geomspace(1, 1 << 15, 60).astype(int))

Samples = npt.NDArray[np.int64]


def headwater(seed: int) -> Samples:
    """[READ] numbers of the first samples in Headwater's order."""
    order = TokenOrder(SAMPLES * SEQ_LENGTH, SEQ_LENGTH, derive_key(seed, "corpus", "simulated"))
    spans = order.spans(*order.locate(np.arange(READ)))
    # The rotation of an epoch can cut a sample in two; what counts is where it begins.
    first = np.searchsorted(spans.row, np.arange(READ))
    return spans.start[first] // SEQ_LENGTH


def buffered(seed: int, readers: int, buffer: int) -> Samples:
    """The same of stock webdataset: readers have every n-th shard, and give samples in turn."""
    rng = random.Random(seed)
    shards = list(range(SHARDS))
    rng.shuffle(shards)

    def read(mine: list[int]) -> Iterator[int]:
        for shard in mine:
            yield from range(shard * SHARD_SAMPLES, (shard + 1) * SHARD_SAMPLES)

    each = [
        _shuffle(read(shards[i::readers]), buffer, buffer, random.Random(seed + i)) for i in range(readers)
    ]
    in_turn = (next(one) for _ in range(READ // readers) for one in each)
    return np.fromiter(islice(in_turn, READ), np.int64)


def perfect(seed: int) -> Samples:
    """The same of a random permutation."""
    return np.random.default_rng(seed).permutation(SAMPLES)[:READ].astype(np.int64)


def shards_in_batch(samples: Samples) -> float:
    """Distinct shards in a batch, on average."""
    batches = np.sort((samples // SHARD_SAMPLES).reshape(-1, BATCH), axis=1)
    return float(((np.diff(batches, axis=1) > 0).sum(axis=1) + 1).mean())


def autocorrelation(samples: Samples, unit: int) -> npt.NDArray[np.float64]:
    """Of a random +-1 marker that `unit` neighbouring samples share, at each of `LAGS`."""
    marker = np.random.default_rng(99).choice([-1.0, 1.0], SAMPLES // unit + 1)[samples // unit]
    marker -= marker.mean()
    return np.array([(marker[:-lag] * marker[lag:]).mean() for lag in LAGS]) / marker.var()


def plot(orders: dict[str, Samples], path: Path) -> None:
    """Draw both autocorrelations."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4), sharey=True)
    units = [("document", DOCUMENT_SAMPLES), ("shard", SHARD_SAMPLES)]
    for axis, (name, unit) in zip(axes, units, strict=True):
        for label, samples in orders.items():
            axis.plot(LAGS, autocorrelation(samples, unit), label=label, linewidth=1.3)
        axis.set(xscale="log", title=f"marker of a {name}", xlabel="samples apart")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("autocorrelation")
    axes[0].legend(loc="upper right")
    figure.tight_layout()
    figure.savefig(path, dpi=80, metadata={"Software": None})


def main() -> None:
    """Print the table, draw the plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plot", type=Path, help="picture to write, .png or .svg")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    makers = {
        "headwater": headwater,
        "webdataset, 1 reader, shuffle(1000)": lambda seed: buffered(seed, 1, 1000),
        "webdataset, 8 readers, shuffle(10000)": lambda seed: buffered(seed, 8, 10_000),
        "perfect shuffle": perfect,
    }
    found = {name: [make(seed) for seed in range(arguments.seeds)] for name, make in makers.items()}
    counts = {name: [shards_in_batch(one) for one in orders] for name, orders in found.items()}
    best = float(np.mean(counts["perfect shuffle"]))
    print(f"Distinct shards in a batch of {BATCH}, {SHARDS} shards, {READ // BATCH} batches\n")
    print("| | mean | least to most of the seeds | of a perfect shuffle |\n|---|---|---|---|")
    for name, values in counts.items():
        mean = float(np.mean(values))
        print(f"| {name} | {mean:.1f} | {min(values):.1f} to {max(values):.1f} | {mean / best:.1%} |")
    print("\nAutocorrelation of markers of a document and of a shard, 1 sample and 100 samples apart\n")
    print("| | document, 1 | document, 100 | shard, 1 | shard, 100 |\n|---|---|---|---|---|")
    near, far = 0, int(np.searchsorted(LAGS, 100))
    for name, orders in found.items():
        values = [autocorrelation(orders[0], unit) for unit in (DOCUMENT_SAMPLES, SHARD_SAMPLES)]
        print(f"| {name} | " + " | ".join(f"{one[at]:.3f}" for one in values for at in (near, far)) + " |")
    if arguments.plot:
        plot({name: orders[0] for name, orders in found.items()}, arguments.plot)


if __name__ == "__main__":
    main()
