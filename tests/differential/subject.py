"""What is judged: the sidecar's plan and processor, asked in a world, and their answers read.

Owns the adapters alone. An answer is read with the protobuf library, strictly: what else it says
than headers to set and a cleared route cache is an error here.
"""

from __future__ import annotations

from typing import Final

from sidecar.outcome import DUPLICATE_UNIT, INVALID_TOKEN, Answer
from sidecar.plan import Plan
from sidecar.processor import process
from tests.differential.oracle import Meaning, World
from turnout.envoy.ext_proc_pb2 import HeaderValueOption, ProcessingResponse
from turnout.v1alpha1.snapshot_pb2 import Snapshot

Key = tuple[str, int, str]
# As a request's headers; answers above that would be cut off by Envoy.
ANSWER_BYTES_MAX: Final = 64 * 1024


def keys_of(snapshot: Snapshot) -> list[Key]:
    """Every (experiment, epoch, variant); its index is its decided counter here."""
    return [(e.name, e.epoch, v.name) for e in snapshot.experiments for v in e.variants]


def plan_of(world: World) -> Plan:
    """The plan of a world."""
    return Plan.build(
        world.snapshot,
        tenant_key=world.key,
        dead=world.dead,
        open_gates=world.open_gates,
        slots={key: slot for slot, key in enumerate(keys_of(world.snapshot))},
        defaults=world.defaults,
        transparent=world.transparent,
    )


def process_in(world: World, plan: Plan, request: bytes) -> Answer:
    """The processor's answer to an encoded request."""
    return process(plan, request, random_unit=lambda: world.chance, now_s=lambda: world.now_s)


def meaning_of(world: World, answer: Answer) -> Meaning:
    """What an answer says and counts."""
    keys = keys_of(world.snapshot)
    assert len(set(answer.slots)) == len(answer.slots), answer
    return Meaning(
        headers=None if answer.response is None else headers_of(answer.response),
        outcome=answer.outcome.name,
        target=answer.target,
        duplicate_unit=bool(answer.flags & DUPLICATE_UNIT),
        invalid_token=bool(answer.flags & INVALID_TOKEN),
        decided=frozenset(keys[slot] for slot in answer.slots),
    )


def headers_of(response: bytes) -> dict[str, bytes]:
    """The headers that an encoded ProcessingResponse sets."""
    assert len(response) <= ANSWER_BYTES_MAX
    message = ProcessingResponse.FromString(response)
    options = message.request_headers.response.header_mutation.set_headers
    headers = {option.header.key: option.header.raw_value for option in options}
    assert len(headers) == len(options), "a header is set twice"
    wanted = ProcessingResponse()
    common = wanted.request_headers.response
    common.clear_route_cache = True
    for name, value in headers.items():
        option = common.header_mutation.set_headers.add()
        option.header.key, option.header.raw_value = name, value
        option.append_action = HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
    assert message == wanted, "an answer sets headers and clears the route cache, no more"
    return headers
