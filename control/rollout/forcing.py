"""Makes force tokens of experiments that run, and keeps who made which.

Neither the token, which anybody could use until it expires, nor the unit is kept.
"""

from __future__ import annotations

import json

from google.protobuf.duration_pb2 import Duration

from control import forcetokens, views
from control.model import durations
from control.model.units import value_fault
from control.refusals import Fault, invalid, not_found, precondition
from control.rollout.controller import Controller
from control.rollout.effects import Call
from control.rollout.entries import ExperimentEntry
from control.rollout.tenant import Mutation, Tenant
from control.store.base import AuditRecord
from turnout.v1alpha1.experiment_service_pb2 import CreateForceTokenRequest, ForceToken


async def create_token(
    controller: Controller, tenant: Tenant, name: str, asked: CreateForceTokenRequest, call: Call
) -> ForceToken:
    """Sign a token, and write into the audit trail who asked for it.

    Args:
        controller: The only writer.
        tenant: Whose key signs.
        name: Id of the experiment.
        asked: The request.
        call: Who asks.

    Raises:
        Refused: NOT_FOUND, INVALID_ARGUMENT, FAILED_PRECONDITION (it does not run), UNAVAILABLE.
    """
    async with tenant.lock:
        entry = tenant.experiments.get(name)
        if entry is None:
            raise not_found(asked.name)
        ttl_s = _checked(entry, asked)
        key = await controller.ledger.asked(controller.ledger.store.tenant_key(tenant.name))
        now_ms = controller.clock_ms()
        issued_s = now_ms // 1000
        token = forcetokens.mint(
            key,
            tenant=tenant.name,
            experiment=name,
            variant=asked.variant,
            unit=asked.unit.encode(),
            issued_s=issued_s,
            expires_s=issued_s + ttl_s,
        )
        expire = views.timestamp((issued_s + ttl_s) * 1000)
        assert expire is not None
        told = {"expireTime": expire.ToJsonString(), "variant": asked.variant}
        told["goodFor"] = "one unit" if asked.unit else "its bearer"
        record = AuditRecord(
            tenant=tenant.name,
            time_ms=now_ms,
            actor=call.actor,
            method=call.method,
            resource=asked.name,
            before_json="",
            after_json=json.dumps({"forceToken": told}, sort_keys=True),
        )
        await controller.commit(tenant, Mutation(audits=(record,)), call)
        return ForceToken(token=token, expire_time=expire)


def _checked(entry: ExperimentEntry, asked: CreateForceTokenRequest) -> int:
    """How long the token is good, in seconds."""
    faults = []
    names = [variant.name for variant in entry.spec.variants]
    if asked.variant not in names:
        rule = f"must name a variant: {', '.join(names[:10])}"
        faults.append(Fault("variant", asked.variant or "missing", rule))
    if len(asked.unit.encode()) > forcetokens.UNIT_BYTES_MAX:
        value = f"{len(asked.unit.encode())} bytes"
        faults.append(Fault("unit", value, f"at most {forcetokens.UNIT_BYTES_MAX} bytes"))
    elif asked.unit:
        rule = value_fault(entry.spec.unit, asked.unit)
        if rule:
            faults.append(Fault("unit", asked.unit, rule))
    ttl = asked.ttl if asked.HasField("ttl") else Duration(seconds=forcetokens.TTL_DEFAULT_S)
    bounds = f"{forcetokens.TTL_MIN_S // 60}m to {forcetokens.TTL_MAX_S // 3600}h"
    if not forcetokens.TTL_MIN_S <= ttl.seconds <= forcetokens.TTL_MAX_S or (
        ttl.seconds == forcetokens.TTL_MAX_S and ttl.nanos
    ):
        faults.append(Fault("ttl", durations.text(ttl), f"must be {bounds}"))
    if faults:
        raise invalid(faults)
    if not entry.run.live:
        message = (
            f"experiment {entry.name} is {entry.run.state}: a token gives a variant only while it "
            "runs; start it first"
        )
        raise precondition("EXPERIMENT_NOT_LIVE", message, state=str(entry.run.state))
    return ttl.seconds
