"""One act being played: its traffic, its experiment, and the three sets of books kept about it.

The client's ledger is the truth; Envoy's counters and Turnout's results are held against it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from typing import Final

from envoy.demo.console import Console, state_name
from envoy.demo.envoystats import EnvoyCounts
from envoy.demo.ledger import Ledger, percentile
from envoy.demo.processes import wait_for
from envoy.demo.progress import Progress
from envoy.demo.result import ActResult, Row
from envoy.demo.stack import Stack
from envoy.demo.traffic import Traffic
from turnout.v1alpha1.experiment_pb2 import Experiment, VariantResult

# Access logs are flushed twice a second and deltas once: then control plane and client agree.
_BOOKS_TIMEOUT_S: Final = 15.0
_REASONS_TIMEOUT_S: Final = 4.0


class Scene:
    """One act.

    Args:
        stack, console, traffic, progress: The running demo.
        result: The act's result, filled while it is played.
        experiment: Id of the act's experiment.
        baseline: Variant that serves the requests without a stamp, as "v1".
    """

    def __init__(
        self,
        stack: Stack,
        console: Console,
        traffic: Traffic,
        progress: Progress,
        *,
        result: ActResult,
        experiment: str,
        baseline: str,
    ) -> None:
        self.stack = stack
        self.console = console
        self.traffic = traffic
        self.progress = progress
        self.result = result
        self.experiment = experiment
        self.baseline = baseline
        self.ledger = Ledger()
        self.status = ""
        # The model version that is sent copies, and how many Turnout counted.
        self.shadowed = ""
        self.copies = 0
        self._before = EnvoyCounts({})
        self._upstream_before: Counter[str] = Counter()

    # -- Playing -----------------------------------------------------------------------------------

    async def open(self, resource: str) -> None:
        """Create the experiment, let traffic flow, start the experiment."""
        self.progress.heading(f"Act {self.result.title}")
        await self.stack.apply(resource)
        self._before = await self.stack.stats.read()
        self._upstream_before = await self.stack.upstream_totals()
        self.ledger = self.traffic.begin()
        await self.console.start(self.experiment)
        self.progress.event(f"{self.experiment} started ({resource})")

    def line(self) -> str:
        """What the live line shows."""
        figures = self.ledger.figures(unstamped=self.baseline)
        shares = "  ".join(
            f"{name} {len(found.latencies_ms):,}" for name, found in sorted(figures.items())
        )
        return (
            f"{self.experiment} {self.status}  requests {len(self.ledger.lines):,}  {shares}"
            f"  not 200: {len(self.ledger.failures())}"
        )

    async def until(
        self,
        condition: Callable[[Experiment], bool],
        *,
        timeout_s: float,
        what: str,
        checked: bool = True,
    ) -> bool:
        """Follow the experiment until the condition holds; False when it did not in time.

        Raises:
            StartFailure: A process ended meanwhile.
        """
        seen = ""

        async def met() -> bool:
            nonlocal seen
            if checked:
                self.stack.check()
            experiment = await self.console.get(self.experiment)
            status = experiment.status
            split = " ".join(f"{name} {share:.0%}" for name, share in sorted(status.split.items()))
            self.status = f"{state_name(status.state)} {status.phase} {split}".strip()
            if self.status != seen:
                seen = self.status
                sentence = status.last_decision.sentence
                self.progress.event(f"{self.status}: {sentence}" if sentence else self.status)
            return condition(experiment)

        async with self.progress.live(self.line):
            try:
                await wait_for(met, timeout_s=timeout_s, what=what)
            except TimeoutError as error:
                self.result.claim(f"{what} within {timeout_s:.0f} s", held=False, detail=error)
                return False
        return True

    async def flow(self, seconds: float) -> None:
        """Let traffic flow for a while."""
        async with self.progress.live(self.line):
            await asyncio.sleep(seconds)

    # -- Closing -----------------------------------------------------------------------------------

    async def close(self, *, excused: str | None = None, bad: str | None = None) -> None:
        """End the traffic, let the books close, fill in the result.

        Args:
            excused: Model version whose own errors are not failed requests.
            bad: Model version that must lose its traffic.
        """
        await self.traffic.end()
        result, ledger = self.result, self.ledger
        result.requests = len(ledger.lines)
        result.failed = len(ledger.failures(excused=excused))
        for name, figures in sorted(ledger.figures(unstamped=self.baseline).items()):
            result.variants[name] = Row(
                requests=figures.requests,
                errors=figures.errors,
                accuracy=figures.accuracy,
                p50_ms=percentile(figures.latencies_ms, 0.5),
                p95_ms=percentile(figures.latencies_ms, 0.95),
            )
        if bad is not None:
            served = ledger.served_by(bad)
            result.exposed_requests = len(served)
            result.exposed_users = ledger.users(served)
            result.seconds_to_zero = ledger.seconds_to_zero(bad)
        result.claim(
            "no request failed" + (f" but v{excused}'s own" if excused else ""),
            result.failed == 0,
            dict(ledger.statuses()) if result.failed else "",
        )
        await self._compare_with_envoy()
        await self._compare_with_turnout()
        await self._name_unstamped()

    async def _compare_with_envoy(self) -> None:
        result, ledger = self.result, self.ledger
        envoy = await self.stack.stats.read() - self._before
        mine = (len(ledger.lines), sum(line.status >= 500 for line in ledger.lines))
        result.claim(
            "Envoy counted the same requests and errors as the client",
            mine == (envoy.requests, envoy.errors),
            f"client {mine}, Envoy {(envoy.requests, envoy.errors)}",
        )
        stamped = sum(bool(line.variant) for line in ledger.lines)
        result.claim(
            "the client saw as many stamps as the sidecar gave Envoy",
            stamped == envoy.answered,
            f"client {stamped}, Envoy {envoy.answered}",
        )
        result.unstamped = {"unknown": envoy.unstamped} if envoy.unstamped else {}
        clusters = await self.upstream_requests()
        for version in self.stack.pods:
            served, sent = len(ledger.served_by(version)), clusters.get(version, 0)
            copies = self.copies if version == self.shadowed else 0
            if served or sent:
                result.claim(
                    f"Envoy's cluster of v{version} counted what v{version} answered",
                    served + copies == sent,
                    f"client {served}" + (f" + {copies} copies" if copies else "") + f", {sent}",
                )

    async def upstream_requests(self) -> dict[str, int]:
        """Requests that Envoy sent to each model version in this act."""
        now = await self.stack.upstream_totals()
        return {
            version: now[address] - self._upstream_before[address]
            for version, address in self.stack.pods.items()
        }

    async def _compare_with_turnout(self) -> None:
        """Wait until Turnout has counted every stamped request, variant by variant."""
        mine: dict[str, int] = {}
        for line in self.ledger.lines:
            if line.variant:
                mine[line.variant] = mine.get(line.variant, 0) + 1
        theirs: dict[str, int] = {}

        async def agree() -> bool:
            nonlocal theirs
            results = await self.console.results(self.experiment)
            theirs = {row.variant: row.requests for row in results.variants if row.requests}
            return theirs == mine

        # When they never agree, the claim below says what is missing.
        with contextlib.suppress(TimeoutError):
            await wait_for(agree, timeout_s=_BOOKS_TIMEOUT_S, what="the books to agree")
        self.result.claim(
            "Turnout counted what the client saw, variant by variant",
            theirs == mine,
            f"client {mine}, Turnout {theirs}" if theirs != mine else mine,
        )

    async def _name_unstamped(self) -> None:
        """Envoy's total stands; Turnout knows reasons, and what it does not know is unknown."""
        total = sum(self.result.unstamped.values())
        reasons: dict[str, int] = {}

        async def all_named() -> bool:
            nonlocal reasons
            results = await self.console.results(self.experiment)
            reasons = {name: count for name, count in results.unstamped.items() if count}
            return sum(reasons.values()) >= total

        if total:
            with contextlib.suppress(TimeoutError):
                await wait_for(all_named, timeout_s=_REASONS_TIMEOUT_S, what="all reasons")
        unknown = total - sum(reasons.values())
        if reasons and unknown >= 0:
            reasons["unknown"] = reasons.get("unknown", 0) + unknown
            self.result.unstamped = {name: count for name, count in reasons.items() if count}

    async def variant_results(self) -> dict[str, VariantResult]:
        """Turnout's figures over all epochs, by variant."""
        results = await self.console.results(self.experiment)
        return {row.variant: row for row in results.variants}
