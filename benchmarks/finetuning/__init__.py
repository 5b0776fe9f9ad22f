"""Comparisons of finetuned models, and the real data that they are made on."""
