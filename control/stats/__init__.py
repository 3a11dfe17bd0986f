"""The pure statistics: estimates, tests, confidence sequences, e-processes from sufficient state.

Owns every formula by which versions of a model are compared; README.md lists the families with
their sources. Refuses clocks, chance, storage and any knowledge of experiments or transports.

`from control.stats import analyze` is the notebook's way to `control.analyze`, which reads data and
is not part of this package: it is imported only when it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    analyze: Callable[..., object]

__all__ = ["analyze"]


def __getattr__(name: str) -> object:
    if name != "analyze":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return import_module("control.analyze.engine").analyze
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "control":
            raise
        raise ImportError(f'analyze needs {error.name}: pip install "turnout[analyze]"') from error
