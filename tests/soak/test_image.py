"""The container image: built, looked into, and run as a cluster would run it."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

import pip
import pytest

import turnout
from tests.control.peers import TENANT, Api
from tests.integration.harness import Stage
from tests.integration.harness import _http_get as http_get
from tests.integration.waiting import LOOPBACK, free_port, wait_for
from tests.soak.container import SIDECAR_IMAGE, Contained, Container, canonical, locked
from tests.tidy.repository import ROOT

pytestmark = pytest.mark.soak

# numpy and scipy are 170 MB of the control plane's; a pod has the other.
SIZE_BYTES_MAX = 430_000_000
SIDECAR_SIZE_BYTES_MAX = 250_000_000
STATISTICS = {"numpy", "scipy"}
SBOM = "usr/share/doc/turnout/sbom.cdx.json"
SITE = "opt/turnout/lib"
USER = 65532
STATE = "/var/lib/turnout"
SOCKETS = "/run/turnout"


@pytest.fixture(scope="module")
def container() -> Iterator[Container]:
    """The image that `make soak` has built (by itself: `make image`)."""
    with Container() as one:
        yield one


@pytest.fixture(scope="module")
def slim() -> Iterator[Container]:
    """The one for pods."""
    with Container(SIDECAR_IMAGE) as one:
        yield one


def size_of(container: Container) -> int:
    done = subprocess.run(
        ["du", "-sx", "--block-size=1", str(container.root)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    size = int(done.stdout.split()[0])
    print(f"{container.image}: {size / 1e6:.0f} MB")
    return size


def test_images_are_small_enough(container: Container, slim: Container) -> None:
    assert size_of(container) <= SIZE_BYTES_MAX
    assert size_of(slim) <= SIDECAR_SIZE_BYTES_MAX


def test_image_for_pods_lacks_the_statistics_alone(container: Container, slim: Container) -> None:
    assert slim.config == container.config
    lists = []
    for one in (container, slim):
        (site,) = (one.root / SITE).glob("python3*/site-packages")
        installed = {canonical(d.name): d.version for d in distributions(path=[str(site)])}
        sbom = json.loads((one.root / SBOM).read_text())
        listed = {canonical(c["name"]) for c in sbom["components"]}
        assert installed.keys() - listed <= {"turnout"}
        lists.append((installed.keys(), listed))
    assert lists[0][0] - lists[1][0] == STATISTICS
    assert not STATISTICS & lists[1][1]


def test_image_says_how_it_is_run(container: Container) -> None:
    config = container.config
    assert config["User"] == f"{USER}:{USER}"
    assert config["Entrypoint"] == ["turnout"]
    assert set(config["Volumes"]) == {STATE, SOCKETS}
    labels = config["Labels"]
    assert labels["org.opencontainers.image.version"] == turnout.__version__
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"


def test_image_has_no_tools_to_build_or_to_become_root_with(container: Container) -> None:
    tools = re.compile(r"^(pip[0-9.]*|gcc.*|cc|c\+\+|make|ld|as|curl|wget|git)$")
    found = []
    for directory, directories, files in os.walk(container.root):
        found += [f"{directory}/{n}" for n in directories if n in {"pip", "ensurepip", "hatchling"}]
        for path in (Path(directory, name) for name in files):
            mode = path.lstat().st_mode
            if tools.match(path.name) and (path.is_symlink() or mode & 0o111):
                found.append(str(path))
            if stat.S_ISREG(mode) and mode & 0o6000:
                found.append(f"{path} is set-uid")
    assert not found


def test_bill_of_materials_lists_what_is_locked_and_installed(container: Container) -> None:
    """Three lists that must be one: the lock, what is there, and what the SBOM says."""
    sbom = json.loads((container.root / SBOM).read_text())
    assert sbom["bomFormat"] == "CycloneDX"
    listed = {canonical(c["name"]): c["version"] for c in sbom["components"]}
    (site,) = (container.root / SITE).glob("python3*/site-packages")
    installed = {canonical(d.name): d.version for d in distributions(path=[str(site)])}
    assert locked().items() <= listed.items()
    assert installed == locked() | {"turnout": turnout.__version__}
    assert installed.keys() - listed.keys() <= {"turnout"}
    assert sbom["metadata"]["component"]["name"] == "turnout"


def test_lock_installs_with_hashes_when_pip_is_lent_to_the_image(container: Container) -> None:
    """By its Python, as its user, into a volume; pip comes from outside."""
    mounts = [container.volume(STATE), container.volume("/mnt"), container.volume("/tmp")]
    lent = Path(mounts[1].split(":")[0])
    subprocess.run(["cp", "-r", str(Path(pip.__file__).parent), lent], check=True)
    for file in ("requirements.txt", os.environ.get("PIP_CERT", "LICENSE")):
        subprocess.run(["cp", str(ROOT / file), lent], check=True)
    environment = ["PYTHONPATH=/mnt", "HOME=/tmp"]
    if certificate := os.environ.get("PIP_CERT"):
        environment.append(f"PIP_CERT=/mnt/{Path(certificate).name}")
    resolver = f"{Path('/etc/resolv.conf').resolve()}:/etc/resolv.conf"
    output = container.run(
        "env", *environment,
        "/opt/turnout/bin/python", "-m", "pip", "install", "--require-hashes",
        "--only-binary", ":all:", "--no-cache-dir", "--target", f"{STATE}/there",
        "-r", "/mnt/requirements.txt",
        mounts=(*mounts, resolver),
    )  # fmt: skip
    assert "Successfully installed" in output
    site = Path(mounts[0].split(":")[0], "there")
    installed = {canonical(d.name): d.version for d in distributions(path=[str(site)])}
    assert installed == locked()


async def test_both_entry_points_serve_when_the_root_is_read_only(
    stage: Stage, container: Container, slim: Container
) -> None:
    """A control plane and a sidecar, each from its image, find each other; neither is root."""
    metrics, sidecar_metrics, api_port = free_port(), free_port(), free_port()
    control = stage._own(Contained("control", stage.directory / "control.log"))
    sidecar = stage._own(Contained("sidecar", stage.directory / "sidecar.log"))
    line = container.entry(
        "control", "--listen", f"{LOOPBACK}:{api_port}", "--store", f"sqlite:{STATE}/turnout.db",
        "--metrics", f"{LOOPBACK}:{metrics}",
        mounts=(container.volume(STATE),),
    )  # fmt: skip
    await control.spawn(Path("/usr/bin/unshare"), *line[1:])

    async def listens() -> bool:
        control.alive()
        return "listening" in control.output()

    await wait_for(listens, "the control plane listens")
    async with Api(f"{LOOPBACK}:{api_port}") as api:
        await api.start()
        line = slim.entry(
            "sidecar", "--listen", f"unix:{SOCKETS}/w", "--state-dir", STATE,
            "--control", f"{LOOPBACK}:{api_port}", "--tenant", TENANT, "--node", "node-1",
            "--metrics", f"{LOOPBACK}:{sidecar_metrics}",
            mounts=(slim.volume(STATE), slim.volume(SOCKETS)),
        )  # fmt: skip
        await sidecar.spawn(Path("/usr/bin/unshare"), *line[1:])
        stage.metrics_port = sidecar_metrics
        await stage.workers_serve()

        async def acknowledged() -> bool:
            sidecar.alive()
            text = await http_get(metrics, "/metrics")
            behind = f'turnout_control_sidecars_behind{{tenant="{TENANT}"}} 0.0'
            connected = f'turnout_control_sidecars_connected{{tenant="{TENANT}"}} 1.0'
            return behind in text and connected in text

        await wait_for(acknowledged, "the snapshot is acknowledged")
    pids = [*control.pids, *sidecar.pids]
    assert len(pids) == 4, pids  # the control plane, the supervisor, two workers
    for pid in pids:
        check_confined(pid)
    assert await sidecar.stop() == 0
    assert await control.stop() == 0


def check_confined(pid: int) -> None:
    """Not root, without capabilities, on a root file system that is read-only."""
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    assert status["Uid"].split() == [str(USER)] * 4
    assert status["Gid"].split() == [str(USER)] * 4
    assert status["Groups"].strip() in {"", str(USER)}
    assert int(status["CapEff"], 16) == 0
    mounts = [m.split() for m in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
    roots = [fields for fields in mounts if fields[4] == "/"]
    assert roots
    assert "ro" in roots[-1][5].split(",")
