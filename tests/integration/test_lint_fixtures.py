"""Envoy takes every file that lint finds nothing in, before and after a patch."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from sidecar import envoyfiles
from sidecar.envoylint import Needs, lint
from sidecar.envoypatch import PatchOptions, Unsupported, patch
from sidecar.envoyyaml import dump
from tests.envoylint.test_lint import GOOD
from tests.integration.harness import BIN
from turnout.v1alpha1.common_pb2 import Upstream
from turnout.v1alpha1.snapshot_pb2 import ClusterPlan, Snapshot, TargetPlan

EMPTY = "resources: []\n"
WATCHED = ("lds.yaml", "cds.yaml", "turnout/cds/clusters.yaml")
LISTENER = "envoy.config.listener.v3.Listener"
HCM = "HttpConnectionManager"


@pytest.fixture
def directory() -> Iterator[Path]:
    """What is /etc/envoy in the fixtures, with the files that they watch."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as path:
        root = Path(path)
        files = envoyfiles.documents(Snapshot(), enabled=())
        texts = dict.fromkeys(WATCHED, EMPTY) | {"turnout/ecds/turnout.yaml": files.ecds}
        for name, text in texts.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        yield root


def validate(text: str, directory: Path, suffix: str = ".yaml") -> None:
    path = directory / f"x{suffix}"
    path.write_text(text.replace("/etc/envoy", str(directory)))
    done = subprocess.run(
        [BIN / "envoy", "--mode", "validate", "-c", path],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def as_bootstrap(text: str) -> str:
    """A fixture of any kind inside a bootstrap; a bootstrap as it is."""
    tree: Any = yaml.safe_load(text)
    if "resources" in tree and LISTENER in tree["resources"][0]["@type"]:
        tree = {name: value for name, value in tree["resources"][0].items() if name != "@type"}
    if "http_filters" in tree:
        manager = {"@type": f"type.googleapis.com/{_manager_type()}", **tree}
        address = {"socket_address": {"address": "127.0.0.1", "port_value": 10000}}
        chain = {"filters": [{"name": HCM, "typed_config": manager}]}
        tree = {"name": "web", "address": address, "filter_chains": [chain]}
    if "filter_chains" not in tree:
        return text
    good = yaml.safe_load((GOOD[0].parent / "beside-bootstrap.yaml").read_text())
    good["static_resources"]["listeners"] = [tree]
    return dump(good)


def _manager_type() -> str:
    return f"envoy.extensions.filters.network.http_connection_manager.v3.{HCM}"


def plan(path_prefix: str) -> Snapshot:
    baseline = ClusterPlan(cluster="fraud-v1", upstream=Upstream(cluster="fraud-v1"))
    target = TargetPlan(name="fraud", path_prefix=path_prefix, baseline=baseline)
    target.timeout.FromSeconds(60)
    return Snapshot(targets=[target])


BOOTSTRAPS = [path for path in GOOD if "ecds" not in path.name]


@pytest.mark.parametrize("path", BOOTSTRAPS, ids=lambda path: path.stem)
def test_envoy_takes_a_good_file(path: Path, directory: Path) -> None:
    text = path.read_text()
    validate(text if path.suffix == ".json" else as_bootstrap(text), directory, path.suffix)


def test_envoy_takes_the_good_filter(directory: Path) -> None:
    own = (GOOD[0].parent / "beside-ecds.yaml").read_text()
    (directory / "turnout/ecds/turnout.yaml").write_text(own)
    validate((GOOD[0].parent / "beside-bootstrap.yaml").read_text(), directory)


PATCHABLE = {
    "front-proxy.yaml": {"admin-public"},
    "authorised.yaml": set[str](),
    "beside-bootstrap.yaml": set[str](),
    "beside-camel.json": set[str](),
    "gateway.yaml": set[str](),
}


@pytest.mark.parametrize("name", PATCHABLE)
def test_envoy_takes_a_patched_file_and_lint_finds_only_what_was_there(
    name: str, directory: Path
) -> None:
    own = (GOOD[0].parent / name).read_bytes().replace(b"/etc/envoy", str(directory).encode())
    options = PatchOptions(
        sidecar=str(directory / "w"),
        workers=2,
        envoy_dir=str(directory / "turnout"),
        admin=str(directory / "a"),
    )
    snapshot = plan("/v2/models/fraud")
    text = patch(own, name, options, snapshot)
    assert patch(text.encode(), name, options, snapshot) == text
    assert {f.rule for f in lint({name: text.encode()}, Needs.of(snapshot))} == PATCHABLE[name]
    validate(text, directory)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("beside-lds.yaml", "a discovery; give the bootstrap"),
        ("beside-hcm.yaml", "a manager; give the bootstrap"),
        ("beside-ecds.yaml", "a discovery; give the bootstrap"),
        ("files.yaml", "listeners that come by LDS"),
        ("management-server.yaml", "listeners that come by LDS"),
        ("tcp.json", "no static listener with an HTTP connection manager"),
    ],
)
def test_a_patch_is_refused_by_name(name: str, message: str) -> None:
    options = PatchOptions(sidecar="/tmp/w", workers=2, envoy_dir="/tmp/e", admin="/tmp/a")
    with pytest.raises(Unsupported, match=message):
        patch((GOOD[0].parent / name).read_bytes(), name, options, plan("/"))
