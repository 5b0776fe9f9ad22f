"""Stage 4, `cluster`: pairs of near duplicates -> order keys of the documents to drop."""

from __future__ import annotations

from data_tools.dedup import near_duplicates
from data_tools.prepare.drops import write_drops
from data_tools.prepare.plan import CLUSTER, DEDUP
from data_tools.prepare.work import DROPS, EDGES, Work, load_array


def cluster(work: Work) -> None:
    """Join the edges of all partitions to clusters, and drop all but the first document of each."""
    partitions = dict(work.plan().stages())[DEDUP]
    keys = near_duplicates(
        load_array(work.output(DEDUP, partition, EDGES)) for partition in range(partitions)
    )
    with work.writing(work.output(CLUSTER, 0, DROPS)) as (path,):
        write_drops(path, keys)
    work.finish(CLUSTER, 0, {"near": len(keys)})
