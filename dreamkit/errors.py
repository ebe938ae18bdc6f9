"""The two ways a command ends badly, and the sentences that say so.

`InputError` is a user's mistake: nothing was started, nothing is lost, exit code 2.
`RunError` is a run that could not go on: everything written so far is kept, exit code 1.
Both carry one message that says what was asked, what was found, and what to do.
"""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input, found before any work was done. The command line prints the message and exits with 2."""


class RunError(RuntimeError):
    """A run that failed. What it wrote is kept. The command line prints the message and exits with 1."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out. torch's allocator for CPUs and Warp's say so in a RuntimeError."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    said = ("not enough memory", "out of memory", "can't allocate memory", "Failed to allocate")
    return isinstance(error, RuntimeError) and any(words in str(error) for words in said)


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence for an unknown name: the closest known ones, then all of them.

    >>> nearest("sdss", ["sds", "csd"])
    "Did you mean 'sds'? Known: csd, sds."
    """
    names = sorted(known)
    lower = {known.lower(): known for known in names}
    close = difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.6)
    guess = f"Did you mean {' or '.join(repr(lower[c]) for c in close)}? " if close else ""
    return f"{guess}Known: {', '.join(names) or 'none'}."
