"""Our subset of Envoy's messages means on the wire what Envoy means.

Envoy's descriptors come from PyPI's xds-protos, which must never be where the product runs: it
overwrites files of opentelemetry-proto. So it lives in an environment of its own under .tools.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from google.protobuf.descriptor import Descriptor, EnumDescriptor
from grpc_health.v1 import health_pb2 as grpc_health

from turnout.envoy import access_log_pb2, ext_proc_pb2, health_pb2

ROOT: Final = Path(__file__).resolve().parents[2]
HERE: Final = Path(__file__).parent
REQUIREMENTS: Final = HERE / "requirements-xds.txt"
HOME: Final = ROOT / ".tools" / "xds-protos"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Two test runs do not install over each other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def call(*command: str | Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment["PYTHONPATH"] = str(ROOT / "proto")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def python() -> Path:
    """An interpreter that has xds-protos."""
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest() + " " + sys.version
    installed, interpreter = HOME / "installed", HOME / "bin" / "python"
    with locked(HOME.with_suffix(".lock")):
        if not installed.exists() or installed.read_text() != wanted:
            call(sys.executable, "-m", "venv", "--clear", HOME)
            pip = (interpreter, "-m", "pip", "install", "-q", "--disable-pip-version-check")
            call(*pip, "--require-hashes", "--only-binary", ":all:", "-r", REQUIREMENTS)
            installed.write_text(wanted)
    return interpreter


def compare(python: Path, *arguments: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(call(python, HERE / "compare_envoy_wire.py", *arguments))
    return report


def test_subset_is_envoys_when_compared_with_xds_protos(python: Path) -> None:
    """Names, numbers, types, oneofs and enums; random messages both ways."""
    report = compare(python)
    assert report["differences"] == []
    files = (ext_proc_pb2, access_log_pb2)
    messages = [m for file in files for m in file.DESCRIPTOR.message_types_by_name.values()]
    assert report["messages"] == sum(1 + len(m.nested_types) for m in messages)
    assert report["fields"] > 70


@pytest.mark.parametrize(
    ("swap", "complaint"),
    [
        ("HeaderMap=envoy.service.ext_proc.v3.HeaderMutation", "no such field"),
        ("Node=envoy.config.core.v3.HeaderValue", "no such field"),
        ("HttpHeaders=envoy.service.ext_proc.v3.HttpBody", "no such field"),
    ],
)
def test_comparison_complains_when_a_message_is_compared_with_another(
    python: Path, swap: str, complaint: str
) -> None:
    assert any(complaint in line for line in compare(python, swap)["differences"])


def test_health_messages_are_grpcs() -> None:
    """grpcio-health-checking is at hand here, so this needs no environment of its own."""
    for ours, theirs in (
        (health_pb2.HealthCheckRequest, grpc_health.HealthCheckRequest),
        (health_pb2.HealthCheckResponse, grpc_health.HealthCheckResponse),
    ):
        assert shape(ours.DESCRIPTOR) == shape(theirs.DESCRIPTOR)


def shape(message: Descriptor) -> list[tuple[object, ...]]:
    return [(f.name, f.number, f.type, f.is_repeated, values(f.enum_type)) for f in message.fields]


def values(enum: EnumDescriptor | None) -> dict[str, int]:
    return {value.name: value.number for value in enum.values} if enum is not None else {}
