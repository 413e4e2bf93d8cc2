"""The package's own exceptions."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Input that cannot be computed with; the message says what to change, in one line."""


class ConvergenceError(RuntimeError):
    """A reference calculation did not converge; the message says what was tried."""


class IncompleteError(RuntimeError):
    """A long run ended before it was done; the message says what is kept and how to go on."""


def first_line(error: Exception) -> str:
    """The first line of what an error says; an OSError without its number and file."""
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return said.splitlines()[0]


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InputError:
    """Returns the error for a name that does not exist, with the closest known one suggested.

    Args:
        kind: what the name stands for, such as "functional".
        name: what the user wrote.
        known: the names that exist.

    Returns:
        The exception, for the caller to raise.
    """
    names = sorted(known)
    close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'?" if close else f"known are {', '.join(names)}"
    return InputError(f"unknown {kind} '{name}': {hint}")
