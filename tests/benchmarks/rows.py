"""The rows of the data plane's benchmark: an Envoy, and perhaps a server, each.

Owns what every row has alike and in what rows differ. All Envoys have the product's bootstrap: the
same listener, strip, request ids, clusters and health checks, one thread, and the upstream as a
listener of their own. Routes have the same timeouts and retries; every row adds `x-variant` to the
response. Access logs are off, but in the row of the default configuration. Rows with ext_proc
forward the same headers and stamp three.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

from sidecar.envoybootstrap import BootstrapOptions, bootstrap
from sidecar.envoyfiles import CLUSTERS_FILE, FILTER_FILE, ROUTES_FILE, documents
from sidecar.snapshotfile import encode
from tests import compiling
from tests.benchmarks import plans, shipped
from tests.integration.harness import Child, free_port
from turnout import contract
from turnout.v1alpha1.snapshot_pb2 import Snapshot

ROOT: Final = Path(__file__).parents[2]
TOOLS: Final = ROOT / ".tools" / "bin"
_ROUTER: Final = "envoy.filters.http.router"


class Ports(NamedTuple):
    """Where one Envoy listens."""

    listen: int
    first: int
    second: int


class Place:
    """The files and processes of one row."""

    def __init__(self, name: str, directory: Path) -> None:
        """Take a directory of its own; short, as a socket's path has 107 bytes."""
        self.name = name
        self.directory = Path(tempfile.mkdtemp(dir=directory))
        self.ports = Ports(free_port(), free_port(), free_port())
        self.upstreams = plans.Upstreams(self.ports.first, self.ports.second)
        self.socket = self.directory / "w"
        self.admin = self.directory / "a"
        self.envoy_dir = self.directory / "e"

    def write(self, file: str, text: str) -> None:
        """Replace one of Envoy's watched files."""
        path = self.envoy_dir / file
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(".new")
        temporary.write_text(text)
        temporary.replace(path)

    def child(self, name: str) -> Child:
        """A process that is not started."""
        return Child(f"{self.name}: {name}", self.directory / f"{name}.log")


class Row(NamedTuple):
    """One thing to measure.

    Attributes:
        name: As in the table.
        snapshot: What the target is.
        command: Starts the server; None = there is none.
        plain: The action of the only route, of an Envoy without ext_proc.
        access_logs: As the product configures them.
        workers: Sockets of the server.
        needs: A program that has to be there.
    """

    name: str
    snapshot: Callable[[plans.Upstreams], Snapshot]
    command: Callable[[Place, Snapshot, Row], list[str]] | None = None
    plain: Callable[[Place], dict[str, Any]] | None = None
    access_logs: bool = False
    workers: int = 1
    server: str = "wire"
    needs: Path | None = None

    @property
    def stamps(self) -> bool:
        """Whether ext_proc is asked on the route."""
        return self.command is not None and self.snapshot is not plans.without_experiment


# -- Servers ---------------------------------------------------------------------------------------


def _sidecar(place: Place, snapshot: Snapshot, row: Row) -> list[str]:
    file = place.directory / "served.snapshot"
    file.write_bytes(encode(snapshot.SerializeToString(deterministic=True)))
    return [
        *("env", *(f"--unset={name}" for name in compiling.environment())),
        str(shipped.build()), "sidecar", "--listen", f"unix:{place.socket}",
        "--workers", str(row.workers), "--server", row.server, "--snapshot", str(file),
        "--state-dir", str(place.directory / "state"), "--node", "bench",
        "--envoy-dir", str(_written_by_sidecar(place, row)), "--envoy-admin", f"unix:{place.admin}",
    ]  # fmt: skip


def _written_by_sidecar(place: Place, row: Row) -> Path:
    """Envoy's directory; another one where `name_the_variant` changes what Envoy reads."""
    return place.envoy_dir if row.stamps else place.directory / "unread"


def _peer(place: Place, _snapshot: Snapshot, row: Row) -> list[str]:
    socket = Path(f"{place.socket}.0")
    socket.unlink(missing_ok=True)
    variants = [f"{name}={cluster}" for name, cluster in place.upstreams.names().items()]
    return [str(row.needs), str(socket), plans.UNIT_HEADER, *variants]


# -- Routes without ext_proc -----------------------------------------------------------------------


def _variant(name: str) -> list[dict[str, Any]]:
    """The response header that all rows have."""
    header = {"key": contract.HEADER_VARIANT, "value": name}
    return [{"header": header, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}]


def _direct(place: Place) -> dict[str, Any]:
    return {
        "route": {"cluster": place.upstreams.first.cluster},
        "response_headers_to_add": _variant(plans.CONTROL),
    }


