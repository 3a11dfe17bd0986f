"""What the API tells of sidecars' configuration."""

from __future__ import annotations

import grpc
import pytest

from tests.control.peers import PARENT, Api, FakeSidecar
from turnout.v1alpha1.config_service_pb2 import GetSnapshotRequest
from turnout.v1alpha1.snapshot_pb2 import Snapshot

CODE = grpc.StatusCode


async def test_snapshot_that_is_shown_is_the_one_that_sidecars_get(
    api: Api, sidecar: FakeSidecar
) -> None:
    await api.create_target()
    await sidecar.until(lambda me: me.pushes, "the first snapshot")
    shown: Snapshot = await api.sidecars.GetSnapshot(GetSnapshotRequest(parent=PARENT))
    assert shown == sidecar.snapshot
    assert [target.name for target in shown.targets] == ["fraud"]


async def test_no_snapshot_is_shown_when_there_is_none_or_the_tenant_is_no_name(api: Api) -> None:
    for parent, code in (
        (PARENT, CODE.NOT_FOUND),
        ("tenants/nobody", CODE.NOT_FOUND),
        ("risk", CODE.INVALID_ARGUMENT),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await api.sidecars.GetSnapshot(GetSnapshotRequest(parent=parent))
        assert refused.value.code() is code
