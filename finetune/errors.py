"""The error of a conversion that would not compute the same thing."""

from __future__ import annotations


class ConversionError(Exception):
    """A converted model or tokenizer disagrees with its original; nothing was published.

    Unlike `ConfigError` this is not the user's mistake, hence the other exit code.
    """

    exit_code = 1
