"""docs/layouts.md shows the table that the code holds."""

from __future__ import annotations

from pathlib import Path

from pretrain.config.layouts import table

DOCS = Path(__file__).resolve().parents[3] / "docs"


def test_the_guide_has_the_table() -> None:
    assert table() in (DOCS / "layouts.md").read_text(encoding="utf-8")
