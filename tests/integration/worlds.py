"""One snapshot with a target for each way to assign, and what belongs to it: tokens, filters.

Owns the layout by hand: ranges, salts and clusters are written out, so that a test can say what
must come out. All targets share one baseline (v1) and two candidates (v2, v3).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from sidecar.hashing import bucket
from tests.integration.pods import Pod
from tests.integration.snapshots import CONTROL, cluster_of
from turnout.contract import BUCKET_COUNT, LAYER_MODELS, SNAPSHOT_FORMAT
from turnout.v1alpha1.common_pb2 import BAD_EVENT_KIND_ERROR, Predicate, Unit
from turnout.v1alpha1.snapshot_pb2 import (
    BucketRange,
    ClusterPlan,
    ExperimentPlan,
    HoldoutPlan,
    Override,
    Snapshot,
    TargetPlan,
)

TENANT: Final = "risk"
HALF: Final = BUCKET_COUNT // 2
JWT_KEY: Final = b"the test's own secret, 32 bytes.."
JWT_PAYLOAD: Final = "claims"
USER: Final = Unit(header="x-user-id")
HOLDOUT: Final = "holdout-salt"
HELD_OUT: Final = 300_000

Range = tuple[int, int]


class World:
    """A snapshot that grows by targets and experiments.

    Attributes:
        snapshot: What there is so far.
    """

    def __init__(self, baseline: Pod, candidates: Iterable[Pod]) -> None:
        """No targets yet; candidates are variants by the pods' names."""
        self.snapshot = Snapshot(format=SNAPSHOT_FORMAT, tenant=TENANT, version=1)
        self._baseline = cluster_of(baseline)
        self._clusters = {pod.name: cluster_of(pod) for pod in candidates}

    def target(self, name: str, **match: Any) -> None:
        """Add a target; its requests have the path prefix /NAME unless `match` says otherwise."""
        given: dict[str, Any] = match or {"path_prefix": f"/{name}"}
        target = TargetPlan(name=name, hosts=["*"], baseline=self._baseline, **given)
        target.timeout.FromSeconds(30)
        self.snapshot.targets.append(target)

    def experiment(
        self,
        target: str,
        name: str = "",
        *,
        unit: Unit = USER,
        shares: Mapping[str, Range] | None = None,
        layer_ranges: Sequence[Range] = ((0, BUCKET_COUNT),),
        segment: Predicate | None = None,
        holdout: int = 0,
        overrides: Mapping[str, str] | None = None,
    ) -> ExperimentPlan:
        """Add an experiment that routes; half of its units go to v2.

        Args:
            target: Its name.
            name: The experiment's; default the target's.
            unit: What is kept on one variant.
            shares: The candidates' buckets; control has the rest.
            layer_ranges: Its part of the layer.
            segment: Who is eligible.
            holdout: Buckets of the tenant's holdout, from 0.
            overrides: Unit -> variant.
        """
        shares = {"v2": (0, HALF)} if shares is None else shares
        plan = self._plain(target, name or target, LAYER_MODELS, unit, layer_ranges)
        if segment is not None:
            plan.segment.CopyFrom(segment)
        if holdout:
            ranges = [BucketRange(start=0, end=holdout)]
            plan.holdout.CopyFrom(HoldoutPlan(salt=HOLDOUT, ranges=ranges))
        given = sorted((overrides or {}).items())
        plan.overrides.extend(Override(unit=unit, variant=variant) for unit, variant in given)
        self._variants(plan, shares, {CONTROL: self._baseline} | self._clusters)
        return plan

    def parameter(self, target: str, name: str, key: str, *, layer: str) -> ExperimentPlan:
        """Add an experiment that sets a parameter: "low" in control, "high" for half of all."""
        plan = self._plain(target, name, layer, USER, [(0, BUCKET_COUNT)])
        self._variants(plan, {"high": (0, HALF)}, {})
        for variant in plan.variants:
            variant.parameters[key] = "low" if variant.control else "high"
        return plan

    def _plain(
        self, target: str, name: str, layer: str, unit: Unit, ranges: Sequence[Range]
    ) -> ExperimentPlan:
        plan = self.snapshot.experiments.add(
            name=name,
            epoch=1,
            epoch_start_unix_ms=1,
            target=target,
            unit=unit,
            layer=layer,
            layer_salt=f"layer-{target}-{layer}",
            layer_ranges=[BucketRange(start=start, end=end) for start, end in ranges],
            salt=f"salt-of-{name}",
            kinds=[BAD_EVENT_KIND_ERROR],
        )
        self.snapshot.experiments.sort(key=lambda e: e.name)
        return next(e for e in self.snapshot.experiments if e.name == plan.name)

    @staticmethod
    def _variants(
        plan: ExperimentPlan, shares: Mapping[str, Range], clusters: Mapping[str, ClusterPlan]
    ) -> None:
        rest: list[Range] = []
        edge = 0
        for start, end in sorted(shares.values()):
            rest += [(edge, start)] if start > edge else []
            edge = end
        rest += [(edge, BUCKET_COUNT)] if edge < BUCKET_COUNT else []
        owned = {CONTROL: rest} | {name: [one] for name, one in shares.items()}
        for name, ranges in owned.items():
            plan.variants.add(
                name=name,
                control=name == CONTROL,
                ranges=[BucketRange(start=start, end=end) for start, end in ranges if end > start],
                cluster=clusters.get(name),
            )

    def sorted(self) -> Snapshot:
        """The snapshot in the order that its rules ask for."""
        self.snapshot.targets.sort(key=lambda t: t.name)
        return self.snapshot

    # -- What must come out ------------------------------------------------------------------------

    def expected(self, name: str, unit: str | bytes) -> str:
        """The variant of an experiment that has the unit's bucket."""
        plan = next(e for e in self.snapshot.experiments if e.name == name)
        place = place_of(plan.salt, unit)
        return next(
            variant.name
            for variant in plan.variants
            for one in variant.ranges
            if one.start <= place < one.end
        )


