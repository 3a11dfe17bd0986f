"""What the control plane accepts, the sidecar serves and Envoy's files can say.

The two sides check by rules of their own. This draws resources whose fields come from pools of odd
values and asserts: no violation here means no violation there, at every step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.message import DecodeError
from hypothesis import event, given, settings
from hypothesis import strategies as st

from control.model import (
    shadow_at,
    split_at,
    unimplemented_experiment,
    unimplemented_target,
    validate_experiment,
    validate_target,
)
from control.snapshot import RunningExperiment, build, encode, grow
from sidecar.envoyfiles import documents
from sidecar.plan import Plan
from sidecar.snapshotcheck import validate
from tests.control.resources import EXPERIMENT, TARGET, document
from turnout.v1alpha1.common_pb2 import Predicate, Unit, Upstream
from turnout.v1alpha1.experiment_pb2 import ExperimentSpec
from turnout.v1alpha1.snapshot_pb2 import Snapshot
from turnout.v1alpha1.target_pb2 import TargetSpec

odd_texts = st.sampled_from(
    ["", "a", "A", "x-user", "*", "a b", " a", "a\n", "a\x00", "é", "a,b", "a;b", "a=b", '"', "(a)",
     ":path", "host", "x-turnout-a", "x-envoy-a", "x-param-a", "%", "${a}", "\u2028", "a" * 64,
     "a" * 65, "a" * 300, "~", "`", "|", "a.b", "a_b", "-a", "0"]
)  # fmt: skip
hosts = st.one_of(
    odd_texts, st.sampled_from(["*.a", "a:80", "[::1]", "[::1]:8080", "10.0.0.1", "*.a.b:81", "a."])
)
addresses = st.one_of(
    odd_texts,
    st.sampled_from(
        ["a:1", "a.b:65535", "[::1]:80", "10.1.2.3:8", "a_b:9", "a.:1", "a:070", "x:0"]
    ),
)
paths = st.one_of(odd_texts, st.sampled_from(["/", "/v2", "/a%20b", "/a//b", "/~!$&'()*+,;=:@"]))
fractions = st.sampled_from([0.0, 1e-6, 1e-7, 0.05, 1 / 3, 0.5, 0.999999, 1.0, 1.1, -0.1])


def leaves(draw: Any) -> Predicate:
    """A predicate with one header."""
    leaf = Predicate(header=draw(odd_texts))
    kind = draw(st.sampled_from(["equals", "prefix", "in_values", "present", "none"]))
    if kind == "in_values":
        leaf.in_values.extend(draw(st.lists(odd_texts, max_size=3)))
    elif kind == "present":
        leaf.present = draw(st.booleans())
    elif kind != "none":
        setattr(leaf, kind, draw(odd_texts))
    return leaf


@st.composite
def predicates(draw: Any) -> Predicate:
    """A predicate of up to two levels."""
    kind = draw(st.sampled_from(["leaf", "all", "any", "not"]))
    if kind == "leaf":
        return leaves(draw)
    if kind == "not":
        return Predicate(negated=leaves(draw))
    parts = [leaves(draw) for _ in range(draw(st.integers(0, 3)))]
    return Predicate(all=parts) if kind == "all" else Predicate(any=parts)


@st.composite
def targets(draw: Any) -> TargetSpec:
    """A good target with an odd field or none."""
    spec = document(TARGET).spec
    assert isinstance(spec, TargetSpec)
    changes: dict[str, Callable[[], Any]] = {
        "hosts": lambda: spec.match.hosts.append(draw(hosts)),
        "prefix": lambda: setattr(spec.match, "path_prefix", draw(paths)),
        "method": lambda: spec.match.methods.append(
            draw(st.sampled_from(["GET", "get", "", "A B"]))
        ),
        "header": lambda: spec.match.headers.append(draw(predicates())),
        "address": lambda: setattr(spec.baseline.upstream, "address", draw(addresses)),
        "cluster": lambda: spec.baseline.upstream.CopyFrom(Upstream(cluster=draw(odd_texts))),
        "health": lambda: setattr(spec.baseline.upstream, "health_path", draw(paths)),
        "sni": lambda: setattr(spec.baseline.upstream.tls, "sni", draw(odd_texts)),
        "timeout": lambda: setattr(spec.timeout, "nanos", draw(st.integers(0, 999_999_999))),
    }
    for name in draw(st.lists(st.sampled_from(sorted(changes)), max_size=1)):
        changes[name]()
    return spec


@st.composite
def experiments(draw: Any) -> ExperimentSpec:
    """A good experiment with up to two odd fields."""
    spec = document(EXPERIMENT).spec
    assert isinstance(spec, ExperimentSpec)
    candidate = spec.variants[1]
    changes: dict[str, Callable[[], Any]] = {
        "header": lambda: setattr(spec.unit, "header", draw(odd_texts)),
        "cookie": lambda: spec.unit.CopyFrom(Unit(cookie=draw(odd_texts))),
        "random": lambda: spec.unit.CopyFrom(Unit(random=True)),
        "segment": lambda: spec.segment.CopyFrom(draw(predicates())),
        "name": lambda: setattr(candidate, "name", draw(odd_texts)),
        "address": lambda: setattr(candidate.upstream, "address", draw(addresses)),
        "cluster": lambda: candidate.upstream.CopyFrom(Upstream(cluster=draw(odd_texts))),
        "parameter": lambda: candidate.parameters.update({draw(odd_texts): draw(odd_texts)}),
        "split": lambda: spec.steps[2].canary.split.update({"v2": draw(fractions)}),
        "split of v3": lambda: spec.steps[2].canary.split.update({"v3": draw(fractions)}),
        "shadow": lambda: setattr(spec.steps[0].shadow, "fraction", draw(fractions)),
        "slo": lambda: setattr(
            spec.metrics.guardrails[1].slo, "nanos", draw(st.integers(0, 999_999_999))
        ),
        "salt": lambda: setattr(spec, "salt", draw(odd_texts)),
    }
    for name in draw(st.lists(st.sampled_from(sorted(changes)), max_size=2)):
        changes[name]()
    return spec


@settings(max_examples=300, deadline=None)
@given(targets(), experiments())
def test_snapshot_is_served_at_every_step_when_its_resources_were_accepted(
    target: TargetSpec, spec: ExperimentSpec
) -> None:
    faults = [
        *validate_target("risk", "fraud", target),
        *validate_experiment("risk", "fraud-v2", spec, target, {}),
        *unimplemented_target(target),
        *unimplemented_experiment(spec),
    ]
    event("refused" if faults else "accepted")
    if faults:
        return
    spec.salt = spec.salt or "s"
    allocation: Any = {}
    for step in range(len(spec.steps)):
        allocation = grow(allocation, split_at(spec, step), control=spec.control)
        run = RunningExperiment("fraud-v2", spec, step + 1, 1, allocation, shadow_at(spec, step))
        payload = encode(build("risk", step + 1, {"fraud": target}, [run]))
        snapshot = Snapshot.FromString(payload)
        assert validate(snapshot) == []
        Plan.build(snapshot, tenant_key=bytes(32), dead={}, open_gates=None, slots={})
        documents(snapshot, enabled=[("fraud-v2", step + 1)])


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_validation_ends_in_violations_when_a_message_is_damaged(data: st.DataObject) -> None:
    for text, kind in ((TARGET, TargetSpec), (EXPERIMENT, ExperimentSpec)):
        damaged = bytearray(document(text).spec.SerializeToString())
        for _ in range(data.draw(st.integers(1, 4))):
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
        try:
            spec = kind.FromString(bytes(damaged))
        except DecodeError:  # gRPC answers it
            continue
        if isinstance(spec, TargetSpec):
            found = validate_target("risk", "x", spec)
            unimplemented_target(spec)
        else:
            found = validate_experiment("risk", "x", spec, None, {"y": spec})
            unimplemented_experiment(spec)
        assert all(item.field and item.rule and item.value.isprintable() for item in found)
