"""Why a request gets its variant: the life of one request, told step by step.

Owns the story. The answer itself is `processor.process`'s, and every step is judged by the function
that judges it there; nothing is decided here. No clock, no chance (both are arguments).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from sidecar.assignment import Target
from sidecar.envoyfilter import is_verified
from sidecar.explainteller import Assigned, Step, Teller
from sidecar.explainwords import Conditions, shown, stamped_headers
from sidecar.matching import Matcher, first_that_fits
from sidecar.outcome import Answer, Outcome
from sidecar.plan import Plan
from sidecar.processor import process
from sidecar.requests import page_of, read_headers
from sidecar.tokens import ForceToken
from sidecar.units import JWT_AUTHN_NAMESPACE, Request
from turnout.contract import (
    HEADER_FORCE,
    HEADER_SHADOW,
    HEADER_SHADOW_VARIANT,
    HEADER_UPSTREAM,
    HEADER_VARIANT,
    LAYER_MODELS,
    RESERVED_HEADER_PREFIXES,
    RESERVED_HEADERS,
    STAMP_FIELD_SEPARATOR,
    TENANT_KEY_BYTES,
)
from turnout.envoy.ext_proc_pb2 import ProcessingRequest
from turnout.v1alpha1.common_pb2 import Tombstone
from turnout.v1alpha1.snapshot_pb2 import ClusterPlan, ExperimentPlan, Snapshot, TargetPlan

# The unit's pseudonym needs the tenant's key, which no snapshot has: it is not shown.
_NO_KEY: Final = bytes(TENANT_KEY_BYTES)
_WHY: Final[Mapping[Outcome, str]] = {
    Outcome.NO_EXPERIMENT: "no experiment runs on this target",
    Outcome.WAITING: "the experiment waits for healthy upstreams",
    Outcome.NO_UNIT: "it has no unit",
    Outcome.INVALID_UNIT: "its unit is too long",
    Outcome.HELD_OUT: "its unit is held out of all experiments",
    Outcome.NOT_IN_SEGMENT: "it is not in the segment",
    Outcome.NOT_IN_LAYER: "its unit's place in the layer is not the experiment's",
}


class Explanation(NamedTuple):
    """What becomes of a request, and why.

    Attributes:
        outcome: As the sidecar counts it.
        sentence: The whole in one.
        target: That matched, "" = none.
        assigned: Every experiment of the target, in the order of the stamp.
        main: The one among them that says most: that routes, or else stamps, or came furthest.
        variant: That serves; "" when no experiment routes the request.
        upstream: Envoy's cluster that serves; the baseline's when no experiment routes it.
        address: Of that cluster; "" when no target matched or Envoy has it from elsewhere.
        shadow: Variant that gets a copy, "" = none.
        shadow_upstream: Its cluster.
        headers: That are stamped, the units' hashes left out.
        steps: In the order in which they are asked.
    """

    outcome: str
    sentence: str
    target: str
    assigned: tuple[Assigned, ...]
    main: Assigned
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
    now_s: Callable[[], float],
    tenant_key: bytes | None = None,
    claims: Mapping[str, Any] | None = None,
) -> Explanation:
    """Say what a sidecar with this snapshot does with a request, and why.

    Args:
        snapshot: The configuration.
        headers: In their order, lower-case names, pseudo-headers among them.
        open_gates: (experiment, epoch) of those that may enrol; None = all.
        random_unit: As in `processor.process`; called once.
        now_s: Unix time, for force tokens.
        tenant_key: Verifies force tokens; None = they are left out.
        claims: What Envoy's jwt_authn has verified; None = nothing.

    Raises:
        InvalidSnapshot: With every violation.
    """
    asked = [h for h in headers if tenant_key is not None or h[0] != HEADER_FORCE]
    return explain_request(
        snapshot,
        encode_request(asked, verified(snapshot, claims or {})),
        open_gates=open_gates,
        random_unit=random_unit,
        now_s=now_s,
        tenant_key=tenant_key or _NO_KEY,
        unread_token=len(asked) < len(headers),
    )


def explain_request(
    snapshot: Snapshot,
    request: bytes,
    *,
    dead: Mapping[str, int] | None = None,
    open_gates: Collection[tuple[str, int]] | None = None,
    random_unit: Callable[[], bytes],
    now_s: Callable[[], float],
    tenant_key: bytes,
    unread_token: bool = False,
) -> Explanation:
    """`explain` for a request as Envoy sends it.

    Args:
        snapshot: The configuration.
        request: An encoded ProcessingRequest with request headers.
        dead: Experiment -> highest epoch that must never serve, beside the tombstones.
        open_gates: As there.
        random_unit: As there.
        now_s: As there.
        tenant_key: As there.
        unread_token: There was a force token that nobody here can verify.

    Raises:
        InvalidSnapshot: With every violation.
    """
    plan = Plan.build(
        snapshot, tenant_key=tenant_key, dead=dead or {}, open_gates=open_gates, slots={}
    )
    drawn = random_unit()
    answer = process(plan, request, random_unit=lambda: drawn, now_s=now_s)
    return _Story(snapshot, plan, request, answer, drawn, now_s).told(unread_token=unread_token)


def verified(snapshot: Snapshot, claims: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of jwt_authn with these claims, wherever the plan looks for them."""
    wanted = (e.unit.jwt_claim for e in snapshot.experiments)
    return {claim.payload_in_metadata: dict(claims) for claim in wanted if is_verified(claim)}


