"""`headwater checkpoints` on real files, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import headwater
from tests.unit.pretrain.test_checkpoint_files import flip, state_file, write

REPO = Path(__file__).resolve().parents[3]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    for step in (3, 12):
        write(tmp_path, step)
    return tmp_path


def test_list_has_a_line_for_each_and_names_leftovers(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run_dir / "checkpoints" / ".writing-step-00000015.dead").mkdir()
    (run_dir / "checkpoints" / "step-00000003" / "config.yaml").unlink()
    assert headwater(["checkpoints", "list", str(run_dir)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and "config.yaml: missing" in lines[1]
    assert "TP 1 x DP 1, ZeRO 0, fp32  complete" in lines[2]
    assert lines[3].startswith("not a checkpoint: ") and lines[3].endswith(".dead")
    assert headwater(["checkpoints", "list", "--json", str(run_dir)]) == 0
    told = json.loads(capsys.readouterr().out)
    sizes = [path.stat().st_size for path in (run_dir / "checkpoints" / "step-00000012").iterdir()]
    manifest = (run_dir / "checkpoints" / "step-00000012" / "manifest.json").stat().st_size
    assert told["checkpoints"][1]["bytes"] == sum(sizes) - manifest


def test_verify_names_what_is_damaged(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert headwater(["checkpoints", "verify", str(run_dir)]) == 0
    assert capsys.readouterr().out.count("whole ") == 2
    bad = state_file(run_dir / "checkpoints" / "step-00000012")
    flip(bad)
    assert headwater(["checkpoints", "verify", str(run_dir)]) == 2
    out, err = capsys.readouterr()
    assert f"DAMAGED {bad}: content does not match its hash" in out and "whole " in out
    assert "1 of 2 checkpoints damaged" in err
    assert headwater(["checkpoints", "verify", "--json", str(bad.parent)]) == 2
    assert json.loads(capsys.readouterr().out) == {
        str(bad.parent): [f"{bad}: content does not match its hash"]
    }


def test_show_describes_the_newest(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert headwater(["checkpoints", "show", str(run_dir)]) == 0
    out = capsys.readouterr().out
    assert "step-00000012" in out and "TP 1 x DP 1, ZeRO 0, fp32" in out and "torch " in out
    assert "a.weight  4x3" in out and "2, 14 elements" in out and "num_layers: 2" in out
    assert headwater(["checkpoints", "show", "--json", str(run_dir)]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"]["a.bias"]["shape"] == [2]


@pytest.mark.parametrize("command", ["list", "verify", "show"])
def test_no_checkpoint_is_one_clear_error(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert headwater(["checkpoints", command, str(tmp_path / "absent")]) == 2
    assert "absent: no checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["list", "verify", "show"])
def test_a_step_that_is_not_there_is_not_called_damaged(
    run_dir: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = run_dir / "checkpoints" / "step-00000007"
    assert headwater(["checkpoints", command, str(absent)]) == 2
    out, err = capsys.readouterr()
    assert f"{absent}: no such checkpoint; there are step-00000003, step-00000012" in err and not out


def test_the_directory_of_the_checkpoints_stands_for_the_run(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run_dir / "checkpoints" / ".writing-step-00000015.dead").mkdir()
    assert headwater(["checkpoints", "list", str(run_dir)]) == 0
    of_run = capsys.readouterr().out
    assert headwater(["checkpoints", "list", str(run_dir / "checkpoints")]) == 0
    assert capsys.readouterr().out == of_run


def test_it_needs_no_torch(run_dir: Path) -> None:
    code = f"""
import sys
from launch.cli import main
for command in ("list", "verify", "show"):
    assert main(["checkpoints", command, {str(run_dir)!r}]) == 0
assert not {{"torch", "numpy", "deepspeed", "safetensors"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
