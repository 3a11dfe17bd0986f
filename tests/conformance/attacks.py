"""Attacks one server, and measures what that costs it and everybody else.

    python -m tests.conformance.attacks --report                  # ours, and two others beside it
    python -m tests.conformance.attacks --report --server wire --only 1,12

Owns the process that attacks, the measures of the process that is attacked, and the table. Refuses
to start a server for longer than one attack of the table. Everything stays on Unix sockets.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Final, NamedTuple, Self

from sidecar.wire.limits import ALL_BUFFERED_BYTES_MAX
from tests.conformance.attacker import Outcome, attack
from tests.conformance.floods import ATTACKS, Attack, End
from tests.conformance.servers import KINDS, ROOT, Address, Kind, Server
from tests.conformance.steady import SteadyClient, percentile

SECONDS_MAX: Final = 3.0
BYTES_MAX: Final = 4_000_000_000
# What an attack may cost (the goal; tests allow for a noisy machine).
CLOSED_S: Final = 1.0
CLOSED_BYTES: Final = 1_000_000
CPU_S: Final = 0.2
GROWTH_BYTES: Final = 4 * 1024 * 1024
# Of many connections: what they may hold together, and reading it.
CROWD_BYTES: Final = ALL_BUFFERED_BYTES_MAX + 8 * 1024 * 1024
OTHERS_P99_S: Final = 0.020
# What the kernel holds for a peer that reads nothing does not cost the server anything.
KERNEL_BYTES: Final = 1_000_000
QUIET_S: Final = 0.5
POLL_S: Final = 0.005
PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
RESULT_S: Final = 90.0


class Cost(NamedTuple):
    """What one attack did.

    Attributes:
        outcome: How the attacker's connection ended.
        cpu_s: CPU time of the server beyond that of the steady client's requests.
        growth_bytes: Its largest resident size during the attack, beyond that before it.
        others_p99_s: What the steady client waited meanwhile.
        others_net_p99_s: The same without the time that the machine gave neither of them a CPU.
        others_error: Why the steady client gave up; "" = it did not.
    """

    outcome: Outcome
    cpu_s: float
    growth_bytes: int
    others_p99_s: float
    others_net_p99_s: float
    others_error: str


class Attackers:
    """A process that attacks on command; a context manager.

    Not this process: here the steady client keeps time, and one interpreter runs one thread.
    """

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.conformance.attacks", "--obey"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
        self._waiting: dict[int, Future[Outcome]] = {}
        self._number = 0
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,))
        self._reader.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process.wait()

    def begin(
        self, one: Attack, address: Address, *, seconds: float, bytes_max: int = BYTES_MAX
    ) -> Future[Outcome]:
        """Start an attack; several may run at once."""
        self._number += 1
        done = self._waiting[self._number] = Future()
        order = [self._number, one.number, str(address), seconds, bytes_max]
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return done

    def _read(self, lines: IO[str]) -> None:
        for line in lines:
            number, error, outcome = json.loads(line)
            if error:
                self._waiting.pop(number).set_exception(OSError(error))
            else:
                self._waiting.pop(number).set_result(Outcome(*outcome))
        for left in self._waiting.values():
            left.set_exception(EOFError("the attacking process ended"))


def obey() -> None:
    """Attack as the lines of stdin say, each in a thread of its own."""
    speaking = threading.Lock()

    def say(what: object) -> None:
        with speaking:
            print(json.dumps(what), flush=True)

    def run(number: int, one: int, address: str, seconds: float, bytes_max: int) -> None:
        where, what = Address.parse(address), ATTACKS[one - 1].run
        try:
            outcome = attack(where, what, seconds=seconds, bytes_max=bytes_max)
        except OSError as error:
            say([number, str(error), None])
        else:
            say([number, "", outcome])

    threads = []
    for line in sys.stdin:
        threads.append(threading.Thread(target=run, args=json.loads(line)))
        threads[-1].start()
    for thread in threads:
        thread.join()


# -- Measuring -------------------------------------------------------------------------------------


def cpu_s(pid: int) -> float:
    """CPU time of all threads of a process."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def resident_bytes(pid: int) -> int:
    """Resident size of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES


def quiet_share(server: Server, client: SteadyClient) -> float:
    """CPU time per second of a server that serves the steady client alone."""
    start, before = time.monotonic(), cpu_s(server.pid)
    asked = len(client.waits)
    while time.monotonic() - start < QUIET_S or len(client.waits) - asked < 20:
        assert client.error is None, f"the server fails a well-behaved client: {client.error}"
        time.sleep(POLL_S)
    return (cpu_s(server.pid) - before) / (time.monotonic() - start)


def measure(
    server: Server,
    client: SteadyClient,
    attackers: Attackers,
    attacks: Sequence[Attack],
    *,
    share: float,
    seconds: float = SECONDS_MAX,
) -> list[Cost]:
    """Attack, all at once if there are several; costs are those of all together.

    Args:
        server: Attacked.
        client: Asks meanwhile.
        attackers: Attack.
        attacks: What.
        share: CPU time per second that the server takes anyway.
        seconds: After which an attack gives up.
    """
    start, before, size = time.monotonic(), cpu_s(server.pid), resident_bytes(server.pid)
    running = [attackers.begin(one, server.address, seconds=seconds) for one in attacks]
    largest = size
    while not all(one.done() for one in running):
        largest = max(largest, resident_bytes(server.pid))
        if time.monotonic() - start > RESULT_S:
            raise AssertionError("the attackers hang")
        time.sleep(POLL_S)
    # What is still queued in the server is served, and paid for, before the next answer.
    asked, answered_by = len(client.waits), time.monotonic() + SECONDS_MAX
    while len(client.waits) < asked + 5 and client.error is None:
        if time.monotonic() > answered_by:
            break
        time.sleep(POLL_S)
    end = time.monotonic()
    spent = cpu_s(server.pid) - before - share * (end - start)
    growth = max(largest, resident_bytes(server.pid)) - size
    waits = client.since(start, end)
    others = percentile([one.seconds for one in waits], 0.99)
    net = percentile([one.seconds - one.queued_s for one in waits], 0.99)
    error = "" if client.error is None else str(client.error)
    return [Cost(one.result(), spent, growth, others, net, error) for one in running]


def complaints(one: Attack, cost: Cost, *, margin: float = 1.0) -> list[str]:
    """What the server should have done better; empty = nothing.

    Args:
        one: The attack.
        cost: What it did.
        margin: By which times, CPU and memory may exceed their bounds.
    """
    found = []
    closed_s, sent = cost.outcome.closed_s, cost.outcome.sent
    if one.end is End.CLOSED and not (
        closed_s is not None and (closed_s <= CLOSED_S * margin or sent <= CLOSED_BYTES)
    ):
        found.append(f"closed after {closed_s} s, {sent:,} bytes")
    if one.end is End.DEADLINE and not (
        closed_s is not None and 0.5 * one.deadline_s <= closed_s <= one.deadline_s + margin
    ):
        found.append(f"closed after {closed_s} s, its deadline is {one.deadline_s:g} s")
    held = cost.outcome.stuck and sent <= CLOSED_BYTES + KERNEL_BYTES
    if one.end is End.HELD and closed_s is None and not held:
        found.append(f"neither closed nor held back after {sent:,} bytes")
    busy = one.end in (End.WORK, End.CROWD)
    if cost.cpu_s > CPU_S * margin and not busy:
        found.append(f"{cost.cpu_s:.2f} CPU-s")
    most = CROWD_BYTES if one.end is End.CROWD else GROWTH_BYTES * margin
    if cost.growth_bytes > most:
        found.append(f"{cost.growth_bytes / 1e6:.1f} MB more")
    if cost.others_net_p99_s > OTHERS_P99_S * margin:
        found.append(f"others wait {cost.others_net_p99_s * 1e3:.0f} ms")
    if cost.others_error:
        found.append(f"a well-behaved client was cut off: {cost.others_error}")
    return found


# -- The table -------------------------------------------------------------------------------------


def cell(one: Attack, cost: Cost) -> str:
    """One cell of the table."""
    outcome = cost.outcome
    if outcome.closed_s is None:
        end = "held" if outcome.stuck else "open"
    else:
        end = f"{outcome.closed_s:.2f} s" if outcome.closed_s >= 0.005 else "at once"
    numbers = (
        f"{outcome.sent / 1e6:.1f} MB; {max(cost.cpu_s, 0):.2f} s; "
        f"+{cost.growth_bytes / 1e6:.1f} MB; {cost.others_p99_s * 1e3:.0f} "
        f"({cost.others_net_p99_s * 1e3:.0f}) ms"
    )
    cut = ", **others cut off**" if cost.others_error else ""
    mark = "" if not complaints(one, cost) else " (!)"
    return f"{end}, {numbers}{cut}{mark}"


def report(kinds: Sequence[Kind], numbers: Sequence[int], seconds: float) -> int:
    """Print the table; the number of complaints about ours."""
    print(f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {os.cpu_count()} cores,", end=" ")
    print(f"{platform.machine()}, Python {platform.python_version()}; attacks of {seconds:g} s;")
    print("end of the connection, sent until then; CPU; memory; others' p99 (without waits for a")
    print("CPU that the machine did not give); (!) = over a bound\n")
    print("| # | attack | " + " | ".join(kinds) + " |\n|" + " --- |" * (2 + len(kinds)))
    bad = 0
    with Attackers() as attackers:
        for one in ATTACKS:
            if numbers and one.number not in numbers:
                continue
            cells = []
            for kind in kinds:
                limit = max(seconds, one.deadline_s + 2.0) if one.deadline_s else seconds
                with ExitStack() as stack:
                    server = stack.enter_context(Server(kind))
                    client = stack.enter_context(SteadyClient(server.address, pid=server.pid))
                    share = quiet_share(server, client)
                    (cost,) = measure(server, client, attackers, [one], share=share, seconds=limit)
                cells.append(cell(one, cost))
                if kind == "wire":
                    bad += len(complaints(one, cost))
            print(f"| {one.number} | {one.name} | " + " | ".join(cells) + " |", flush=True)
    return bad


def main() -> None:
    """Attack as stdin says, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--obey", action="store_true", help="attack as stdin says")
    parser.add_argument("--report", action="store_true", help="print the table")
    parser.add_argument("--server", choices=KINDS, action="append", help="default: all three")
    parser.add_argument("--only", default="", help="numbers, separated by commas")
    parser.add_argument("--seconds", type=float, default=SECONDS_MAX, help="of one attack")
    options = parser.parse_args()
    if options.obey:
        obey()
    elif options.report:
        numbers = [int(number) for number in options.only.split(",") if number]
        sys.exit(bool(report(options.server or KINDS, numbers, options.seconds)))
    else:
        parser.error("say --report")


if __name__ == "__main__":
    main()
