"""Small valid snapshots, requests and entries that a test changes where it matters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sidecar.accesslog import Entry
from sidecar.outcome import Answer
from sidecar.plan import Plan
from sidecar.processor import process
from turnout.envoy.ext_proc_pb2 import ProcessingRequest, ProcessingResponse
from turnout.v1alpha1.common_pb2 import BAD_EVENT_KIND_ERROR, BAD_EVENT_KIND_SLOW
from turnout.v1alpha1.snapshot_pb2 import ExperimentPlan, Snapshot, TargetPlan, VariantPlan

KEY = bytes(range(32))
EPOCH_START_MS = 1_700_000_000_000
NOW_S = 1_760_000_000.0
Headers = Iterable[tuple[str, bytes]]


def target(name: str = "fraud", **fields: Any) -> TargetPlan:
    plan = TargetPlan(name=name, path_prefix="/v2", **fields)
    plan.baseline.cluster = f"turnout.{name}.base"
    plan.baseline.upstream.address = "v1:8080"
    return plan


def variant(name: str, *ranges: tuple[int, int], control: bool = False) -> VariantPlan:
    plan = VariantPlan(name=name, control=control)
    for start, end in ranges:
        plan.ranges.add(start=start, end=end)
    plan.cluster.cluster = f"turnout.fraud.{name}"
    plan.cluster.upstream.address = f"{name}:8080"
    return plan


def experiment(
    name: str = "fraud-v2",
    *,
    epoch: int = 1,
    share: int = 100_000,
    warm_up_ms: int = 0,
    thresholds_ms: Iterable[int] = (),
) -> ExperimentPlan:
    """`share` parts per million go to v2, at the end of the buckets."""
    plan = ExperimentPlan(
        name=name,
        epoch=epoch,
        epoch_start_unix_ms=EPOCH_START_MS,
        target="fraud",
        layer="models",
        salt="salt",
        kinds=[BAD_EVENT_KIND_ERROR, BAD_EVENT_KIND_SLOW],
    )
    plan.unit.header = "x-user-id"
    plan.slow_after.FromMilliseconds(200)
    plan.warm_up.FromMilliseconds(warm_up_ms)
    for threshold_ms in thresholds_ms:
        plan.latency_thresholds.add().FromMilliseconds(threshold_ms)
    edge = 1_000_000 - share
    plan.variants.append(variant("control", *([(0, edge)] if edge else []), control=True))
    plan.variants.append(variant("v2", *([(edge, 1_000_000)] if share else [])))
    return plan


def measured(*, epoch: int) -> Snapshot:
    """One whose experiment has a warm-up that ends within a time bucket, and several SLOs."""
    plan = Snapshot(format=1, tenant="risk", version=7)
    plan.targets.append(target())
    plan.experiments.append(experiment(epoch=epoch, warm_up_ms=12_345, thresholds_ms=(250, 300)))
    return plan


def snapshot(*, share: int = 100_000, epoch: int = 1) -> Snapshot:
    plan = Snapshot(format=1, tenant="risk", version=7)
    plan.targets.append(target())
    plan.experiments.append(experiment(share=share, epoch=epoch))
    return plan


def build(
    message: Snapshot,
    *,
    dead: Mapping[str, int] | None = None,
    open_gates: Iterable[tuple[str, int]] | None = None,
    slots: Mapping[tuple[str, int, str], int] | None = None,
    defaults: Mapping[str, str] | None = None,
    transparent: bool = False,
) -> Plan:
    return Plan.build(
        message,
        tenant_key=KEY,
        dead=dead or {},
        open_gates=None if open_gates is None else set(open_gates),
        slots=slots or {},
        defaults=defaults,
        transparent=transparent,
    )


def request(*extra: tuple[str, bytes], path: bytes = b"/v2/x", host: bytes = b"a") -> bytes:
    message = ProcessingRequest()
    pseudo = [(":authority", host), (":path", path), (":method", b"POST")]
    message.request_headers.headers.SetInParent()
    for name, value in [*pseudo, *extra]:
        message.request_headers.headers.headers.add(key=name, raw_value=value)
    return message.SerializeToString()


def ask(plan: Plan, *extra: tuple[str, bytes], **where: bytes) -> Answer:
    return process(plan, request(*extra, **where), random_unit=no_random, now_s=lambda: NOW_S)


def no_random() -> bytes:
    raise AssertionError("no random unit was needed")


def stamped(answer: Answer) -> dict[str, bytes]:
    """The headers that an answer sets."""
    assert answer.response is not None, answer
    message = ProcessingResponse.FromString(answer.response)
    options = message.request_headers.response.header_mutation.set_headers
    headers = {option.header.key: option.header.raw_value for option in options}
    assert len(headers) == len(options), "a header is set twice"
    return headers


def entry(**changes: Any) -> Entry:
    fields: dict[str, Any] = {
        "start_ms": EPOCH_START_MS + 5_000,
        "latency_ms": 20.0,
        "duration_ms": 20.0,
        "upstream_ms": 19.0,
        "status": 200,
        "flags": 0,
        "grpc_status": None,
        "stamp": stamp(),
        "shadow_of": "",
        "request_id": "r-1",
        "route_name": "turnout/fraud/stamped",
        "upstream_cluster": "turnout.fraud.v2",
        "call_status": 0,
    }
    return Entry(**(fields | changes))


def stamp(
    variant_name: str = "v2", unit: int = 1, *, epoch: int = 1, name: str = "fraud-v2"
) -> str:
    return f"{name};{epoch};{variant_name};0;{unit:016x}"
