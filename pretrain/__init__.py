"""Pretraining: config, data stream, models, parallelism, checkpoints and the training loop."""

import warnings

# megatron-core warns at import about Apex and Transformer Engine and about settings that we choose on
# purpose; on every rank these lines bury what a run has to say.
warnings.filterwarnings("ignore", category=UserWarning, module=r"megatron\..*")
warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"megatron\..*")
# DeepSpeed calls collectives by the names they had before torch 2.13.
warnings.filterwarnings("ignore", category=FutureWarning, message=r"`torch\.distributed\.")
