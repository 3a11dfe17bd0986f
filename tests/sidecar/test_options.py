"""The command line's rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sidecar.listen import Listen
from sidecar.options import OptionError, address, check

GOOD: dict[str, Any] = {
    "listen": "unix:/run/w",
    "workers": 2,
    "control": "127.0.0.1:7700",
    "snapshot": None,
    "state_dir": Path("/state"),
    "node": "n",
    "tenant": "risk",
    "envoy_dir": None,
    "envoy_admin": "unix:/run/a",
    "metrics": "[::1]:9102",
}


def test_options_are_taken_when_they_fit() -> None:
    options = check(**GOOD)
    assert options.listen == Listen(Path("/run/w"))
    assert options.metrics == ("::1", 9102)
    alone = check(**GOOD | {"control": "", "snapshot": Path("s"), "tenant": "", "state_dir": None})
    assert alone.snapshot == Path("s")
    assert alone.instance_id != options.instance_id


@pytest.mark.parametrize(
    ("changed", "option"),
    [
        ({"control": ""}, "--control"),
        ({"snapshot": Path("s")}, "--control"),
        ({"tenant": ""}, "--tenant"),
        ({"tenant": "R I"}, "--tenant"),
        ({"tenant": "Risk"}, "--tenant"),
        ({"tenant": "risk-"}, "--tenant"),
        ({"tenant": "r" * 64}, "--tenant"),
        ({"tenant": "risk\n"}, "--tenant"),
        ({"state_dir": None}, "--state-dir"),
        ({"control": "host"}, "--control"),
        ({"control": ":1"}, "--control"),
        ({"control": "h:65536"}, "--control"),
        ({"control": "::1:80"}, "--control"),
        ({"listen": "/run/w"}, "--listen"),
        ({"listen": "unix:"}, "--listen"),
        ({"listen": "tcp:127.0.0.1"}, "--listen"),
        ({"listen": "tcp:127.0.0.1:0"}, "--listen"),
        ({"listen": "tcp:127.0.0.1:65535"}, "--listen"),
        ({"listen": "tcp:::1:80"}, "--listen"),
        ({"workers": 0}, "--workers"),
        ({"workers": 65}, "--workers"),
        ({"node": ""}, "--node"),
        ({"node": "n" * 254}, "--node"),
        ({"node": "é" * 127}, "--node"),
        ({"node": "a\tb"}, "--node"),
        ({"node": "\udcff"}, "--node"),
        ({"envoy_admin": "unix:"}, "--envoy-admin"),
        ({"envoy_admin": "admin"}, "--envoy-admin"),
        ({"metrics": "9102"}, "--metrics"),
        ({"metrics": "h:-1"}, "--metrics"),
        ({"metrics": "h:٣"}, "--metrics"),
    ],
)
def test_option_is_refused_by_name_when_it_does_not_fit(
    changed: dict[str, Any], option: str
) -> None:
    with pytest.raises(OptionError) as refused:
        check(**GOOD | changed)
    assert refused.value.option == option
    assert option in str(refused.value)


def test_address_has_host_and_port() -> None:
    assert address("--x", "localhost:1") == ("localhost", 1)
    assert address("--x", "[fe80::1]:2") == ("fe80::1", 2)


def test_workers_share_an_address_when_each_has_its_number() -> None:
    assert str(Listen.parse("unix:/run/w").worker(1)) == "unix:/run/w.1"
    assert str(Listen.parse("tcp:[::1]:9000").worker(1)) == "tcp:[::1]:9001"
    assert Listen.parse("tcp:127.0.0.1:0").worker(1) == Listen(None, "127.0.0.1", 0)
