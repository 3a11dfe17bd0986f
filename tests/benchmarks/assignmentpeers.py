"""The SDKs of LaunchDarkly, GrowthBook and flagd, each evaluating the flag `assignment` splits.

Runs in an interpreter with tests/benchmarks/requirements-sdks.txt installed, offline: flags come
from files, nothing is sent. Owns one flag in each SDK's words (half control, half candidate, for
users of two countries) and the CPU clock around its evaluation; each line on standard input is a
round, answered by a line of JSON: microseconds per evaluation, every user for the first time.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

CALLS: Final = 1_000
VARIANTS: Final = ("control", "candidate")
COUNTRIES: Final = ["DE", "FR"]


def launchdarkly() -> Callable[[str], Any]:
    """Percentage rollout with one rule, from a file; no events."""
    import ldclient
    from ldclient.config import Config
    from ldclient.context import Context
    from ldclient.integrations import Files

    rollout = {
        "bucketBy": "key",
        "variations": [{"variation": 0, "weight": 50_000}, {"variation": 1, "weight": 50_000}],
    }
    flag = {
        "key": "fraud-v2", "version": 1, "on": True, "salt": "salt", "variations": list(VARIANTS),
        "fallthrough": {"variation": 0}, "offVariation": 0,
        "rules": [{
            "id": "r",
            "clauses": [{"attribute": "country", "op": "in", "values": COUNTRIES}],
            "rollout": rollout,
        }],
    }  # fmt: skip
    path = Path(tempfile.mkdtemp(prefix="t")) / "flags.json"
    path.write_text(json.dumps({"flags": {"fraud-v2": flag}}))
    source = Files.new_data_source(paths=[str(path)])
    config = Config("key", update_processor_class=source, send_events=False)
    client = ldclient.LDClient(config=config)

    def evaluate(user: str) -> Any:
        context = Context.builder(user).set("country", "DE").build()
        return client.variation("fraud-v2", context, None)

    return evaluate


def growthbook() -> Callable[[str], Any]:
    """One feature with one experiment rule; one object per user, as its manual has it."""
    from growthbook import GrowthBook

    rule = {
        "condition": {"country": {"$in": COUNTRIES}},
        "variations": list(VARIANTS),
        "weights": [0.5, 0.5],
        "key": "fraud-v2",
        "hashAttribute": "id",
    }
    features: Any = {"fraud-v2": {"defaultValue": None, "rules": [rule]}}

    def evaluate(user: str) -> Any:
        book = GrowthBook(attributes={"id": user, "country": "DE"}, features=features)
        return book.get_feature_value("fraud-v2", None)

    return evaluate


def flagd() -> Callable[[str], Any]:
    """Fractional evaluation in the process, from a file."""
    from openfeature import api
    from openfeature.contrib.provider.flagd import FlagdProvider
    from openfeature.contrib.provider.flagd.config import ResolverType
    from openfeature.evaluation_context import EvaluationContext

    split = {"fractional": [{"var": "targetingKey"}, ["control", 50], ["candidate", 50]]}
    flag = {
        "state": "ENABLED",
        "variants": {name: name for name in VARIANTS},
        "defaultVariant": "control",
        "targeting": {"if": [{"in": [{"var": "country"}, COUNTRIES]}, split]},
    }
    path = Path(tempfile.mkdtemp(prefix="t")) / "flags.json"
    path.write_text(json.dumps({"flags": {"fraud-v2": flag}}))
    provider = FlagdProvider(resolver_type=ResolverType.FILE, offline_flag_source_path=str(path))
    api.set_provider_and_wait(provider)
    client = api.get_client()

    def evaluate(user: str) -> Any:
        context = EvaluationContext(targeting_key=user, attributes={"country": "DE"})
        return client.get_string_value("fraud-v2", "", context)

    return evaluate


SDKS: Final = {
    "LaunchDarkly SDK": launchdarkly, "GrowthBook SDK": growthbook, "flagd SDK": flagd,
}  # fmt: skip


def main() -> None:
    """Answer rounds until the input ends."""
    logging.disable(logging.CRITICAL)
    ready = {name: make() for name, make in SDKS.items()}
    for name, evaluate in ready.items():
        seen = {evaluate(f"user-{number}") for number in range(200)}
        assert seen == set(VARIANTS), f"{name} splits by {seen}"
    users = (f"user-{number}" for number in _numbers())
    for _ in sys.stdin:
        found = {}
        for name, evaluate in ready.items():
            batch = [next(users) for _ in range(CALLS)]
            started = time.thread_time_ns()
            for user in batch:
                evaluate(user)
            found[name] = (time.thread_time_ns() - started) / CALLS / 1000
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()


def _numbers() -> Iterator[int]:
    number = 1_000
    while True:
        yield number
        number += 1


if __name__ == "__main__":
    main()
