"""The one exception of this package that a user can cause."""

from __future__ import annotations


class DataError(Exception):
    """Something about the data is wrong: a file, a key, a shard.

    The message names the thing and says what to do; the command line shows it as one line.
    """

    exit_code = 2
    """Exit code of a command that ends with this error."""
