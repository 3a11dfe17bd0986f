"""The life of one request: the bytes Envoy sent, to the bytes it gets back.

Owns the order of the tests (target, unit, segment, bucket) and what each outcome is called. Refuses
what is not a request-headers message. No clock, no chance (a random unit is asked of the caller),
no state: counting is the caller's, with the outcome.

Values are never decoded: a unit with invalid UTF-8 is a unit. Empty is no unit; longer than
UNIT_BYTES_MAX is an invalid one. Of two unit headers the first counts.
"""

from collections.abc import Callable, Mapping
from typing import Final

from google.protobuf.message import DecodeError

from sidecar.outcome import DUPLICATE_UNIT, Answer, Outcome
from sidecar.plan import NO_SLOT, Experiment, Plan, Target
from sidecar.predicates import REPEATED
from turnout.contract import UNIT_BYTES_MAX
from turnout.envoy.ext_proc_pb2 import ProcessingRequest

RANDOM_UNIT_BYTES: Final = 16


class MalformedRequest(ValueError):
    """The peer sent what is not a ProcessingRequest with request headers."""


# Answers that need no plan.
ANSWER_NO_SNAPSHOT: Final = Answer(None, Outcome.NO_SNAPSHOT, "", (), 0)
ANSWER_SHED: Final = Answer(None, Outcome.SHED, "", (), 0)
_ANSWER_NO_TARGET: Final = Answer(None, Outcome.NO_TARGET, "", (), 0)


def process(plan: Plan, request: bytes, *, random_unit: Callable[[], bytes]) -> Answer:
    """Decide one request.

    Args:
        plan: The plan that serves.
        request: One encoded ProcessingRequest.
        random_unit: Makes RANDOM_UNIT_BYTES fresh random bytes; called only for random units.

    Raises:
        MalformedRequest: The bytes are not a ProcessingRequest with request headers.
    """
    headers, repeated = read_headers(request)
    target = plan.match(headers)
    if target is None:
        return _ANSWER_NO_TARGET
    experiment = target.experiment
    if experiment is None:
        return _unstamped(Outcome.NO_EXPERIMENT, target)
    if not experiment.open:
        return _unstamped(Outcome.WAITING, target)
    unit, duplicate = unit_of(experiment, headers, repeated, random_unit)
    if not unit:
        return _unstamped(Outcome.NO_UNIT, target, duplicate)
    if len(unit) > UNIT_BYTES_MAX:
        return _unstamped(Outcome.INVALID_UNIT, target, duplicate)
    segment = experiment.segment
    if segment is not None and not segment(headers):
        return _unstamped(Outcome.NOT_IN_SEGMENT, target, duplicate)
    arm = experiment.assign(unit)
    response = arm.head + plan.hasher.hex_digits(unit) + arm.tail
    slots = (arm.slot,) if arm.slot != NO_SLOT else ()
    return Answer(response, Outcome.STAMPED, target.name, slots, DUPLICATE_UNIT * duplicate)


def _unstamped(outcome: Outcome, target: Target, duplicate_unit: bool = False) -> Answer:
    return Answer(target.default, outcome, target.name, (), DUPLICATE_UNIT * duplicate_unit)


def unit_of(
    experiment: Experiment,
    headers: Mapping[str, bytes],
    repeated: Mapping[str, bytes] | None,
    random_unit: Callable[[], bytes],
) -> tuple[bytes, bool]:
    """What is kept on one variant, and whether there were several of it.

    Args:
        experiment: Whose unit.
        headers: As `read_headers` gives them.
        repeated: Likewise.
        random_unit: As in `process`.

    Returns:
        The unit, empty when the request has none; True when the first of several was taken.
    """
    if experiment.header:
        if repeated is not None and experiment.header in repeated:
            return repeated[experiment.header], True
        return headers.get(experiment.header, b""), False
    if experiment.random:
        return random_unit(), False
    return _cookie(experiment, headers.get("cookie", b""))


def read_headers(request: bytes) -> tuple[dict[str, bytes], dict[str, bytes] | None]:
    """Values by name, repeated ones joined; and the first value of each repeated name.

    Raises:
        MalformedRequest: As `process`.
    """
    try:
        message = ProcessingRequest.FromString(request)
    except DecodeError as error:
        raise MalformedRequest("not an encoded ProcessingRequest") from error
    if not message.HasField("request_headers"):
        raise MalformedRequest(f"no request headers but {message.WhichOneof('request')}")
    headers: dict[str, bytes] = {}
    first: dict[str, bytes] | None = None
    for header in message.request_headers.headers.headers:
        name = header.key
        if name not in headers:
            headers[name] = header.raw_value
            continue
        if first is None:
            first = {}
        first.setdefault(name, headers[name])
        # RFC 9113 section 8.2.3 for cookies; the others are looked at one by one (`predicates`).
        separator = b"; " if name == "cookie" else REPEATED
        headers[name] += separator + header.raw_value
    return headers, first


def _cookie(experiment: Experiment, cookies: bytes) -> tuple[bytes, bool]:
    """The first cookie of the unit's name, and whether there are more of that name."""
    values = [
        value.strip()
        for name, equals, value in (pair.partition(b"=") for pair in cookies.split(b";"))
        if equals and name.strip() == experiment.cookie
    ]
    return (values[0], len(values) > 1) if values else (b"", False)
