"""Ranks: process groups, random number streams, and the DeepSpeed engine."""
