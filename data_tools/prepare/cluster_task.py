"""Stage 4, `cluster`: pairs of near duplicates -> order keys of the documents to drop."""

from __future__ import annotations

from data_tools.dedup import near_duplicates
from data_tools.prepare.drops import Drops, write_drops
from data_tools.prepare.plan import CLUSTER, DEDUP
from data_tools.prepare.work import DROPS, EDGES, Work, load_array


def cluster(work: Work) -> None:
    """Join the edges of all partitions to clusters, and drop all but the first document of each.

    Documents that go as exact duplicates are left out before: the first of their text shares all their bands,
    so nothing hangs on them, and there may be many.
    """
    plan = work.plan()
    dedup = plan.dedup()
    partitions = range(dict(plan.stages())[DEDUP])
    exact = partitions if dedup is not None and dedup.exact else ()
    drops = Drops([work.output(DEDUP, partition, DROPS) for partition in exact])
    edges = (load_array(work.output(DEDUP, partition, EDGES)) for partition in partitions)
    keys = near_duplicates(part[~drops.contain(part["key_b"])] for part in edges)
    with work.writing(work.output(CLUSTER, 0, DROPS)) as (path,):
        write_drops(path, keys)
    work.finish(CLUSTER, 0, {"near": len(keys)})
