"""Both ways to read a request agree, on what Envoy writes and on what nobody should."""

from __future__ import annotations

from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from sidecar.plan import Plan
from sidecar.requests import PAGE_BYTES_MAX, Decoder, MalformedRequest, Page, page_of, read_headers
from tests.sidecar.samples import build, request, snapshot, target
from turnout.envoy.ext_proc_pb2 import ProcessingRequest
from turnout.v1alpha1.snapshot_pb2 import Snapshot

Read = tuple[str, bytes, dict[str, bytes], dict[str, bytes] | None]


def plan() -> Plan:
    message = snapshot()
    message.targets.append(target("other", hosts=["other"]))
    return build(message)


PLAN = plan()
# Learns from example to example, as it does from request to request.
DECODER = Decoder(PLAN.matcher)


def seen(page: Page, headers: dict[str, bytes], first: dict[str, bytes] | None) -> Read:
    plain = {name: value for name, value in headers.items() if not name.startswith(":")}
    fitting = ",".join(candidate.target.name for candidate in page.candidates)
    return fitting, page.path, plain, first


def by_protobuf(data: bytes) -> Read | None:
    try:
        headers, first = read_headers(data)
    except MalformedRequest:
        return None
    return seen(page_of(PLAN.matcher, headers), headers, first)


def agree(data: bytes) -> bool:
    """Whether the quick way read it; it must then have read it as protobuf does."""
    found = DECODER.quick(data)
    if found is None:
        return False
    assert seen(*found, None) == by_protobuf(data)
    return True


def names() -> st.SearchStrategy[str]:
    return st.sampled_from(
        [
            "x-user-id",
            "cookie",
            "x-country",
            "a",
            "x" * 127,
            "x" * 200,
            "\N{SNOWMAN}",
            ":path",
            ":scheme",
            "",
        ]
    )


def values() -> st.SearchStrategy[bytes]:
    odd = [b"", b"\n", b"\n\x09x-user-id\x1a\x01u", b"v" * 99, b"v" * 127, b"v" * 128, b"v" * 300]
    return st.one_of(st.sampled_from(odd), st.binary(max_size=20), st.just(b"v" * 20_000))


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """Mostly what Envoy writes."""
    message = ProcessingRequest()
    headers = message.request_headers.headers.headers
    pseudo = [
        (":authority", draw(st.sampled_from([b"any", b"other", b"OTHER:80", b""]))),
        (":path", draw(st.sampled_from([b"/v2", b"/v2/models?q=1", b"/", b"/v2/" + b"p" * 200]))),
        (":method", draw(st.sampled_from([b"GET", b"POST"]))),
    ]
    if draw(st.integers(0, 9)) == 0:
        pseudo = draw(st.permutations(pseudo))[: draw(st.integers(0, 3))]
    for name, value in (*pseudo, *draw(st.lists(st.tuples(names(), values()), max_size=4))):
        headers.add(key=name, raw_value=value)
        if draw(st.integers(0, 30)) == 0:
            headers[-1].value = "text"
    message.request_headers.end_of_stream = draw(st.booleans())
    tail = draw(
        st.sampled_from(
            [b"B\0Z\0", b"Z\0", b"", b"\x1a\0", b"\x12\0", b"\x12\x02\x18\x01", b"\xff"]
        )
    )
    return message.SerializeToString() + tail


def ordinary(unit: bytes) -> bytes:
    return request(("x-country", b"DE"), ("x-user-id", unit)) + b"B\0Z\0"


@given(messages())
@settings(max_examples=600, deadline=None)
@example(ordinary(b"u"))
@example(ordinary(b"u") + b"\x12\0")
@example(request(("x-user-id", b"u"), ("x-user-id", b"v")) + b"B\0Z\0")
def test_both_ways_read_the_same_when_envoy_or_another_wrote_it(data: bytes) -> None:
    event(f"quick: {agree(data)}")


@given(st.binary(max_size=40), st.integers(0, 120), st.integers(0, 40), st.binary(max_size=3))
@settings(max_examples=1_500, deadline=None)
def test_both_ways_read_the_same_when_bytes_are_cut_or_put_in(
    unit: bytes, at: int, cut: int, put: bytes
) -> None:
    data = ordinary(unit)
    agree(data)
    event(f"quick: {agree(data[:at] + put + data[at + cut :])}")


@given(st.integers(0, 110), st.integers(0, 255))
@settings(max_examples=1_500, deadline=None)
def test_both_ways_read_the_same_when_a_byte_is_another(at: int, value: int) -> None:
    data = bytearray(ordinary(b"user-12345"))
    data[at % len(data)] = value
    agree(bytes(data))


def test_the_quick_way_reads_what_envoy_writes() -> None:
    """Recorded of Envoy 1.40: GET /v2/models/fraud/infer, three pseudo-headers and the unit."""
    recorded = (
        b"\x12e\na\n\x18\n\n:authority\x1a\nfraud.test\n\x1f\n\x05:path\x1a\x16/v2/models/fraud/infer"
        b"\n\x0e\n\x07:method\x1a\x03GET\n\x14\n\tx-user-id\x1a\x07user-49\x18\x01B\x00Z\x00"
    )
    assert agree(recorded)
    for length in (1, 90, 120, 127, 128, 129, 2_000):
        assert agree(ordinary(b"u" * length)), length


def test_long_pages_are_read_and_not_remembered() -> None:
    decoder = Decoder(plan().matcher)
    for number in range(10):
        path = b"/v2/%d?" % number + b"q" * PAGE_BYTES_MAX
        found = decoder.quick(request(path=path))
        assert found is not None
        assert found[0].path == path
    assert not decoder._pages


def test_what_is_remembered_is_bounded() -> None:
    decoder = Decoder(build(Snapshot(format=1, tenant="risk", version=1)).matcher)
    for number in range(5_000):
        data = request((f"x-{number}", b"v" * (number % 400)), path=b"/%d" % number)
        decoder.quick(data + b"B\0")
    sizes = [len(known) for known in (decoder._pages, decoder._names, decoder._heads)]
    assert all(0 < size <= limit for size, limit in zip(sizes, (1_024, 512, 4_096), strict=True))
