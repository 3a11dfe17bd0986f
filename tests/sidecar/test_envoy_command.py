"""`turnout envoy bootstrap`: what it writes and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from sidecar.envoy_command import envoy
from sidecar.snapshotfile import encode
from tests.sidecar import samples

TARGET = """
apiVersion: turnout/v1alpha1
kind: Target
metadata: {name: fraud, tenant: risk}
spec:
  match: {pathPrefix: /v2/models/fraud}
  baseline: {model: {id: fraud, version: "1"}, upstream: {address: "fraud-v1:8080"}}
"""


def _run(directory: Path, *given: str, **changed: str) -> tuple[int, str]:
    options = {
        "--listen": "127.0.0.1:8080",
        "--sidecar": "unix:/tmp/w",
        "--envoy-dir": str(directory / "e"),
        "--admin": "unix:/tmp/a",
        "-o": str(directory),
    }
    options.update({f"--{name}": value for name, value in changed.items()})
    flat = [part for pair in options.items() for part in pair]
    result = CliRunner().invoke(envoy, ["bootstrap", *given, *flat])
    return result.exit_code, result.output


@pytest.fixture
def target(tmp_path: Path) -> str:
    path = tmp_path / "target.yaml"
    path.write_text(TARGET)
    return str(path)


def test_bootstrap_writes_baselines_only_when_given_resources(tmp_path: Path, target: str) -> None:
    code, output = _run(tmp_path, "-f", target)
    assert code == 0, output
    assert (tmp_path / "bootstrap.yaml").exists()
    cds = yaml.safe_load((tmp_path / "e/cds/clusters.yaml").read_text())
    rds = yaml.safe_load((tmp_path / "e/rds/routes.yaml").read_text())
    assert len(cds["resources"]) == 1
    routes = rds["resources"][0]["virtual_hosts"][0]["routes"]
    assert [route["name"] for route in routes] == ["turnout/fraud/baseline", "turnout/none"]
    assert (tmp_path / "e/ecds/turnout.yaml").exists()
    # Envoy may watch them: nothing else may lie about.
    assert [path.name for path in (tmp_path / "e/cds").iterdir()] == ["clusters.yaml"]


def test_bootstrap_leaves_experiments_out_when_given_a_snapshot(tmp_path: Path) -> None:
    file = tmp_path / "snapshot"
    file.write_bytes(encode(samples.snapshot().SerializeToString()))
    code, output = _run(tmp_path, "--snapshot", str(file))
    assert code == 0, output
    cds = yaml.safe_load((tmp_path / "e/cds/clusters.yaml").read_text())
    assert [cluster["name"] for cluster in cds["resources"]] == ["turnout.fraud.base"]


def test_bootstrap_refuses_files_that_are_invalid_or_missing(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(TARGET.replace("pathPrefix: /v2", "pathPrefix: v2") + "  more: 1\n")
    code, output = _run(tmp_path, "-f", str(bad))
    assert code == 3
    assert "pathPrefix" in output
    assert "more" in output
    assert _run(tmp_path, "-f", str(tmp_path / "none.yaml"))[0] == 1
    damaged = tmp_path / "damaged"
    damaged.write_bytes(encode(samples.snapshot().SerializeToString())[:-1])
    assert _run(tmp_path, "--snapshot", str(damaged))[0] == 3
    invalid = samples.snapshot()
    invalid.targets[0].name = "No Name"
    damaged.write_bytes(encode(invalid.SerializeToString()))
    code, output = _run(tmp_path, "--snapshot", str(damaged))
    assert (code, "targets[0].name" in output) == (3, True)
    assert not (tmp_path / "bootstrap.yaml").exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("listen", "127.0.0.1"),
        ("listen", "localhost:8080"),
        ("listen", "127.0.0.1:99999"),
        ("sidecar", "/tmp/w"),
        ("sidecar", "unix:/tmp/" + "w" * 101),
        ("sidecar", "unix:/tmp/" + "w" * 84),  # with .0 one more than a sidecar takes
        ("admin", "127.0.0.1:9901"),
        ("otlp", "collector"),
        ("sampling", "101"),
        ("workers", "0"),
        ("node", ""),
    ],
)
def test_bootstrap_refuses_an_option_when_it_is_malformed(
    tmp_path: Path, target: str, option: str, value: str
) -> None:
    code, output = _run(tmp_path, "-f", target, **{option: value})
    assert code == 2
    assert option in output


def test_bootstrap_needs_resources_or_a_snapshot_and_not_both(tmp_path: Path, target: str) -> None:
    assert _run(tmp_path)[0] == 2
    assert _run(tmp_path, "-f", target, "--snapshot", target)[0] == 2


JWT = """
- name: envoy.filters.http.jwt_authn
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication
    providers: {users: {issuer: i, payload_in_metadata: claims, local_jwks: {inline_string: "{}"}}}
"""


def test_bootstrap_runs_filters_before_ours_and_misses_those_that_a_claim_needs(
    tmp_path: Path,
) -> None:
    plan = samples.snapshot()
    plan.experiments[0].unit.Clear()
    claim = plan.experiments[0].unit.jwt_claim
    claim.claim, claim.payload_in_metadata = "sub", "claims"
    path = tmp_path / "plan.snapshot"
    path.write_bytes(encode(plan.SerializeToString()))
    code, output = _run(tmp_path, "--snapshot", str(path))
    assert code == 0
    assert "claims-unverified: no jwt_authn before ext_proc keeps claims" in output
    (tmp_path / "filters.yaml").write_text(JWT)
    code, output = _run(tmp_path, "--snapshot", str(path), filters=str(tmp_path / "filters.yaml"))
    assert code == 0
    assert "claims-unverified" not in output
    text = (tmp_path / "bootstrap.yaml").read_text()
    assert text.index("envoy.filters.http.jwt_authn") < text.index("config_discovery")


@pytest.mark.parametrize("text", ["a: 1", "- a", "[", "- {typed_config: {}}", "\xff", ""])
def test_bootstrap_refuses_filters_that_are_no_list_of_filters(
    tmp_path: Path, target: str, text: str
) -> None:
    (tmp_path / "filters.yaml").write_text(text, encoding="latin-1")
    code, output = _run(tmp_path, "-f", target, filters=str(tmp_path / "filters.yaml"))
    assert code == 3
    assert "filters.yaml: " in output
    assert not (tmp_path / "bootstrap.yaml").exists()


def test_bootstrap_warns_of_an_intercepted_pod_when_no_resource_has_its_address(
    tmp_path: Path, target: str
) -> None:
    code, output = _run(tmp_path, "-f", target, local="10.0.0.7:8080")
    assert code == 0
    assert "warning: --local: '10.0.0.7:8080' is the address of no baseline or variant" in output
    assert "fraud-v1:8080" in output
    code, output = _run(tmp_path, "-f", target, local="fraud-v1:8080")
    assert (code, "warning" in output) == (0, False)
