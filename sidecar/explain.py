"""Why a request gets its variant: the life of one request, told step by step.

Owns the words. The answer itself is `processor.process`'s, and every step is judged by the function
that judges it there; nothing is decided here. No clock, no chance (a random unit is an argument).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from sidecar.outcome import Answer, Outcome
from sidecar.plan import Experiment, Plan, Target
from sidecar.predicates import REPEATED, compile_predicate
from sidecar.processor import process, read_headers, unit_of
from turnout.contract import (
    BUCKET_COUNT,
    HEADER_PARAMETER_PREFIX,
    HEADER_SHADOW,
    HEADER_SHADOW_VARIANT,
    HEADER_STAMP,
    HEADER_UPSTREAM,
    HEADER_VARIANT,
    RESERVED_HEADER_PREFIXES,
    RESERVED_HEADERS,
    STAMP_FIELD_SEPARATOR,
    TENANT_KEY_BYTES,
    UNIT_BYTES_MAX,
    UNIT_HASH_HEX_DIGITS,
)
from turnout.envoy.ext_proc_pb2 import ProcessingRequest, ProcessingResponse
from turnout.v1alpha1.common_pb2 import Predicate
from turnout.v1alpha1.snapshot_pb2 import (
    BucketRange,
    ClusterPlan,
    ExperimentPlan,
    Snapshot,
    TargetPlan,
)

# The unit's pseudonym needs the tenant's key, which no snapshot has: it is not shown.
_NO_KEY: Final = bytes(TENANT_KEY_BYTES)
_HASH_SHOWN: Final = "<unit hash>"
VALUE_CHARACTERS_MAX: Final = 120


class Step(NamedTuple):
    """One question about the request.

    Attributes:
        name: What is asked: target, experiment, gate, unit, segment, bucket, variant, ...
        passed: False ends the story: the request is served by the baseline.
        sentence: The answer, with its facts.
    """

    name: str
    passed: bool
    sentence: str


class Explanation(NamedTuple):
    """What becomes of a request, and why.

    Attributes:
        outcome: As the sidecar counts it.
        sentence: The whole in one.
        target: That matched, "" = none.
        experiment: That was looked at, "" = none.
        epoch: The experiment's, 0 = none.
        unit: Printable; "" = none.
        bucket: In [0, BUCKET_COUNT), None when it was not reached.
        bucket_range: The variant's range that has the bucket: [start, end).
        variant: That serves; "" when the request is not enrolled.
        upstream: Envoy's cluster that serves; the baseline's when the request is not enrolled.
        address: Of that cluster; "" when no target matched or Envoy has it from elsewhere.
        shadow: Variant that gets a copy, "" = none.
        shadow_upstream: Its cluster.
        headers: That are stamped, the unit's hash left out.
        steps: In the order in which they are asked.
    """

    outcome: str
    sentence: str
    target: str
    experiment: str
    epoch: int
    unit: str
    bucket: int | None
    bucket_range: tuple[int, int] | None
    variant: str
    upstream: str
    address: str
    shadow: str
    shadow_upstream: str
    headers: Mapping[str, str]
    steps: tuple[Step, ...]


def explain(
    snapshot: Snapshot,
    headers: Sequence[tuple[str, bytes]],
    *,
    open_gates: Collection[tuple[str, int]] | None = None,
    random_unit: Callable[[], bytes],
) -> Explanation:
    """Say what a sidecar with this snapshot does with a request, and why.

    Args:
        snapshot: The configuration.
        headers: In their order, lower-case names, pseudo-headers among them.
        open_gates: (experiment, epoch) of those that may enrol; None = all.
        random_unit: As in `processor.process`.

    Raises:
        InvalidSnapshot: With every violation.
    """
    plan = Plan.build(snapshot, tenant_key=_NO_KEY, dead={}, open_gates=open_gates, slots={})
    request = encode_request(headers)
    drawn = random_unit()
    answer = process(plan, request, random_unit=lambda: drawn)
    return _Story(snapshot, plan, request, answer, drawn).told()


def encode_request(headers: Sequence[tuple[str, bytes]]) -> bytes:
    """A request as Envoy sends it, without what it takes from clients."""
    message = ProcessingRequest()
    message.request_headers.headers.SetInParent()
    for name, value in headers:
        if not is_taken(name):
            message.request_headers.headers.headers.add(key=name, raw_value=value)
    return message.SerializeToString()


def is_taken(name: str) -> bool:
    """True for a header that Envoy removes when a client sends it."""
    return name in RESERVED_HEADERS or name.startswith(RESERVED_HEADER_PREFIXES)


class _Story:
    """One request's steps; each is written once, in the order of `processor.process`."""

    def __init__(
        self, snapshot: Snapshot, plan: Plan, request: bytes, answer: Answer, drawn: bytes
    ) -> None:
        self._snapshot = snapshot
        self._plan = plan
        self._answer = answer
        self._drawn = drawn
        self._headers, self._repeated = read_headers(request)
        self._steps: list[Step] = []
        self._unit = b""
        self._bucket: int | None = None

    def told(self) -> Explanation:
        target = self._plan.match(self._headers)
        experiment = self._walk(target)
        message = self._message(experiment)
        stamped = _stamped(self._answer)
        plan = next((t for t in self._snapshot.targets if target and t.name == target.name), None)
        baseline = plan.baseline if plan else ClusterPlan()
        variant = stamped.get(HEADER_VARIANT, "")
        cluster = next(
            (v.cluster for v in message.variants if stamped and v.name == variant), baseline
        )
        marker = stamped.get(HEADER_SHADOW_VARIANT, "")
        return Explanation(
            outcome=self._answer.outcome.name,
            sentence=self._sentence(variant, cluster),
            target=self._answer.target,
            experiment=message.name,
            epoch=message.epoch,
            unit=shown(self._unit),
            bucket=self._bucket,
            bucket_range=self._range(message, variant),
            variant=variant,
            upstream=stamped.get(HEADER_UPSTREAM, baseline.cluster),
            address=cluster.upstream.address,
            shadow=marker.rpartition(STAMP_FIELD_SEPARATOR)[2],
            shadow_upstream=stamped.get(HEADER_SHADOW, ""),
            headers=stamped,
            steps=tuple(self._steps),
        )

    # -- steps, in the order of the request's life ---------------------------------------------

    def _walk(self, target: Target | None) -> Experiment | None:
        """Ask one question after the other; the experiment that was looked at."""
        self._ask_target(target)
        if target is None or not self._ask_experiment(target):
            return None
        experiment = target.experiment
        assert experiment is not None
        enrolled = (
            self._ask_gate(experiment)
            and self._ask_unit(experiment)
            and self._ask_segment(experiment)
        )
        if enrolled:
            self._ask_bucket(experiment)
        return experiment

    def _ask_target(self, target: Target | None) -> None:
        if target is None:
            if not self._snapshot.targets:
                self._say("target", "there is no target", passed=False)
            for plan in self._snapshot.targets:
                self._say("target", f"{plan.name} does not match: {self._miss(plan)}", passed=False)
            return
        plan = next(plan for plan in self._snapshot.targets if plan.name == target.name)
        hosts = ", ".join(plan.hosts) or "*"
        parts = [f"host {self._header(':authority')} fits {hosts}"]
        parts.append(f"path begins with {target.path_prefix.decode()}")
        if plan.methods:
            parts.append(f"method {self._header(':method')} is one of {', '.join(plan.methods)}")
        parts += [text for text, _ in self._judged(plan.headers)]
        others = [other.name for other in self._snapshot.targets if self._fits_less(other, target)]
        less = f" (fits less exactly: {', '.join(others)})" if others else ""
        self._say("target", f"{target.name}: {'; '.join(parts)}{less}")

    def _ask_experiment(self, target: Target) -> bool:
        experiment = target.experiment
        if experiment is not None:
            message = self._message(experiment)
            shares = ", ".join(
                f"{variant.name} {_percent(_size(variant.ranges))}" for variant in message.variants
            )
            self._say("experiment", f"{message.name}, epoch {message.epoch}: {shares}")
            return True
        dead = [plan for plan in self._snapshot.experiments if plan.target == target.name]
        for plan in dead:
            graves = [t for t in self._snapshot.tombstones if t.experiment == plan.name]
            grave = max(graves, key=lambda tombstone: tombstone.epoch)
            reason = f": {grave.reason}" if grave.reason else ""
            self._say(
                "experiment",
                f"{plan.name} was rolled back (epoch {grave.epoch}){reason}",
                passed=False,
            )
        if not dead:
            self._say("experiment", f"none runs on {target.name}", passed=False)
        return False

    def _ask_gate(self, experiment: Experiment) -> bool:
        if not experiment.open:
            text = f"{experiment.name} waits for healthy upstreams and enrols nobody, in either arm"
            self._say("gate", text, passed=False)
        return experiment.open

    def _ask_unit(self, experiment: Experiment) -> bool:
        self._unit, several = unit_of(
            experiment, self._headers, self._repeated, lambda: self._drawn
        )
        if experiment.random:
            source = "a random one for each request: the next may get another variant"
        elif experiment.header:
            source = f"header {experiment.header}"
        else:
            source = f"cookie {experiment.cookie.decode()}"
        if not self._unit:
            text = f"{source} is not there or empty: a request without a unit is not enrolled"
            self._say("unit", text, passed=False)
            return False
        if len(self._unit) > UNIT_BYTES_MAX:
            text = f"{source} has {len(self._unit)} bytes, at most {UNIT_BYTES_MAX} are a unit"
            self._say("unit", text, passed=False)
            return False
        note = " (there are several: the first counts)" if several else ""
        self._say("unit", f"{shown(self._unit)} ({source}){note}")
        return True

    def _ask_segment(self, experiment: Experiment) -> bool:
        message = self._message(experiment)
        if experiment.segment is None:
            return True
        passed = experiment.segment(self._headers)
        judged = self._judged([message.segment])
        self._say("segment", "; ".join(text for text, _ in judged), passed=passed)
        return passed

    def _ask_bucket(self, experiment: Experiment) -> None:
        message = self._message(experiment)
        bucket = self._bucket = experiment.bucket(self._unit)
        salt = f"salt {shown(message.salt.encode())}"
        self._say("bucket", f"{bucket} of {BUCKET_COUNT} (hash of {salt} and the unit)")
        stamped = _stamped(self._answer)
        variant = stamped[HEADER_VARIANT]
        found = self._range(message, variant)
        assert found is not None, "the answer's variant owns the unit's bucket"
        role = "control" if message.variants[0].name == variant else "candidate"
        place = f"has buckets {found[0]}..{found[1] - 1}"
        self._say("variant", f"{variant} ({role}) {place}, so the unit is its own")
        if message.HasField("shadow"):
            self._ask_shadow(message, variant, bucket)

    def _ask_shadow(self, message: ExperimentPlan, variant: str, bucket: int) -> None:
        shadow = message.shadow
        share = _percent(_size(shadow.ranges))
        if HEADER_SHADOW in _stamped(self._answer):
            text = f"copied to {shadow.variant} ({share} of the units are), which answers nobody"
        elif variant == shadow.variant:
            text = f"not copied: {variant} serves it already"
        else:
            text = f"not copied: bucket {bucket} is not in the {share} that go to {shadow.variant}"
        self._say("shadow", text)

    # -- words ---------------------------------------------------------------------------------

    def _sentence(self, variant: str, cluster: ClusterPlan) -> str:
        outcome = self._answer.outcome
        upstream = cluster.cluster
        if address := cluster.upstream.address:
            upstream = f"{upstream} ({address})"
        if outcome is Outcome.NO_TARGET:
            return "No target matches: Envoy's own routes decide."
        if outcome is Outcome.STAMPED:
            return f"Variant {variant} serves it, at {upstream}."
        why = {
            Outcome.NO_EXPERIMENT: "no experiment runs on this target",
            Outcome.NO_UNIT: "it has no unit",
            Outcome.INVALID_UNIT: "its unit is too long",
            Outcome.NOT_IN_SEGMENT: "it is not in the segment",
            Outcome.WAITING: "the experiment waits for healthy upstreams",
        }[outcome]
        return f"The baseline serves it, at {upstream}, outside the experiment: {why}."

    def _say(self, name: str, sentence: str, *, passed: bool = True) -> None:
        self._steps.append(Step(name, passed, sentence))

    def _message(self, experiment: Experiment | None) -> ExperimentPlan:
        if experiment is None:
            return ExperimentPlan()
        return next(m for m in self._snapshot.experiments if m.name == experiment.name)

    def _range(self, message: ExperimentPlan, variant: str) -> tuple[int, int] | None:
        if self._bucket is None:
            return None
        ranges = next(v.ranges for v in message.variants if v.name == variant)
        return next((r.start, r.end) for r in ranges if r.start <= self._bucket < r.end)

    def _header(self, name: str) -> str:
        value = self._headers.get(name)
        return "(none)" if value is None else shown(value)

    def _judged(self, predicates: Sequence[Predicate]) -> list[tuple[str, bool]]:
        """Every condition in words, and whether it holds."""
        found = []
        for predicate in predicates:
            holds = compile_predicate(predicate)(self._headers)
            found.append((f"{self._condition(predicate)}: {'yes' if holds else 'no'}", holds))
        return found

    def _condition(self, predicate: Predicate) -> str:
        for word, parts in (("all of", predicate.all), ("any of", predicate.any)):
            if parts:
                return f"{word} ({'; '.join(text for text, _ in self._judged(parts))})"
        if predicate.HasField("negated"):
            return f"not ({self._judged([predicate.negated])[0][0]})"
        return f"{predicate.header} {_leaf(predicate)} (is {self._header(predicate.header)})"

    # -- targets that do not match --------------------------------------------------------------

    def _miss(self, plan: TargetPlan) -> str:
        """What of a target does not fit, judged by the plan with nothing else in it."""
        only_hosts, only_path = TargetPlan(hosts=plan.hosts), TargetPlan()
        only_path.path_prefix = plan.path_prefix
        missed = []
        if not self._fits(only_hosts):
            hosts = ", ".join(plan.hosts)
            missed.append(f"host {self._header(':authority')} does not fit {hosts}")
        if not self._fits(only_path):
            path = self._header(":path")
            missed.append(f"path {path} does not begin with {plan.path_prefix}")
        if not self._fits(TargetPlan(methods=plan.methods)):
            methods = ", ".join(plan.methods)
            missed.append(f"method {self._header(':method')} is none of {methods}")
        missed += [text for text, holds in self._judged(plan.headers) if not holds]
        return "; ".join(missed)

    def _fits_less(self, plan: TargetPlan, matched: Target) -> bool:
        return plan.name != matched.name and self._fits(plan)

    def _fits(self, plan: TargetPlan) -> bool:
        alone = Snapshot(targets=[plan])
        parts = Plan(alone, [Target(plan, None)], self._plan.hasher, {})
        return parts.match(self._headers) is not None


