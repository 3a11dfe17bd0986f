"""Commands for scripts: `turnout wait` and `turnout status`, whose exit codes are the answer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Annotated, Any, Final

import grpc
import typer

from control import clock
from control.commands.client import (
    DEFAULT_CONTROL,
    EXIT_NOT_FOUND,
    Client,
    ControlOption,
    TenantOption,
    command_with,
    connected,
    metadata,
    reference,
)
from control.commands.files import DEFAULT_TENANT
from control.commands.output import Format, FormatOption, print_data, print_line, state_of, summary
from control.model import document_of, durations
from turnout.completing import experiment_names
from turnout.v1alpha1.experiment_pb2 import REASON_STEPS_FINISHED, Experiment, State
from turnout.v1alpha1.experiment_service_pb2 import (
    GetExperimentRequest,
    WatchExperimentsRequest,
    WatchExperimentsResponse,
)

RECONNECT_S: Final = 1.0
# A watch is opened anew now and then: a peer that vanished without a word must not be waited for.
WATCH_S: Final = 15.0
# What passes: the control plane stops, is away or is slow.
_PASSING: Final = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
)
ENDED: Final = ("PROMOTED", "ROLLED_BACK", "STOPPED", "INCONCLUSIVE")
STATES: Final = tuple(name.removeprefix("STATE_") for name in State.keys()[1:])
ANY_END: Final = "ENDED"

EXIT_OTHER: Final = 1
EXIT_TIMEOUT: Final = 124  # as of timeout(1)
EXIT_BY_STATE: Final = {"PROMOTED": 0, "ROLLED_BACK": 10, "INCONCLUSIVE": 11, "STOPPED": 12}
EXIT_GOING_ON: Final = 13
EXIT_HELD: Final = 14

_COMMON: Final = (
    "2 usage, 3 an argument is invalid, 4 not found (or deleted meanwhile), 6 control plane "
    "unreachable"
)
WAIT_CODES: Final = (
    f"Exit codes: 0 reached, 1 it ended in another state, {_COMMON}, 124 not within --timeout."
)
STATUS_CODES: Final = (
    f"Exit codes: 0 promoted, 1 failed, {_COMMON}, 10 rolled back, 11 inconclusive, 12 stopped, "
    "13 not ended (draft, running, paused, awaiting approval), 14 all steps have passed and it "
    "waits for promote, rollback or stop, 124 not ended within --timeout."
)

NameArgument = Annotated[
    str,
    typer.Argument(help="The experiment.", metavar="NAME", autocompletion=experiment_names),
]


def _state_words(incomplete: str) -> list[str]:
    """States as they are typed, after those that were typed before."""
    before, comma, last = incomplete.rpartition(",")
    words = (_typed(name) for name in (*STATES, ANY_END))
    return [f"{before}{comma}{word}" for word in words if word.startswith(last)]


class Gone(Exception):
    """The experiment was deleted."""


class TimedOut(Exception):
    """The time is over.

    Attributes:
        lost: Why the control plane could not be asked at the end; "" = it could.
    """

    def __init__(self, lost: str) -> None:
        super().__init__(lost)
        self.lost = lost


@command_with(WAIT_CODES)
def wait(
    name: NameArgument,
    states: Annotated[
        str,
        typer.Option(
            "--for",
            help="STATE[,STATE]: the first that is reached ends it.",
            autocompletion=_state_words,
        ),
    ],
    timeout: Annotated[
        str, typer.Option("--timeout", help='Like "90s" or "10m"; 0s looks once.')
    ] = "10m",
    control: ControlOption = DEFAULT_CONTROL,
    tenant: TenantOption = DEFAULT_TENANT,
    output: FormatOption = Format.TABLE,
) -> None:
    """Wait until an experiment is in a state; fail when it cannot get there any more.

    States are draft, running, paused, awaiting-approval, promoted, rolled-back, stopped,
    inconclusive; `ended` is any of the last four. A control plane that is lost meanwhile is waited
    for as well.

    \b
      turnout wait fraud-v2 --for=promoted --timeout 6h
      turnout wait fraud-v2 --for=running,paused
      turnout wait fraud-v2 --for=ended && turnout status fraud-v2
    """  # noqa: D301 - click reads the escape
    wanted = _states(states)
    found = _reference(name, tenant)
    timeout_s = _seconds(timeout)
    last: Experiment | None = None
    code = EXIT_TIMEOUT
    with connected(control) as client:
        try:
            for last in _follow(client, found, control, timeout_s):
                state = state_of(last.status)
                if state in wanted:
                    code = 0
                    break
                if state in ENDED:
                    code = EXIT_OTHER
                    break
        except Gone as error:
            raise typer.Exit(_say_gone(found)) from error
        except TimedOut as error:
            _say_timeout(timeout, last, error)
    _show(last, output)
    raise typer.Exit(code)


@command_with(STATUS_CODES)
def status(
    name: NameArgument,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Print every change until it has ended.")
    ] = False,
    timeout: Annotated[
        str | None, typer.Option("--timeout", help='With --watch: at most this long, like "6h".')
    ] = None,
    control: ControlOption = DEFAULT_CONTROL,
    tenant: TenantOption = DEFAULT_TENANT,
    output: FormatOption = Format.TABLE,
) -> None:
    """Say where an experiment is, in one line and in the exit code: for CI.

    \b
      turnout status fraud-v2
      turnout start fraud-v2 && turnout status fraud-v2 --watch --timeout 12h
    """  # noqa: D301 - click reads the escape
    if timeout is not None and not watch:
        raise typer.BadParameter("say --watch as well", param_hint="--timeout")
    found = _reference(name, tenant)
    timeout_s = _seconds(timeout) if timeout is not None else None
    with connected(control) as client:
        if not watch:
            last: Experiment | None = client.call(
                client.experiments.GetExperiment, GetExperimentRequest(name=found)
            )
            code = exit_code(last) if last is not None else EXIT_OTHER
        else:
            last, code = _watched(client, found, control, timeout_s, output)
    if not watch or output is not Format.TABLE:
        _show(last, output)
    raise typer.Exit(code)


def exit_code(experiment: Experiment) -> int:
    """What `turnout status` says of an experiment."""
    state = state_of(experiment.status)
    if state in EXIT_BY_STATE:
        return EXIT_BY_STATE[state]
    held = experiment.status.last_decision.reason == REASON_STEPS_FINISHED
    return EXIT_HELD if state == "RUNNING" and held else EXIT_GOING_ON


def _watched(
    client: Client, name: str, control: str, timeout_s: float | None, output: Format
) -> tuple[Experiment | None, int]:
    """Print every change until there will be none; the last state and the code for it."""
    last, line = None, ""
    try:
        for last in _follow(client, name, control, timeout_s):
            now = summary(last)
            if output is Format.TABLE and now != line:
                print_line(now)
            line = now
            if exit_code(last) != EXIT_GOING_ON:
                return last, exit_code(last)
    except Gone as error:
        raise typer.Exit(_say_gone(name)) from error
    except TimedOut as error:
        _say_timeout(f"{timeout_s:g}s", last, error)
    return last, EXIT_TIMEOUT


def _follow(
    client: Client, name: str, control: str, timeout_s: float | None
) -> Iterator[Experiment]:
    """The experiment as it is, then as it becomes.

    Raises:
        Gone: It was deleted.
        TimedOut: The time is over.
        grpc.RpcError: The control plane cannot be asked, from the beginning.
    """
    deadline = None if timeout_s is None else clock.monotonic_s() + timeout_s
    lost, seen = "", False
    while True:
        try:
            # First plainly: a watch does not say that there is no such experiment (any more).
            yield client.call(client.experiments.GetExperiment, GetExperimentRequest(name=name))
            lost, seen = "", True
            for event in _events(client, name, _left(deadline, lost)):
                if event.type == WatchExperimentsResponse.TYPE_DELETED:
                    raise Gone
                yield event.experiment
        except grpc.RpcError as error:
            code = error.code()
            if seen and code is grpc.StatusCode.NOT_FOUND:
                raise Gone from error
            if not seen or code not in _PASSING:
                raise
            if code is grpc.StatusCode.DEADLINE_EXCEEDED:
                _left(deadline, lost)
                continue  # a slice of the watch is over
        if not lost:
            typer.echo(f"control plane at {control}: lost, trying again", err=True)
        lost = f"control plane at {control} is lost"
        threading.Event().wait(min(RECONNECT_S, _left(deadline, lost)))


def _left(deadline: float | None, lost: str) -> float:
    """Seconds for the next look, at most WATCH_S.

    Raises:
        TimedOut: There are none.
    """
    left = WATCH_S if deadline is None else deadline - clock.monotonic_s()
    if left <= 0:
        raise TimedOut(lost)
    return min(left, WATCH_S)


def _events(client: Client, name: str, timeout_s: float) -> Iterator[WatchExperimentsResponse]:
    parent = "/".join(name.split("/")[:2])
    request = WatchExperimentsRequest(parent=parent, name=name)
    call: Any = client.experiments.WatchExperiments(request, metadata=metadata(), timeout=timeout_s)
    try:
        yield from call
    finally:
        call.cancel()


def _states(text: str) -> frozenset[str]:
    wanted: set[str] = set()
    for word in text.split(","):
        state = word.strip().upper().replace("-", "_")
        if state == ANY_END:
            wanted.update(ENDED)
        elif state in STATES:
            wanted.add(state)
        else:
            known = ", ".join(_typed(name) for name in (*STATES, ANY_END))
            raise typer.BadParameter(f"{word!r} is no state; there are {known}", param_hint="--for")
    return frozenset(wanted)


def _typed(state: str) -> str:
    return state.lower().replace("_", "-")


def _seconds(text: str) -> float:
    duration = durations.parse(text)
    if duration is None:
        raise typer.BadParameter(f"{text!r} is not {durations.RULE}", param_hint="--timeout")
    return durations.milliseconds(duration) / 1000


def _reference(name: str, tenant: str) -> str:
    found = reference([name], tenant)
    if found.collection != "experiments":
        raise typer.BadParameter(f"{name!r} is no experiment")
    return str(found)


def _say_gone(name: str) -> int:
    typer.echo(f"{name} was deleted", err=True)
    return EXIT_NOT_FOUND


def _say_timeout(timeout: str, last: Experiment | None, error: TimedOut) -> None:
    state = f"it is {_typed(state_of(last.status))}" if last is not None else "nothing is known"
    more = f"; {error.lost}" if error.lost else ""
    typer.echo(f"not within {timeout}: {state}{more}", err=True)


def _show(experiment: Experiment | None, output: Format) -> None:
    if experiment is None:
        return
    if output is Format.TABLE:
        print_line(summary(experiment))
    else:
        print_data([document_of(experiment)], output)
