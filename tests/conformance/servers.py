"""Servers under test, each in a process of its own: our worker, grpc.aio, grpclib.

Owns starting them on a Unix socket or a loopback port, and ending what was started. Refuses to look
at what they answer.
"""

from __future__ import annotations

import fcntl
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, NamedTuple, Self

from sidecar.counters import CounterFile
from sidecar.ipc import Kind as Frame
from sidecar.ipc import PlanOrder, frame
from tests.integration.pods import Pod
from tests.integration.snapshots import one_experiment
from tests.integration.waiting import LOOPBACK, free_port

ROOT: Final = Path(__file__).resolve().parents[2]
HERE: Final = Path(__file__).parent
TOOLS: Final = ROOT / ".tools"
Kind = Literal["wire", "grpcio", "grpclib"]
KINDS: Final[tuple[Kind, ...]] = ("wire", "grpcio", "grpclib")
START_S: Final = 30.0
STOP_S: Final = 10.0
POLL_S: Final = 0.02
GRPCLIB: Final = HERE / "requirements-grpclib.txt"


class Address(NamedTuple):
    """Where a server listens.

    Attributes:
        path: Of the Unix socket; "" = TCP.
        port: Of the loopback; 0 = Unix socket.
    """

    path: str = ""
    port: int = 0

    def connect(self, timeout_s: float | None = 5.0) -> socket.socket:
        """A connected socket.

        Raises:
            OSError: Nobody accepts.
        """
        if self.port:
            return socket.create_connection((LOOPBACK, self.port), timeout_s)
        peer = socket.socket(socket.AF_UNIX)
        try:
            # With a time limit it would not wait for a place in the server's queue at all.
            peer.connect(self.path)
            peer.settimeout(timeout_s)
        except OSError:
            peer.close()
            raise
        return peer

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `str` wrote."""
        kind, _, rest = text.partition(":")
        return cls(path=rest) if kind == "unix" else cls(port=int(rest.rpartition(":")[2]))

    def __str__(self) -> str:
        return f"tcp:{LOOPBACK}:{self.port}" if self.port else f"unix:{self.path}"


class Server:
    """One server; a context manager.

    Attributes:
        address: Where it listens.
    """

    def __init__(self, kind: Kind, *, tcp: bool = False) -> None:
        self.kind = kind
        self._directory = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
        self._log = self._directory / "log"
        self.address = Address(port=free_port()) if tcp else Address(str(self._directory / "w"))
        self._process: subprocess.Popen[bytes] | None = None
        self._link: socket.socket | None = None
        self._reader: threading.Thread | None = None

    def __enter__(self) -> Self:
        if self.kind == "grpclib":
            self._spawn(grpclib_python(), HERE / "peer_grpclib.py", str(self.address))
        else:
            self._spawn_worker()
        try:
            self._wait()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if error is not None:
            print(f"--- {self.kind}\n{self.output()[-4_000:]}")
        if self._link is not None and self._reader is not None:
            self._reader.join()
            self._link.close()
        shutil.rmtree(self._directory)

    @property
    def pid(self) -> int:
        """The process that serves."""
        assert self._process is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self._process is not None and self._process.poll() is None

    def output(self) -> str:
        """What it wrote so far."""
        return self._log.read_text(errors="replace")

    def _spawn(self, *command: str | Path, fds: tuple[int, ...] = ()) -> None:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=ROOT, pass_fds=fds
            )

    def _spawn_worker(self) -> None:
        """Be the supervisor: hand over one plan, and read what the worker reports."""
        self._link, theirs = socket.socketpair()
        counters = CounterFile.create("conformance")
        self._spawn(
            *(sys.executable, "-m", "sidecar.worker", "--listen", str(self.address)),
            *("--server", self.kind, "--link", str(theirs.fileno())),
            *("--counters", str(counters.fd), "--index", "0"),
            *("--log-format", "text", "--log-level", "warning"),
            fds=(theirs.fileno(), counters.fd),
        )
        theirs.close()
        counters.close()
        self._link.sendall(frame(Frame.PLAN, plan_order().encode()) + frame(Frame.SERVE))
        self._reader = threading.Thread(target=_discard, args=(self._link,), daemon=True)
        self._reader.start()

    def _wait(self) -> None:
        """Until it accepts connections."""
        deadline = time.monotonic() + START_S
        while True:
            try:
                self.address.connect().close()
            except OSError:
                if not self.alive or time.monotonic() > deadline:
                    raise AssertionError(f"{self.kind} does not serve\n{self.output()}") from None
                time.sleep(POLL_S)
            else:
                return


def plan_order() -> PlanOrder:
    """One experiment on x-user-id, half and half."""
    stable, candidate = Pod("v1"), Pod("v2")
    stable.port, candidate.port = 1, 2
    snapshot = one_experiment(stable, candidate, {"v2": 0.5})
    return PlanOrder(1, snapshot.SerializeToString(deterministic=True), bytes(32))


def _discard(link: socket.socket) -> None:
    while link.recv(65_536):
        pass


def grpclib_python() -> Path:
    """An interpreter that has grpclib, in an environment of its own: nothing of ours needs it."""
    home = TOOLS / "grpclib"
    python, installed = home / "bin" / "python", home / "installed"
    wanted = GRPCLIB.read_text() + sys.version
    home.parent.mkdir(exist_ok=True)
    with home.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not installed.exists() or installed.read_text() != wanted:
            subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
            pip = (python, "-m", "pip", "install", "-q", "--disable-pip-version-check")
            only = ("--require-hashes", "--only-binary", ":all:", "-r", GRPCLIB)
            subprocess.run([*pip, *only], check=True)
            installed.write_text(wanted)
    return python