def encode_request(
    headers: Sequence[tuple[str, bytes]], metadata: Mapping[str, Any] | None = None
) -> bytes:
    """A request as Envoy sends it, without what it takes from clients.

    Args:
        headers: In their order, lower-case names.
        metadata: Of jwt_authn, by `payload_in_metadata`.
    """
    message = ProcessingRequest()
    message.request_headers.headers.SetInParent()
    for name, value in headers:
        if not is_taken(name):
            message.request_headers.headers.headers.add(key=name, raw_value=value)
    if metadata:
        message.metadata_context.filter_metadata[JWT_AUTHN_NAMESPACE].update(dict(metadata))
    return message.SerializeToString()


def is_taken(name: str) -> bool:
    """True for a header that Envoy removes when a client sends it."""
    return name in RESERVED_HEADERS or name.startswith(RESERVED_HEADER_PREFIXES)


class _Story:
    """One request's steps; each is written once, in the order of `processor`."""

    def __init__(
        self,
        snapshot: Snapshot,
        plan: Plan,
        request: bytes,
        answer: Answer,
        drawn: bytes,
        now_s: Callable[[], float],
    ) -> None:
        self._snapshot = snapshot
        self._plan = plan
        self._answer = answer
        self._now_s = now_s
        self._drawn = drawn
        self._headers, self._first = read_headers(request)
        page = page_of(plan.matcher, self._headers)
        self._target = first_that_fits(page.candidates, self._headers)
        self._request = Request(self._headers, self._first, page.path, request)
        self._words = Conditions(self._headers)
        self._steps: list[Step] = []

    def told(self, *, unread_token: bool) -> Explanation:
        self._ask_target()
        if unread_token:
            self._say("token", "not read: that needs the tenant's key", passed=False)
        assigned = tuple(self._walk(self._target)) if self._target is not None else ()
        stamped = stamped_headers(self._answer.response)
        baseline = self._baseline()
        upstream = stamped.get(HEADER_UPSTREAM, baseline.cluster)
        clusters = {v.cluster.cluster: v.cluster for e in self._messages() for v in e.variants}
        cluster = clusters.get(upstream, baseline) if stamped else baseline
        marker = stamped.get(HEADER_SHADOW_VARIANT, "")
        return Explanation(
            outcome=self._answer.outcome.name,
            sentence=self._sentence(assigned, cluster),
            target=self._answer.target,
            assigned=assigned,
            main=_main(assigned),
            variant=stamped.get(HEADER_VARIANT, ""),
            upstream=upstream,
            address=cluster.upstream.address,
            shadow=marker.rpartition(STAMP_FIELD_SEPARATOR)[2],
            shadow_upstream=stamped.get(HEADER_SHADOW, ""),
            headers=stamped,
            steps=tuple(self._steps),
        )

    # -- steps, in the order of the request's life ---------------------------------------------

    def _walk(self, target: Target) -> Iterator[Assigned]:
        """Ask of each experiment one question after the other."""
        for grave in self._graves(target):
            self._say("experiment", grave, passed=False)
        if not target.experiments:
            if not self._steps or self._steps[-1].name != "experiment":
                self._say("experiment", f"none runs on {target.name}", passed=False)
            return
        decision = None
        if target.bound.layers:
            token = self._ask_token()
            decision = target.decide(self._request, token, lambda: self._drawn)
        arms = {arm.experiment: arm for arm in target.arms(decision.number)} if decision else {}
        bound = {b.experiment.name: b for layer in target.bound.layers for b in layer.members}
        for experiment in target.experiments:
            message = self._message(experiment.name)
            teller = Teller(experiment, message, arms, self._words)
            assigned = teller.told(bound.get(experiment.name), decision)
            self._steps += teller.steps
            yield assigned

    def _ask_target(self) -> None:
        target = self._target
        if target is None:
            if not self._snapshot.targets:
                self._say("target", "there is no target", passed=False)
            for plan in self._snapshot.targets:
                self._say("target", f"{plan.name} does not match: {self._miss(plan)}", passed=False)
            return
        plan = next(plan for plan in self._snapshot.targets if plan.name == target.name)
        hosts = ", ".join(plan.hosts) or "*"
        parts = [f"host {self._words.value(':authority')} fits {hosts}"]
        parts.append(f"path begins with {plan.path_prefix or '/'}")
        if plan.model_name:
            parts.append(f"path or header names {_model(plan)}")
        if plan.methods:
            method = self._words.value(":method")
            parts.append(f"method {method} is one of {', '.join(plan.methods)}")
        parts += [text for text, _ in self._words.judged(plan.headers)]
        others = [p.name for p in self._snapshot.targets if p.name != plan.name and self._fits(p)]
        less = f" (fits less exactly: {', '.join(others)})" if others else ""
        self._say("target", f"{target.name}: {'; '.join(parts)}{less}")

    def _ask_token(self) -> ForceToken | None:
        """The token that is believed, as `processor` believes it."""
        firsts = self._headers if self._first is None else {**self._headers, **self._first}
        text = firsts.get(HEADER_FORCE)
        if text is None:
            return None
        token = self._plan.tokens.verify(text, self._now_s())
        if token is None:
            self._say("token", "forged, expired or another tenant's: ignored", passed=False)
            return None
        gives = f"gives {token.variant} of {token.experiment}"
        if not self._plan.serves(token.experiment, token.variant):
            self._say("token", f"{gives}, which does not run: ignored", passed=False)
            return None
        whose = f" to the unit {shown(token.unit)} alone" if token.unit else ""
        self._say("token", f"{gives}{whose}")
        return token

    def _graves(self, target: Target) -> Iterator[str]:
        """Experiments of the snapshot that were rolled back."""
        alive = {experiment.name for experiment in target.experiments}
        for plan in self._snapshot.experiments:
            if plan.target == target.name and plan.name not in alive:
                graves = [t for t in self._snapshot.tombstones if t.experiment == plan.name]
                grave = max(graves, key=lambda tombstone: tombstone.epoch, default=Tombstone())
                reason = f": {grave.reason}" if grave.reason else ""
                yield f"{plan.name} was rolled back (epoch {grave.epoch or plan.epoch}){reason}"

    # -- words ---------------------------------------------------------------------------------

    def _sentence(self, assigned: Sequence[Assigned], cluster: ClusterPlan) -> str:
        outcome = self._answer.outcome
        upstream = cluster.cluster
        if address := cluster.upstream.address:
            upstream = f"{upstream} ({address})"
        if outcome is Outcome.NO_TARGET:
            return "No target matches: Envoy's own routes decide."
        if outcome is not Outcome.STAMPED:
            return (
                f"The baseline serves it, at {upstream}, outside the experiment: {_WHY[outcome]}."
            )
        got = [one for one in assigned if one.variant]
        more = ", ".join(f"{a.variant} of {a.experiment}" for a in got if a.layer != LAYER_MODELS)
        routed = next((one for one in got if one.layer == LAYER_MODELS), None)
        if routed is None:
            return f"The baseline serves it, at {upstream}, with the parameters of {more}."
        also = f", with the parameters of {more}" if more else ""
        return f"Variant {routed.variant} serves it, at {upstream}{also}."

    def _say(self, name: str, sentence: str, *, passed: bool = True) -> None:
        self._steps.append(Step(name, passed, sentence))

    def _messages(self) -> list[ExperimentPlan]:
        name = self._target.name if self._target is not None else ""
        return [e for e in self._snapshot.experiments if e.target == name]

    def _message(self, name: str) -> ExperimentPlan:
        return next(m for m in self._snapshot.experiments if m.name == name)

    def _baseline(self) -> ClusterPlan:
        name = self._target.name if self._target is not None else ""
        found = (t.baseline for t in self._snapshot.targets if t.name == name)
        return next(found, ClusterPlan())

    # -- targets that do not match --------------------------------------------------------------

    def _miss(self, plan: TargetPlan) -> str:
        """What of a target does not fit, judged by the plan with nothing else in it."""
        missed = []
        if not self._fits(TargetPlan(hosts=plan.hosts)):
            hosts = ", ".join(plan.hosts)
            missed.append(f"host {self._words.value(':authority')} does not fit {hosts}")
        if not self._fits(TargetPlan(path_prefix=plan.path_prefix)):
            path = self._words.value(":path")
            missed.append(f"path {path} does not begin with {plan.path_prefix}")
        model = TargetPlan(path_prefix=plan.path_prefix, model_name=plan.model_name)
        model.model_version = plan.model_version
        if plan.model_name and not self._fits(model):
            missed.append(f"neither path nor header names {_model(plan)}")
        if not self._fits(TargetPlan(methods=plan.methods)):
            methods = ", ".join(plan.methods)
            missed.append(f"method {self._words.value(':method')} is none of {methods}")
        missed += [text for text, holds in self._words.judged(plan.headers) if not holds]
        return "; ".join(missed)

    def _fits(self, plan: TargetPlan) -> bool:
        alone: Matcher[Target] = Matcher()
        alone.add(plan, Target(plan.name, [], baseline="", slots={}))
        page = page_of(alone, self._headers)
        return first_that_fits(page.candidates, self._headers) is not None


def _model(plan: TargetPlan) -> str:
    version = f", version {plan.model_version}" if plan.model_version else ""
    return f"model {plan.model_name}{version}"


def _main(assigned: Sequence[Assigned]) -> Assigned:
    """The first that stamps, which is one that routes if any does; else who came furthest."""
    stamps = next((one for one in assigned if one.variant), None)
    furthest = max(assigned, key=lambda one: Outcome[one.outcome], default=None)
    return stamps or furthest or Assigned("", 0, "", "")


def steps_as_lines(steps: Sequence[Step]) -> Iterator[str]:
    """Steps as aligned text."""
    width = max((len(step.name) for step in steps), default=0)
    for step in steps:
        yield f"{step.name:<{width}}  {'ok' if step.passed else 'NO'}  {step.sentence}"
