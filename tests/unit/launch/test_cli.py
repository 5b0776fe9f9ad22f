"""The `headwater` command: dispatch, hints, exit codes."""

from __future__ import annotations

import errno
import subprocess
import sys
import types

import pytest

from launch import cli


class WrongInput(Exception):
    exit_code = 2


@pytest.fixture
def group(monkeypatch):
    """Make `headwater data` run the given function."""

    def install(main):
        module = types.ModuleType("fake_group")
        module.main = main
        monkeypatch.setitem(sys.modules, "fake_group", module)
        monkeypatch.setitem(cli.GROUPS, "data", ("fake_group", "for the test"))

    return install


def raising(error: BaseException):
    def main(argv):
        raise error

    return main


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"], ["help"]])
def test_help_lists_every_group_with_examples(capsys, words):
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    for name, (_, text) in cli.GROUPS.items():
        assert name in out and text in out
    assert "examples:" in out


def test_an_unknown_group_names_the_nearest_match(capsys):
    assert cli.main(["pretrian"]) == 2
    assert capsys.readouterr().err == "headwater: error: unknown group 'pretrian'; did you mean 'pretrain'?\n"


def test_an_unknown_group_without_a_match_names_all(capsys):
    assert cli.main(["zzz"]) == 2
    assert "known: data, pretrain, launch" in capsys.readouterr().err


def test_the_group_gets_its_words_and_gives_the_exit_code(group):
    seen = []
    group(lambda argv: seen.append(argv) or 75)
    assert cli.main(["data", "prepare", "--out", "x y"]) == 75
    assert seen == [["prepare", "--out", "x y"]]


def test_errors_with_an_exit_code_become_one_line(group, capsys):
    group(raising(WrongInput("corpus.jsonl: is empty; add documents")))
    assert cli.main(["data"]) == 2
    assert capsys.readouterr().err == "headwater: error: corpus.jsonl: is empty; add documents\n"


def test_an_interrupt_is_one_line(group, capsys):
    group(raising(KeyboardInterrupt()))
    assert cli.main(["data"]) == 130
    assert capsys.readouterr().err == "headwater: error: interrupted\n"


def test_a_crash_stays_a_crash(group):
    group(raising(ZeroDivisionError("bug")))
    with pytest.raises(ZeroDivisionError):
        cli.main(["data"])


def test_a_full_disk_is_told_with_its_exit_code(group, capsys):
    group(raising(OSError(errno.ENOSPC, "No space left on device", "runs/x/launch.json")))
    assert cli.main(["data"]) == 74
    err = capsys.readouterr().err
    assert "No space left on device: 'runs/x/launch.json'; make room" in err and "Traceback" not in err


def test_a_missing_package_names_what_installs_it(group, capsys):
    group(raising(ModuleNotFoundError("no", name="transformers.models")))
    assert cli.main(["data"]) == 2
    assert "pip install 'headwater[hf]'" in capsys.readouterr().err
    group(raising(ModuleNotFoundError("no", name="torch")))
    assert cli.main(["data"]) == 2
    assert "needs the package 'torch'; pip install 'headwater'" in capsys.readouterr().err


def test_a_missing_module_of_our_own_is_a_crash(group):
    group(raising(ModuleNotFoundError("no", name="data_tools.gone")))
    with pytest.raises(ModuleNotFoundError):
        cli.main(["data"])


def test_it_runs_as_a_module():
    result = subprocess.run([sys.executable, "-m", "launch.cli", "chekc"], capture_output=True, text=True)
    assert result.returncode == 2
    assert "did you mean 'check'?" in result.stderr


def test_a_count_that_is_no_number_is_told_in_words(capsys):
    with pytest.raises(SystemExit):
        cli.main(["check", "--config", "run.yaml", "--nproc", "two"])
    assert "argument --nproc: 'two' is not a whole number" in capsys.readouterr().err
