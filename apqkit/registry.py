"""One way to look a name up in a plug-in table, with one kind of message."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from apqkit.errors import UnknownNameError

__all__ = ["did_you_mean", "lookup"]

Entry = TypeVar("Entry")


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Returns ``" (did you mean 'x'?)"`` for the closest known name, or an empty string.

    Args:
        name: What was written.
        known: What could have been meant.
        prefix: Put before the name that is proposed.

    >>> did_you_mean("synflo", ["snip", "synflow"])
    " (did you mean 'synflow'?)"
    """
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {prefix + close[0]!r}?)" if close else ""


def lookup(table: Mapping[str, Entry], name: str, kind: str) -> Entry:
    """Returns the entry of that name.

    Args:
        table: The plug-in table of one kind.
        name: The name to find.
        kind: What the table holds, in the singular, for the message.

    Raises:
        UnknownNameError: The table has no such name; the text lists those it has.

    >>> lookup({"int4": 4}, "int4", "format")
    4
    """
    if name in table:
        return table[name]
    hint = did_you_mean(name, table)
    raise UnknownNameError(
        f"no {kind} named {name!r}{hint}; there are: {', '.join(sorted(table))}"
    )
