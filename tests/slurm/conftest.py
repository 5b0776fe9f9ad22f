"""One cluster for all tests of this folder."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.support import STEPS, Cluster, NoClusterError, losses, run_words
from tests.support.runs import HEADWATER, run


@pytest.fixture(scope="session")
def slurm() -> Iterator[Cluster]:
    """Two nodes, which may be crashed and must be booted again by who does that."""
    # Not below pytest's own directory: the path of munge's socket has to be short.
    directory = Path(tempfile.mkdtemp(prefix="headwater-slurm-"))
    try:
        cluster = Cluster.start(directory, "--nodes", "2", "--slurmd-timeout", "6", "--ssh")
    except NoClusterError as reason:
        pytest.skip(f"no SLURM cluster here: {reason}")
    yield cluster
    cluster.stop()


@pytest.fixture(scope="session")
def undisturbed(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of the tests' run on this machine, from start to end without a stop."""
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    run([*HEADWATER, "launch", "local", "--nproc", "2", *run_words(corpus, run_dir)])
    found = losses(run_dir)
    assert len(found) == STEPS
    return found


@pytest.fixture
def cluster(slurm: Cluster) -> Iterator[Cluster]:
    """The cluster with every node idle; what the test leaves in the queue is cancelled."""
    slurm.nodes_are_idle()
    yield slurm
    slurm.run("scancel", "--user", "root")
    for name in ("node1", "node2"):
        slurm.node("boot", name)
    slurm.until(lambda: not slurm.run("squeue", "-h"), "an empty queue")