def shown(value: bytes) -> str:
    """A header's value, printable and shortened."""
    text = value.replace(REPEATED, b", ").decode(errors="backslashreplace")
    if not text.isprintable():
        text = ascii(text)[1:-1]
    if len(text) > VALUE_CHARACTERS_MAX:
        text = f"{text[: VALUE_CHARACTERS_MAX - 3]}..."
    return text


def _leaf(predicate: Predicate) -> str:
    if predicate.HasField("present"):
        return "is present" if predicate.present else "is absent"
    if predicate.HasField("prefix"):
        return f"begins with {shown(predicate.prefix.encode())}"
    if predicate.HasField("equals"):
        return f"equals {shown(predicate.equals.encode())}"
    return f"is one of {shown(', '.join(predicate.in_values).encode())}"


def _stamped(answer: Answer) -> dict[str, str]:
    """The headers that an answer sets, in the order in which people look for them."""
    if answer.response is None:
        return {}
    message = ProcessingResponse.FromString(answer.response)
    options = message.request_headers.response.header_mutation.set_headers
    headers = {option.header.key: option.header.raw_value.decode() for option in options}
    stamp = headers[HEADER_STAMP]
    headers[HEADER_STAMP] = stamp[:-UNIT_HASH_HEX_DIGITS] + _HASH_SHOWN
    return dict(sorted(headers.items(), key=lambda item: _rank(item[0])))


def _rank(name: str) -> tuple[int, str]:
    order = (HEADER_VARIANT, HEADER_UPSTREAM, HEADER_STAMP, HEADER_SHADOW, HEADER_SHADOW_VARIANT)
    if name in order:
        return order.index(name), name
    return len(order) + (not name.startswith(HEADER_PARAMETER_PREFIX)), name


def _size(ranges: Sequence[BucketRange]) -> int:
    return sum(part.end - part.start for part in ranges)


def _percent(buckets: int) -> str:
    return f"{buckets / BUCKET_COUNT * 100:.6g} %"


def steps_as_lines(steps: Sequence[Step]) -> Iterator[str]:
    """Steps as aligned text."""
    width = max((len(step.name) for step in steps), default=0)
    for step in steps:
        yield f"{step.name:<{width}}  {'ok' if step.passed else 'NO'}  {step.sentence}"