def place_of(salt: str, unit: str | bytes) -> int:
    """The unit's bucket by a salt."""
    return bucket(salt.encode(), unit if isinstance(unit, bytes) else unit.encode())


# -- JSON Web Tokens -------------------------------------------------------------------------------


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def signed_jwt(claims: Mapping[str, Any], *, key: bytes = JWT_KEY, lasts_s: int = 3600) -> str:
    """A token of the issuer that `jwt_filter` trusts."""
    head = {"alg": "HS256", "typ": "JWT", "kid": "k"}
    body = {"iss": "https://users.test", "exp": int(time.time()) + lasts_s, **claims}
    text = ".".join(_base64url(json.dumps(part).encode()) for part in (head, body))
    mac = hmac.new(key, text.encode(), hashlib.sha256).digest()
    return f"{text}.{_base64url(mac)}"


def jwt_filter() -> list[dict[str, Any]]:
    """Envoy's jwt_authn: verifies what is there, lets everybody in, keeps the payload."""
    keys = {"keys": [{"kty": "oct", "alg": "HS256", "kid": "k", "k": _base64url(JWT_KEY)}]}
    provider = {
        "issuer": "https://users.test",
        "payload_in_metadata": JWT_PAYLOAD,
        "forward": True,
        "local_jwks": {"inline_string": json.dumps(keys)},
    }
    either = {"requirements": [{"provider_name": "users"}, {"allow_missing_or_failed": {}}]}
    rule = {"match": {"prefix": "/"}, "requires": {"requires_any": either}}
    return [
        {
            "name": "envoy.filters.http.jwt_authn",
            "typed_config": {
                "@type": "type.googleapis.com/"
                "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
                "providers": {"users": provider},
                "rules": [rule],
            },
        }
    ]
