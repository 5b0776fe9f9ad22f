"""What every rank of the tests imports; the fork server of `RankPool` does it once."""

import deepspeed  # noqa: F401

import pretrain.loop
import pretrain.models  # noqa: F401
