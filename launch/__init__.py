"""Starting runs: the `headwater` command, launch plans and their backends. Never imports torch."""
