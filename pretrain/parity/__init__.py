"""Proof that a layout computes what one rank computes: on CPU ranks before a run, and while it runs."""
