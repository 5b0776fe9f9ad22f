"""Pretraining: config, data stream, models, parallelism, checkpoints and the training loop."""