def _weighted(place: Place) -> dict[str, Any]:
    """Envoy's own sticky split: weighted clusters chosen by the hash of the unit's header."""
    clusters = [
        {"name": cluster, "weight": 50, "response_headers_to_add": _variant(name)}
        for name, cluster in place.upstreams.names().items()
    ]
    return {
        "route": {
            "hash_policy": [{"header": {"header_name": plans.UNIT_HEADER}}],
            "weighted_clusters": {"clusters": clusters, "use_hash_policy": True},
        }
    }


ROWS: Final = (
    Row("none", plans.without_experiment, plain=_direct),
    Row("hash_policy", plans.one_experiment, plain=_weighted),
    Row("idle", plans.without_experiment, _sidecar),
    Row("turnout_1", plans.one_experiment, _sidecar),
    Row("turnout_20", plans.twenty_experiments, _sidecar),
    Row("grpc_aio", plans.one_experiment, _sidecar, server="grpcio"),
    Row("grpc_go", plans.one_experiment, _peer, needs=TOOLS / "extproc-go"),
    Row("tonic", plans.one_experiment, _peer, needs=TOOLS / "extproc-tonic"),
    # The product as it comes: two workers, access logs on.
    Row("default", plans.one_experiment, _sidecar, access_logs=True, workers=2),
)


# -- Envoy -----------------------------------------------------------------------------------------


def envoy_document(place: Place, row: Row) -> str:
    """The product's bootstrap, with the upstream in it, and less where the row has less."""
    options = BootstrapOptions(
        listen_host="127.0.0.1",
        listen_port=place.ports.listen,
        sidecar=str(place.socket),
        workers=row.workers,
        envoy_dir=str(place.envoy_dir),
        admin=str(place.admin),
    )
    document = yaml.safe_load(bootstrap(options))
    listeners = document["static_resources"]["listeners"]
    manager = listeners[0]["filter_chains"][0]["filters"][0]["typed_config"]
    if not row.access_logs:
        del manager["access_log"]
        router = next(f for f in manager["http_filters"] if f["name"] == _ROUTER)
        del router["typed_config"]["upstream_log"]
    if row.plain is not None:
        manager["http_filters"] = [f for f in manager["http_filters"] if f["name"] == _ROUTER]
    listeners.extend(_upstream(port) for port in place.ports[1:])
    return json.dumps(document)


def _upstream(port: int) -> dict[str, Any]:
    """A listener that answers 200 with a short body."""
    answer = {"direct_response": {"status": 200, "body": {"inline_string": "ok\n"}}}
    routes = [{"match": {"prefix": "/"}, **answer}]
    filters = "type.googleapis.com/envoy.extensions.filters"
    router = {"@type": f"{filters}.http.router.v3.Router"}
    manager = {
        "@type": f"{filters}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": f"upstream_{port}",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": [{"name": _ROUTER, "typed_config": router}],
    }
    return {
        "name": f"upstream_{port}",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [{"name": "hcm", "typed_config": manager}]}],
    }


def write_files(place: Place, row: Row, snapshot: Snapshot) -> None:
    """Envoy's watched files, as the sidecar would write them."""
    files = documents(snapshot, enabled={(e.name, e.epoch) for e in snapshot.experiments})
    place.write(CLUSTERS_FILE, files.cds)
    place.write(FILTER_FILE, files.ecds)
    place.write(ROUTES_FILE, _routes(place, row, files.rds))


def _routes(place: Place, row: Row, product: str) -> str:
    return product if row.plain is None else _plain_routes(place, row, product)


def _plain_routes(place: Place, row: Row, product: str) -> str:
    """A single route, with the timeouts and retries of the product's route to the baseline."""
    assert row.plain is not None
    [host] = yaml.safe_load(product)["resources"][0]["virtual_hosts"]
    baseline = next(r for r in host["routes"] if "cluster" in r.get("route", {}))
    limits = {key: value for key, value in baseline["route"].items() if key != "cluster"}
    action = row.plain(place)
    route = {"match": {"prefix": plans.PATH}, **action, "route": limits | action["route"]}
    configuration = {
        "@type": "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
        "name": contract.ROUTE_CONFIG_NAME,
        "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}],
    }
    return json.dumps({"resources": [configuration]})


def name_the_variant(place: Place) -> None:
    """Let a target at rest name its variant, as all rows do: its own routes do not."""
    document = yaml.safe_load((place.envoy_dir / ROUTES_FILE).read_text())
    for host in document["resources"][0]["virtual_hosts"]:
        for route in host["routes"]:
            if "route" in route:
                route["response_headers_to_add"] = _variant(plans.CONTROL)
    place.write(ROUTES_FILE, json.dumps(document))
