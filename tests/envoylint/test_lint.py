"""Every planted trap is found at its line, and good files give nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sidecar.envoylint import RULES, Needs, UnreadableFile, has_processor, lint
from tests.integration.snapshots import SALT
from turnout.v1alpha1.common_pb2 import Predicate, Unit, Upstream
from turnout.v1alpha1.snapshot_pb2 import ClusterPlan, ExperimentPlan, Snapshot, TargetPlan

HERE = Path(__file__).parent
FAULTY = sorted((HERE / "faulty").iterdir())
GOOD = sorted((HERE / "good").iterdir())
TRAP = re.compile(r"# trap: ([a-z0-9-]+)")
# What a plan would need, where a trap is one only then: the first line says so.
PLAN = re.compile(r"# plan: (\w+)\n")
NEEDS = {
    "claim": Needs(claims=frozenset({"claims"})),
    "session": Needs(session=True),
    "token": Needs(tokens=True),
}


def planted(text: str) -> list[tuple[int, str]]:
    """(line, rule) of the comments in a faulty file."""
    return [
        (number, match[1])
        for number, line in enumerate(text.splitlines(), 1)
        if (match := TRAP.search(line))
    ]


def found(text: str, needs: Needs | None = None) -> list[tuple[int, str]]:
    return [(f.line, f.rule) for f in lint({"x.yaml": text.encode()}, needs)]


def plan(*, unit: str = "x-user-id", candidate: str = "fraud-v2") -> Snapshot:
    """A plan on the clusters of the fixtures."""
    baseline = ClusterPlan(cluster="fraud-v1", upstream=Upstream(cluster="fraud-v1"))
    target = TargetPlan(name="fraud", path_prefix="/v2/models/fraud", baseline=baseline)
    experiment = ExperimentPlan(name="e", epoch=1, target="fraud", unit=Unit(header=unit))
    experiment.salt = SALT
    experiment.segment.CopyFrom(Predicate(header="x-country", equals="DE"))
    experiment.variants.add(name="control", control=True, cluster=baseline)
    other = ClusterPlan(cluster=candidate, upstream=Upstream(cluster=candidate))
    experiment.variants.add(name="v2", cluster=other)
    return Snapshot(targets=[target], experiments=[experiment])


@pytest.mark.parametrize("path", FAULTY, ids=lambda path: path.stem)
def test_a_planted_trap_is_found_at_its_line(path: Path) -> None:
    text = path.read_text()
    assert len(planted(text)) == 1
    planned = PLAN.match(text)
    assert found(text, NEEDS[planned[1]] if planned else None) == planted(text)
    assert not planned or found(text) == []


def test_every_rule_has_a_faulty_file() -> None:
    rules = {rule for path in FAULTY for _, rule in planted(path.read_text())}
    assert rules == {rule.id for rule in RULES}
    assert len(rules) == len(RULES)


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_nothing_is_found_in_a_good_file(path: Path) -> None:
    assert lint({str(path): path.read_bytes()}) == []


def test_nothing_is_found_when_the_files_are_judged_together() -> None:
    files = {
        n: (HERE / "good" / n).read_bytes() for n in ("beside-bootstrap.yaml", "beside-ecds.yaml")
    }
    assert lint(files) == []
    assert has_processor(files)


def test_rules_say_why_and_what_to_write() -> None:
    for rule in RULES:
        assert rule.severity in ("error", "warning")
        assert rule.why.endswith("."), rule.id
        assert len(rule.remedy) > 10, rule.id


# -- What a plan needs -----------------------------------------------------------------------------


def test_headers_that_the_plan_reads_are_missed_when_they_are_not_forwarded() -> None:
    text = (HERE / "good/beside-ecds.yaml").read_text()
    findings = lint({"x": text.encode()}, Needs.of(plan()))
    assert [f.fact for f in findings] == ["forward_rules lacks x-country"]
    wider = text.replace("{exact: x-user-id}", "{prefix: X-, ignore_case: true}")
    assert lint({"x": wider.encode()}, Needs.of(plan())) == []
    refused = wider.replace(
        "      forward_rules:\n",
        "      forward_rules:\n        disallowed_headers: {patterns: [{suffix: -country}]}\n",
    )
    assert found(refused, Needs.of(plan())) == [(13, "forward-rules-incomplete")]


def test_the_candidate_is_the_plans_when_one_is_given() -> None:
    text = (HERE / "good/beside-bootstrap.yaml").read_text()
    threshold = "      common_lb_config: {healthy_panic_threshold: {value: 0}}\n"
    head, separator, tail = text.partition("- name: fraud-v2\n")
    panicking = head + separator + tail.replace(threshold, "")
    assert [rule for _, rule in found(panicking, Needs.of(plan()))] == ["candidate-panic"]
    assert found(panicking, Needs.of(plan(candidate="elsewhere"))) == []


# -- Other ways to say the same --------------------------------------------------------------------


def test_a_trap_is_found_behind_an_alias_and_a_merge_key() -> None:
    text = (HERE / "good/beside-ecds.yaml").read_text()
    shared = text.replace("failure_mode_allow: true", "<<: {failure_mode_allow: false}")
    assert found(shared) == [(7, "fail-closed"), (7, "yaml-merge")]
    anchored = text.replace("stat_prefix: turnout", "stat_prefix: &s turnout")
    anchored = anchored.replace("message_timeout: 0.05s", "message_timeout: *s")
    assert found(anchored) == []


def test_a_trap_is_found_in_json_with_other_spelling() -> None:
    text = (HERE / "good/beside-camel.json").read_text()
    assert "\t" in text
    closed = text.replace('"alwaysSetRequestIdInResponse": true', '"codecType": "AUTO"')
    assert [rule for _, rule in found(closed)] == ["request-id-response"]


@pytest.mark.parametrize("value", ["0.2s", "200ms", "{seconds: 0, nanos: 50000000}", "60s"])
def test_a_message_timeout_that_was_chosen_is_accepted(value: str) -> None:
    text = (HERE / "good/beside-ecds.yaml").read_text()
    assert found(text.replace("0.05s", value)) == []


def test_another_jobs_filter_is_left_alone_when_turnouts_is_there() -> None:
    text = (HERE / "good/beside-hcm.yaml").read_text()
    other = (
        "http_filters:\n"
        "  - name: payload-scanner\n"
        "    typed_config:\n"
        '      "@type": type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3'
        ".ExternalProcessor\n"
        "      grpc_service: {envoy_grpc: {cluster_name: scanner}}\n"
    )
    assert found(text.replace("http_filters:\n", other)) == []


def test_a_filter_of_the_users_own_is_judged_when_turnouts_is_not_there() -> None:
    text = (HERE / "good/beside-hcm.yaml").read_text()
    text = text.replace("  - name: turnout\n", "  - name: splitter\n").replace(
        "            turnout: {", "            splitter: {"
    )
    text = text.replace("always_set_request_id_in_response: true\n", "")
    assert [rule for _, rule in found(text)] == ["request-id-response"]


# -- Files that cannot be judged -------------------------------------------------------------------

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join(['*' + old] * 10)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
UNREADABLE = {
    "not YAML": (b"a: [1, 2\nb: {", 2),
    "a tab": (b"a:\n\tb: 1\n", 2),
    "not UTF-8": (b"node:\n  id: \xff\xfe\n", 2),
    "empty": (b"", 1),
    "a comment": (b"# nothing\n", 1),
    "a scalar": (b"hello\n", 1),
    "a list": (b"- a\n- b\n", 1),
    "another program's": (b"services:\n  web: {image: x}\n", 1),
    "Kubernetes": (b"apiVersion: v1\nkind: ConfigMap\ndata: {}\n", 1),
    "v2 by type": (
        b"static_resources:\n  listeners:\n"
        b'  - "@type": type.googleapis.com/envoy.api.v2.Listener\n',
        3,
    ),
    "v2 by version": (b"dynamic_resources:\n  cds_config: {resource_api_version: V2}\n", 2),
    "v2 by config": (
        b"static_resources:\n  listeners:\n  - filter_chains:\n    - filters:\n"
        b"      - name: envoy.http_connection_manager\n        config: {stat_prefix: x}\n",
        6,
    ),
    "a loop": (b"node: &n\n  id: *n\n", 2),
    "a bomb": (BOMB.encode() + b"node: {id: *i}\n", 1),
    "nested too deeply": (b"node: " + b"[" * 5_000, 1),
    "nested a little too deeply": (b"node: " + b"[" * 100 + b"]" * 100, 1),
    "an unknown anchor": (b"node: *n\n", 1),
    "a tag": (b"node: !!python/object:os.system {}\nfoo", 3),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_file_is_refused_with_one_message_when_it_is(name: str) -> None:
    data, line = UNREADABLE[name]
    with pytest.raises(UnreadableFile) as refusal:
        lint({"mine.yaml": data})
    message = str(refusal.value)
    assert message.startswith("mine.yaml:")
    assert "\n" not in message
    if name not in ("a loop", "nested too deeply", "a tag"):
        assert refusal.value.line == line, message


def test_a_file_is_refused_when_it_is_huge() -> None:
    with pytest.raises(UnreadableFile, match="at most"):
        lint({"x": b"#" * (9 * 1024 * 1024)})
