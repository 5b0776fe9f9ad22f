"""`headwater parity --out FILE --resume`, with layouts that only pretend to run."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import pretrain.parity
from data_tools.errors import DataError
from pretrain.config import ConfigError
from pretrain.parity.command import main
from pretrain.parity.layouts import Layout

TINY = Path(__file__).parents[3] / "configs" / "gpt" / "tiny.yaml"
LAYOUTS = ["--config", str(TINY), "--layouts", "tp2 zero0 sp", "tp2 bf16"]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The layouts that ran since the list was emptied; those in bf16 differ."""
    names: list[str] = []

    def compared(base: Any, layouts: Sequence[Layout], probe: str, log: str) -> Iterator[Any]:
        for layout in layouts:
            names.append(str(layout))
            faults = ["loss differs"] if layout.precision == "bf16" else []
            yield layout, (str(layout), *"-----", "DIFFERS" if faults else "equal"), faults

    pretended: Any = ModuleType("pretrain.parity.run")
    pretended.compared = compared
    monkeypatch.setitem(sys.modules, "pretrain.parity.run", pretended)
    monkeypatch.setattr(pretrain.parity, "run", pretended, raising=False)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    return names


def test_a_table_is_gone_on_with(ran: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "table.md"
    assert main([*LAYOUTS[:-1], "--out", str(out), "--resume"]) == 0
    assert ran == ["tp2 dp1 zero0 acc1 fp32 sp"]
    ran.clear()
    for _ in range(2):  # what is equal stays, what differs runs again
        assert main([*LAYOUTS, "--out", str(out), "--resume"]) == 1
        assert ran == ["tp2 dp1 zero1 acc1 bf16"]
        ran.clear()
    rows = [line for line in out.read_text(encoding="utf-8").splitlines() if line.startswith("| tp")]
    assert [row.split(" | ")[-1] for row in rows] == ["equal |", "DIFFERS |"]
    assert capsys.readouterr().out.count("1 of 2 layouts equal one rank") == 2
    assert main([*LAYOUTS, "--out", str(out)]) == 1 and len(ran) == 2, "without --resume all run"


def test_a_table_of_something_else_is_refused(ran: list[str], tmp_path: Path) -> None:
    out = tmp_path / "table.md"
    main([*LAYOUTS, "--out", str(out)])
    with pytest.raises(ConfigError, match="choose another --out"):
        main([*LAYOUTS, "--set", "seed=2", "--out", str(out), "--resume"])
    out.write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match="choose another --out"):
        main([*LAYOUTS, "--out", str(out), "--resume"])
    with pytest.raises(ConfigError, match="--resume: takes --out FILE"):
        main([*LAYOUTS, "--resume"])


def test_an_out_that_cannot_be_written_is_told_before_any_layout_runs(ran: list[str], tmp_path: Path) -> None:
    for more in ([], ["--resume"]):
        with pytest.raises(DataError, match="is a directory; --out names the file to write"):
            main([*LAYOUTS, "--out", str(tmp_path), *more])
    assert not ran
    assert main([*LAYOUTS, "--out", str(tmp_path / "new" / "table.md")]) == 1
    assert (tmp_path / "new" / "table.md").exists()
