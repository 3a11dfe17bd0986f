"""Debian's Prometheus on loopback, and its tool.

Owns the configuration and the HTTP API's few calls that the tests make. Refuses to be reached from
anywhere else.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from tests.integration.harness import Child
from tests.integration.harness import _http_get as http_get
from tests.integration.waiting import LOOPBACK, free_port, wait_for
from tests.tidy.repository import ROOT

MONITORING = ROOT / "envoy" / "monitoring"
RULES = MONITORING / "alerts.yaml"


def promtool(*arguments: str, text: str = "", code: int = 0) -> str:
    """Run promtool; both streams of its output."""
    try:
        done = subprocess.run(
            ["promtool", *arguments],
            input=text,
            capture_output=True,
            check=False,
            text=True,
            timeout=60,
        )
    except FileNotFoundError:
        raise AssertionError("promtool is missing: .ci/tools prometheus installs it") from None
    output = done.stdout + done.stderr
    assert done.returncode == code, output
    return output


class Prometheus(Child):
    """A server that scrapes these targets every 200 ms and evaluates our rules as often."""

    def __init__(self, directory: Path) -> None:
        super().__init__("prometheus", directory / "prometheus.log")
        self.directory = directory
        self.port = free_port()

    async def start(self, targets: dict[str, int]) -> None:
        """Write the configuration (job -> port), start, and wait until it is ready."""
        jobs = [
            {"job_name": job, "static_configs": [{"targets": [f"{LOOPBACK}:{port}"]}]}
            for job, port in targets.items()
        ]
        configuration = {
            "global": {"scrape_interval": "200ms", "evaluation_interval": "200ms"},
            "rule_files": [str(RULES)],
            "scrape_configs": [{"scrape_timeout": "200ms", **job} for job in jobs],
        }
        file = self.directory / "prometheus.yml"
        file.write_text(json.dumps(configuration))  # JSON is YAML
        promtool("check", "config", str(file))
        await self.spawn(
            Path("/usr/bin/prometheus"),
            f"--config.file={file}",
            f"--web.listen-address={LOOPBACK}:{self.port}",
            f"--storage.tsdb.path={self.directory / 'tsdb'}",
            "--log.level=warn",
        )
        await wait_for(self._ready, "Prometheus is ready")

    async def _ready(self) -> bool:
        self.alive()
        try:
            return "Ready" in await http_get(self.port, "/-/ready")
        except OSError:
            return False

    async def query(self, expression: str) -> list[dict[str, Any]]:
        """An instant query's samples."""
        path = f"/api/v1/query?{urlencode({'query': expression})}"
        answer = json.loads(await http_get(self.port, path))
        assert answer["status"] == "success", (expression, answer)
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    async def alerts(self) -> dict[str, dict[str, Any]]:
        """The firing alerts by name."""
        answer = json.loads(await http_get(self.port, "/api/v1/alerts"))
        return {
            alert["labels"]["alertname"]: alert
            for alert in answer["data"]["alerts"]
            if alert["state"] == "firing"
        }
