"""The `headwater` command: finds the group's module and runs it.

Nothing is imported before a group is chosen, so that `headwater --help` answers at once and the groups
that need no torch (launch, check) work where it is not installed.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import signal
import sys
from collections.abc import Sequence

GROUPS: dict[str, tuple[str, str]] = {
    "data": ("data_tools.cli", "build a corpus: collect text, train a tokenizer, write shards"),
    "pretrain": ("pretrain.train", "train in this process (one rank); `launch` starts several"),
    "launch": ("launch.commands", "start a run on many ranks, and look after it"),
    "check": ("launch.check", "verify a run's config, data, memory and disk before starting it"),
    "simulate": (
        "pretrain.parity.simulate",
        "build one rank of a large job here: shapes, parameters, memory",
    ),
    "scaling": ("launch.scaling", "estimate traffic and time of a step on more ranks"),
    "parity": ("pretrain.parity.command", "prove a config's layouts equal to one rank, on CPU"),
    "checkpoints": ("pretrain.checkpoint.command", "list, verify and show what a run has saved"),
    "finetune": ("finetune.train", "train a checkpoint further for a task"),
    "evaluate": (
        "finetune.evaluate",
        "score a finetuned checkpoint on labelled rows, or a GPT on lm-eval's tasks",
    ),
    "predict": ("finetune.predict", "answer rows with a finetuned checkpoint"),
    "embed": ("finetune.embed", "sentence embeddings of texts from a BERT checkpoint"),
    "explain": ("finetune.explain", "what an answer rests on: token attributions and attention, as a page"),
    "generate": ("finetune.generate", "write text with a GPT checkpoint"),
    "audit": ("finetune.audit", "what a GPT checkpoint has memorised: planted secrets, verbatim text"),
    "export": ("finetune.export_hf", "convert a checkpoint to the Hugging Face format"),
    "import": ("finetune.import_hf", "convert a Hugging Face model to a checkpoint"),
}
"""Each group's module, which has `main(argv) -> exit code`, and what `--help` says about it."""

RUN_COMMANDS = {"trace": "pretrain.data.trace", "audit": "pretrain.data.audit"}
"""`headwater data` commands that look at a run; data_tools knows no runs."""

OWN_PACKAGES = ("data_tools", "finetune", "launch", "pretrain")
EXTRAS = {
    "accelerate": "harness",
    "captum": "explain",
    "lm_eval": "harness",
    "peft": "harness",
    "seqeval": "finetune",
    "sklearn": "finetune",
    "tokenizers": "hf",
    "transformers": "hf",
}
"""Packages that only an extra of the distribution installs."""

USAGE = """usage: headwater GROUP ...   (headwater GROUP --help explains a group)

groups:
{groups}

examples:
  headwater data python-docs --out runs/data/python-docs      `headwater data --help` goes on from there
  headwater check --config configs/gpt/tiny.yaml --nproc 2
  headwater launch local --nproc 2 --config configs/gpt/tiny.yaml --set parallel.zero_stage=2
  headwater data trace --run runs/gpt-tiny --step 100     what a step read
  headwater data audit --run runs/gpt-tiny                was anything repeated or skipped?

exit codes: 0 done; 1 crash; 2 wrong input; 3 the loss diverged; 74 disk full; 75 stopped after saving, run it
again; 76 hung; 77 a newer attempt runs
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `headwater` and return its exit code.

    Args:
        argv: The words after `headwater`; None takes them from the process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage(), end="")
        return 0
    if words[0] not in GROUPS:
        return _fail(_unknown_group(words[0]))
    module_name, _ = GROUPS[words[0]]
    if words[0] == "data" and words[1:] and words[1] in RUN_COMMANDS:
        module_name = RUN_COMMANDS[words.pop(1)]
    try:
        module = importlib.import_module(module_name)
        return int(module.main(words[1:]))
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if not missing or missing in OWN_PACKAGES:
            raise
        wanted = f"headwater[{EXTRAS[missing]}]" if missing in EXTRAS else "headwater"
        return _fail(
            f"`headwater {words[0]}` needs the package {missing!r}; pip install '{wanted}' brings it"
        )
    except BrokenPipeError:  # `headwater ... | head` has seen enough
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # so that the exit does not flush into it
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return _fail("interrupted", 128 + signal.SIGINT)
    except Exception as error:
        # ConfigError, DataError and their kin carry the exit code; all else is a crash with its traceback.
        exit_code = getattr(error, "exit_code", None)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            from pretrain.config.exit_codes import STORAGE

            return _fail(f"{error}; make room and run the same command again", STORAGE)
        if exit_code is None:
            raise
        return _fail(str(error), int(exit_code))


def _usage() -> str:
    width = max(len(name) for name in GROUPS)
    return USAGE.format(groups="\n".join(f"  {name:<{width}}  {text}" for name, (_, text) in GROUPS.items()))


def _unknown_group(name: str) -> str:
    near = difflib.get_close_matches(name, GROUPS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(GROUPS)}"
    return f"unknown group {name!r}; {hint}"


def _fail(message: str, exit_code: int = 2) -> int:
    print(f"headwater: error: {message}", file=sys.stderr)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
