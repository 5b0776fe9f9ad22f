"""Fixtures that more than one test folder uses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.corpus import docstring_corpus


def headwater(argv: Sequence[str]) -> int:
    """The `headwater` command in this process."""
    from launch.cli import main

    return main(list(argv))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real corpus, made once."""
    return docstring_corpus(tmp_path_factory.mktemp("corpus"))
