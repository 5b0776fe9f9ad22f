"""Candidates of `benchmarks.training_step`: ours and the peers, each in processes of its own."""
