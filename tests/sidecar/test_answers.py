"""Answers written by hand are what protobuf writes, whatever their lengths."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.answers import NO_SLOT, Arm, Assembler, Encoded, encode, encoded_arm, template
from sidecar.outcome import Outcome, Tally
from turnout.envoy.ext_proc_pb2 import HeaderValueOption, ProcessingResponse

TALLY = Tally("fraud", Outcome.STAMPED)
HASH = b"0123456789abcdef"


def by_protobuf(headers: list[tuple[str, bytes]]) -> bytes:
    response = ProcessingResponse()
    common = response.request_headers.response
    for name, value in headers:
        option = common.header_mutation.set_headers.add(
            append_action=HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
        )
        option.header.key = name
        option.header.raw_value = value
    common.header_mutation.SetInParent()
    common.clear_route_cache = True
    return response.SerializeToString(deterministic=True)


names = st.text("abcxyz-", min_size=1, max_size=200)
# Lengths around those at which a varint grows.
values = st.sampled_from([0, 1, 90, 127, 128, 129, 2_000, 16_383, 16_384, 40_000]).map(bytes)


@given(st.lists(st.tuples(names, values), max_size=5))
@settings(max_examples=200, deadline=None)
def test_answer_is_what_protobuf_writes(headers: list[tuple[str, bytes]]) -> None:
    assert encode(headers) == by_protobuf(headers)


def arm(layer: str, *, parameters: int = 1, copied: bool = False, long: int = 0) -> Arm:
    return Arm(
        experiment=f"{layer}-x",
        epoch=7,
        layer=layer,
        variant="v2",
        cluster="turnout.fraud.v2" if layer == "models" else "",
        parameters=tuple((f"x-param-{layer}-{n}", "v" * long) for n in range(parameters)),
        shadow=("v3", "turnout.fraud.v3") if copied else None,
        forced=False,
        unit=0,
        slot=NO_SLOT if layer == "c" else len(layer),
    )


def headers_of(response: bytes) -> dict[str, bytes]:
    common = ProcessingResponse.FromString(response).request_headers.response
    assert common.clear_route_cache
    options = common.header_mutation.set_headers
    assert all(
        option.append_action == HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD for option in options
    )
    return {option.header.key: option.header.raw_value for option in options}


@given(
    st.lists(st.sampled_from(["models", "a", "bb", "c", "dddd"]), min_size=1, unique=True),
    st.integers(0, 16),
    st.sampled_from([0, 1, 60, 127, 256]),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_assembled_answer_says_what_the_template_says(
    layers: list[str], parameters: int, long: int, copied: bool
) -> None:
    ordered = sorted(layers, key=lambda layer: (layer != "models", layer))
    arms = [
        arm(layer, parameters=parameters, long=long, copied=copied and layer == "models")
        for layer in ordered
    ]
    filled = template(arms, TALLY, baseline="base").filled(lambda _place: HASH)
    parts: list[Encoded] = [encoded_arm(one) for one in arms]
    assembler = Assembler("base")
    for _ in range(2):  # the second time from remembered heads
        assert headers_of(assembler.answer(parts, HASH)) == headers_of(filled)
    slots = [slot for part in parts for slot in part.slots]
    assert tuple(slots) == template(arms, TALLY, baseline="base").slots


def test_template_of_one_unit_is_joined_by_its_hash() -> None:
    found = template([arm("models"), arm("a")], TALLY, baseline="base")
    assert HASH.join(found.parts) == found.filled(lambda _place: HASH)
