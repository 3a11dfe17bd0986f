"""Coverage-guided fuzzing: `python -m tests.fuzz.guided wire|request|log [OPTION...] [DIR...]`.

Owns the entry points for atheris alone; what must hold is in wiretarget.py and messages.py. A crash
is written to the working directory; give it a name and put it into the corpus with the fix.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from random import Random
from typing import Final

import atheris

with atheris.instrument_imports(include=["sidecar"]):
    from tests.fuzz.judge import PREFACE
    from tests.fuzz.messages import Asked, check_log
    from tests.fuzz.messages import mutated as mutated_bytes
    from tests.fuzz.sessions import mutated as mutated_frames
    from tests.fuzz.sessions import session, split
    from tests.fuzz.wiretarget import check_cuts

WORLDS: Final = 8


def wire(data: bytes) -> None:
    """A client's bytes; what does not begin as HTTP/2 is told to."""
    check_cuts(data if data[:3] == PREFACE[:3] else PREFACE + data)


def request() -> Callable[[bytes], None]:
    """A ProcessingRequest, asked in a few worlds; its length chooses."""
    worlds = [Asked(Random(seed)) for seed in range(WORLDS)]
    return lambda data: void(worlds[len(data) % WORLDS].ask(data))


def log(data: bytes) -> None:
    """A StreamAccessLogsMessage."""
    check_log(data)


def void(_: object) -> None:
    """Atheris wants no result."""


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """Half of the mutations are ours: they keep frames and lengths whole more often."""
    random = Random(seed)
    if random.random() < 0.5:
        return bytes(atheris.Mutate(data, max_size))
    if not data.startswith(PREFACE):
        return mutated_bytes(random, data)[:max_size]
    frames = split(data[len(PREFACE) :])
    if random.random() < 0.3:
        frames += split(session(random)[len(PREFACE) :])
    return (PREFACE + b"".join(mutated_frames(random, frames or [b""])))[:max_size]


def main() -> None:
    """Fuzz until told to stop."""
    targets: dict[str, Callable[[], Callable[[bytes], None]]] = {
        "wire": lambda: wire,
        "request": request,
        "log": lambda: log,
    }
    target = targets[sys.argv[1]]()
    atheris.Setup([sys.argv[0], *sys.argv[2:]], target, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
