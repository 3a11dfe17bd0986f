"""The image as a container runtime would run it: its own root, read-only, its own user.

Owns a mounted copy of the image and what was started in it. Uses what every Debian has (unshare,
mount, chroot), so that no runtime with a daemon is needed; it does need root. Refuses nothing that
a runtime would allow: the network is the host's.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Self

from tests.integration.harness import Child
from tests.tidy.repository import ROOT

STORAGE = ROOT / ".tools" / "image"
IMAGE = "localhost/turnout"
SIDECAR_IMAGE = "localhost/turnout-sidecar"
# $1 = root, $2 = user:group, $3 = directory, $4... = "source:target" up to "--", then the command.
RUN = """
set -eu
root=$1 user=$2 directory=$3
shift 3
mount --bind "$root" "$root"
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount -o remount,ro,bind "$root"
while [ "$1" != -- ]; do
  mount --bind "${1%%:*}" "$root${1#*:}"
  shift
done
shift
exec chroot --userspec="$user" --groups= "$root" env -i -C "$directory" "$@"
"""


def buildah(*arguments: str) -> str:
    """Run buildah on the storage of `make image`."""
    place = ("--root", str(STORAGE / "storage"), "--runroot", str(STORAGE / "run"))
    driver = ("--storage-driver", os.environ.get("STORAGE_DRIVER", "overlay"))
    done = subprocess.run(
        ["buildah", *place, *driver, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class Container:
    """A mounted copy of the image.

    Attributes:
        root: Where it is mounted.
        config: What the image says about how it is to be run.
    """

    def __init__(self, image: str = IMAGE) -> None:
        self.image = image
        self.name = ""
        self.root = Path()
        self.config: dict[str, Any] = {}
        self._volumes: list[tempfile.TemporaryDirectory[str]] = []

    def __enter__(self) -> Self:
        self.name = buildah("from", self.image)
        self.root = Path(buildah("mount", self.name))
        self.config = json.loads(buildah("inspect", "--type", "image", self.image))["OCIv1"][
            "config"
        ]
        return self

    def __exit__(self, *error: object) -> None:
        buildah("umount", self.name)
        buildah("rm", self.name)
        for volume in self._volumes:
            volume.cleanup()

    def volume(self, target: str) -> str:
        """An empty directory of the image's user, to be mounted there."""
        directory = tempfile.TemporaryDirectory(prefix="t", dir="/tmp")
        self._volumes.append(directory)
        user, group = map(int, self.config["User"].split(":"))
        os.chown(directory.name, user, group)
        return f"{directory.name}:{target}"

    def command(self, *command: str, mounts: tuple[str, ...] = ()) -> list[str]:
        """The command line that runs a command in it, with the image's environment."""
        return [
            *("unshare", "--mount", "--propagation", "private", "sh", "-c", RUN, "sh"),
            *(str(self.root), self.config["User"], self.config["WorkingDir"]),
            *mounts,
            "--",
            *self.config["Env"],
            *command,
        ]

    def entry(self, *arguments: str, mounts: tuple[str, ...] = ()) -> list[str]:
        """The command line of the image's entry point."""
        return self.command(*self.config["Entrypoint"], *arguments, mounts=mounts)

    def run(self, *command: str, mounts: tuple[str, ...] = (), code: int = 0) -> str:
        """Run a command to its end; both streams of its output."""
        done = subprocess.run(
            self.command(*command, mounts=mounts), capture_output=True, text=True, check=False
        )
        output = done.stdout + done.stderr
        assert done.returncode == code, output
        return output


class Contained(Child):
    """A process in the container."""

    @property
    def pids(self) -> list[int]:
        """Its process and its children."""
        pid = self.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [pid, *map(int, children)]


def locked() -> dict[str, str]:
    """Name -> version of every package in requirements.txt."""
    pattern = re.compile(r"^([a-z0-9._-]+)(?:\[[a-z,]*\])?==([^ ;]+)", re.MULTILINE)
    text = (ROOT / "requirements.txt").read_text()
    return {canonical(name): version for name, version in pattern.findall(text)}


def canonical(name: str) -> str:
    """A distribution's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()
