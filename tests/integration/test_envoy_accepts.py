"""Envoy takes every document that we print, and says so when one is bad."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from control.commands.snapshot import build
from sidecar import envoyfiles
from tests.integration.harness import BIN, Envoy, Stage, one_experiment, one_target, wait_for
from turnout.v1alpha1.common_pb2 import Predicate, Unit, Upstream, UpstreamTls
from turnout.v1alpha1.snapshot_pb2 import ClusterPlan, Snapshot, TargetPlan

EXAMPLES = Path(__file__).parents[2] / "envoy" / "examples"
CDS = "cluster_manager.cds."
RDS = "http.turnout.rds.turnout."
ECDS = "extension_config_discovery.http_filter.turnout."


def _rich(snapshot: Snapshot, ca: Path) -> Snapshot:
    """All that an upstream and a target can say, beside a shadowed experiment."""
    tls = UpstreamTls(sni="model.test", ca=str(ca))
    upstreams = {
        "dns": Upstream(address="localhost:9", http2=True, health_path="/h"),
        "v6": Upstream(address="[::1]:9"),
        "tls": Upstream(address="127.0.0.1:9", tls=tls),
        "tls2": Upstream(address="model.test:9", tls=UpstreamTls(ca=str(ca)), http2=True),
    }
    for name, upstream in upstreams.items():
        target = TargetPlan(
            name=name,
            hosts=[f"{name}.test", f"*.{name}.test"],
            path_prefix=f"/{name}",
            methods=["GET", "POST"],
            headers=[Predicate(header="x-a", in_values=["1", "n"])],
            baseline=ClusterPlan(cluster=f"turnout.{name}.1", upstream=upstream),
        )
        target.timeout.FromMilliseconds(1)
        snapshot.targets.append(target)
    workers = ClusterPlan(cluster="turnout_workers", upstream=Upstream(cluster="turnout_workers"))
    snapshot.targets.append(TargetPlan(name="external", path_prefix="/ext", baseline=workers))
    snapshot.targets[-1].timeout.FromSeconds(3600)
    snapshot.experiments[0].segment.CopyFrom(
        Predicate(negated=Predicate(header="x-country", equals="DE"))
    )
    return snapshot


async def _counts(envoy: Envoy) -> dict[str, int]:
    cds, rds, ecds = await envoy.stats(CDS), await envoy.stats(RDS), await envoy.stats(ECDS)
    return {
        "cds": cds["update_success"],
        "rds": rds["update_success"],
        "ecds": ecds["config_reload"],
        "refused": cds["update_rejected"] + rds["update_rejected"] + ecds["config_fail"],
    }


async def test_envoy_accepts_all_documents_when_the_snapshot_uses_everything() -> None:
    async with Stage() as stage:
        v1 = await stage.pod("v1")
        ca = Path(__file__).with_name("ca.pem")
        plain = one_experiment(v1, v1, {"v2": 0.5}, shadow=("v2", 1.0), unit=Unit(cookie="uid"))
        envoy = await stage.envoy(one_target(v1))
        before = await _counts(envoy)
        files = envoyfiles.documents(_rich(plain, ca), enabled={("fraud-v2", 1)})
        stage.write(envoyfiles.CLUSTERS_FILE, files.cds)
        stage.write(envoyfiles.ROUTES_FILE, files.rds)
        stage.write(envoyfiles.FILTER_FILE, files.ecds)

        async def taken() -> bool:
            now = await _counts(envoy)
            return all(now[kind] > before[kind] for kind in ("cds", "rds", "ecds"))

        await wait_for(taken, "Envoy took all three files")
        assert (await _counts(envoy))["refused"] == 0
        assert "error" not in envoy.output().lower()


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.yaml")), ids=lambda file: file.stem)
async def test_envoy_accepts_every_example_when_its_experiment_runs(
    stage: Stage, file: Path
) -> None:
    alone = "kind: Target" in file.read_text()
    given = [file] if alone else [EXAMPLES / "target.yaml", file]
    envoy = await stage.envoy(files=given)
    snapshot = Snapshot.FromString(build(given))
    enabled = {(experiment.name, experiment.epoch) for experiment in snapshot.experiments}
    before = await _counts(envoy)
    files = envoyfiles.documents(snapshot, enabled=enabled)
    stage.write(envoyfiles.CLUSTERS_FILE, files.cds)
    stage.write(envoyfiles.ROUTES_FILE, files.rds)
    await wait_for(lambda: _changed(envoy, before), "Envoy looked at the files")
    assert (await _counts(envoy))["refused"] == 0, envoy.output()


async def _changed(envoy: Envoy, before: dict[str, int]) -> bool:
    """A file with the same text is not taken again, and that is no refusal."""
    cds, rds = await envoy.stats(CDS), await envoy.stats(RDS)
    return cds["update_attempt"] > before["cds"] and rds["update_attempt"] > before["rds"]


async def test_envoy_counts_a_refusal_when_a_document_is_bad() -> None:
    async with Stage() as stage:
        v1 = await stage.pod("v1")
        envoy = await stage.envoy(one_target(v1))
        files = envoyfiles.documents(one_target(v1), enabled=())
        stage.write(envoyfiles.ROUTES_FILE, files.rds.replace("virtual_hosts", "virtual_ghosts"))

        async def refused() -> bool:
            return (await envoy.stats(RDS))["update_rejected"] + (await envoy.stats(RDS)).get(
                "update_failure", 0
            ) > 0

        await wait_for(refused, "Envoy refused the routes")
        assert [a.pod for a in await stage.users(["u1"])] == ["v1"]


async def test_envoy_validates_the_bootstrap_when_every_option_is_given() -> None:
    async with Stage() as stage:
        v1 = await stage.pod("v1")
        await stage.bootstrap(
            one_target(v1), args=["--otlp", "localhost:4317", "--sampling", "100", "--node", "n"]
        )
        process = await asyncio.create_subprocess_exec(
            str(BIN / "envoy"), "--mode", "validate", "-c", str(stage.directory / "bootstrap.yaml"),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()
        assert b"[warning]" not in output
