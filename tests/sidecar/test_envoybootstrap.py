"""The bootstrap's promises that are easy to lose; Envoy itself reads it in tests/integration."""

from __future__ import annotations

from typing import Any

import yaml

from sidecar.envoybootstrap import BootstrapOptions, bootstrap, workers_cluster
from sidecar.envoyyaml import dump, seconds
from turnout import contract

OPTIONS = BootstrapOptions(
    listen_host="127.0.0.1",
    listen_port=8080,
    sidecar="/run/t/w",
    workers=3,
    envoy_dir="/etc/e",
    admin="/run/t/a",
)


def _manager(options: BootstrapOptions) -> dict[str, Any]:
    document = yaml.safe_load(bootstrap(options))
    chain = document["static_resources"]["listeners"][0]["filter_chains"][0]
    manager: dict[str, Any] = chain["filters"][0]["typed_config"]
    return manager


def _clusters(options: BootstrapOptions) -> dict[str, Any]:
    found = yaml.safe_load(bootstrap(options))["static_resources"]["clusters"]
    return {cluster["name"]: cluster for cluster in found}


def test_every_reserved_name_is_stripped_before_the_route_is_chosen() -> None:
    (strip,) = _manager(OPTIONS)["early_header_mutation_extensions"]
    matchers = [m["remove_on_match"]["key_matcher"] for m in strip["typed_config"]["mutations"]]
    assert {m["exact"] for m in matchers if "exact" in m} == set(contract.RESERVED_HEADERS)
    prefixes = {m["prefix"] for m in matchers if "prefix" in m}
    assert prefixes == set(contract.RESERVED_HEADER_PREFIXES)


def test_each_file_is_watched_in_a_directory_of_its_own() -> None:
    manager = _manager(OPTIONS)
    cds = yaml.safe_load(bootstrap(OPTIONS))["dynamic_resources"]["cds_config"]
    sources = [
        cds,
        manager["rds"]["config_source"],
        manager["http_filters"][0]["config_discovery"]["config_source"],
    ]
    watched = [source["path_config_source"]["watched_directory"]["path"] for source in sources]
    assert watched == ["/etc/e/cds", "/etc/e/rds", "/etc/e/ecds"]


def test_every_worker_is_an_endpoint_with_its_own_socket() -> None:
    workers = _clusters(OPTIONS)[contract.WORKERS_CLUSTER]
    endpoints = workers["load_assignment"]["endpoints"][0]["lb_endpoints"]
    paths = [endpoint["endpoint"]["address"]["pipe"]["path"] for endpoint in endpoints]
    assert paths == ["/run/t/w.0", "/run/t/w.1", "/run/t/w.2"]


def test_threads_hear_at_once_when_a_worker_is_up() -> None:
    config = workers_cluster("/run/w", 2)["common_lb_config"]
    assert config == {"healthy_panic_threshold": {"value": 0}, "update_merge_window": "0s"}


def test_access_logs_carry_what_the_fold_reads_and_nothing_else() -> None:
    manager = _manager(OPTIONS)
    served = manager["access_log"][0]
    shadow = manager["http_filters"][1]["typed_config"]["upstream_log"][0]
    for log, name in ((served, "turnout_served"), (shadow, "turnout_shadow")):
        config = log["typed_config"]
        assert config["common_config"]["log_name"] == name
        assert config["common_config"]["buffer_size_bytes"] >= 1024 * 1024
        headers = ["x-turnout", "x-request-id", "x-turnout-shadow-of"]
        assert config["additional_request_headers_to_log"] == headers
    logged = [
        f["header_filter"]["header"]["name"] for f in served["filter"]["or_filter"]["filters"]
    ]
    assert logged == ["x-turnout", "x-turnout-unstamped"]
    assert shadow["filter"]["header_filter"]["header"]["name"] == "x-turnout-shadow-of"


def test_nothing_is_traced_when_there_is_nobody_to_tell() -> None:
    assert "tracing" not in _manager(OPTIONS)
    assert contract.OTLP_CLUSTER not in _clusters(OPTIONS)
    traced = OPTIONS._replace(otlp_host="127.0.0.1", otlp_port=4317, sampling=100.0)
    assert _manager(traced)["tracing"]["random_sampling"] == {"value": 100.0}
    assert contract.OTLP_CLUSTER in _clusters(traced)


def test_text_is_quoted_when_envoy_would_read_a_boolean_or_a_number() -> None:
    for text in ("n", "y", "on", "off", "yes", "no", "true", "false", "null", "1", "0x1", "1e3"):
        assert dump({"name": text}) == f'name: "{text}"\n'
    assert dump({"name": "a_long_word", "count": 1}) == "name: a_long_word\ncount: 1\n"


def test_durations_are_exact_when_short() -> None:
    assert [seconds(v) for v in (0.05, 1.0, 0.001, 3600.0)] == ["0.05s", "1s", "0.001s", "3600s"]
