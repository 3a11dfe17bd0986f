"""The one kind of error that ends `turnout sidecar` with a sentence instead of a traceback."""

from __future__ import annotations


class CannotRunError(RuntimeError):
    """This sidecar cannot run, or not go on; the message says why and what to do."""
