"""What client commands print of full answers and of refusals, told by a server in this process."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import code_pb2

from control.commands import comparing, describing
from control.refusals import Fault, Refused, invalid, unimplemented
from tests.control.clirunning import Done, turnout
from turnout.v1alpha1 import experiment_service_pb2 as api
from turnout.v1alpha1.common_pb2 import BAD_EVENT_KIND_ERROR
from turnout.v1alpha1.config_service_pb2 import (
    ExperimentGate,
    FieldViolation,
    ListSidecarsRequest,
    ListSidecarsResponse,
    Sidecar,
    SidecarReport,
)
from turnout.v1alpha1.experiment_pb2 import (
    REASON_ANALYSIS_PENDING,
    REASON_NO_LABELS_YET,
    REASON_WITHIN_LIMITS,
    STATE_RUNNING,
    TABLE_ROW_PROMOTE,
    VERDICT_PASS,
    VERDICT_UNDECIDED,
    CandidateVerdict,
    Check,
    Condition,
    Experiment,
    ExperimentStatus,
    Lane,
    TableRow,
    VariantResult,
    VerdictReason,
)

Run = Callable[..., Done]

RESULTS = api.ExperimentResults(
    name="tenants/risk/experiments/fraud-v2",
    state=STATE_RUNNING,
    epoch=3,
    epoch_variants=[
        VariantResult(
            variant="control", control=True, decided=1000, requests=950, errors=19, slow=2,
            latency_p50_ms=12.345, latency_p95_ms=80.0, labelled=475, correct=456, loss=0.05,
        ),
        VariantResult(
            variant="v2", requests=50, errors=1, latency_p50_ms=9.0, latency_p95_ms=70.5,
            shadow_requests=200, shadow_errors=1, shadow_latency_p95_ms=44.0,
            shadow_labelled=100, shadow_correct=97,
        ),
    ],
    variants=[VariantResult(variant="control", control=True, requests=7777)],
    lanes=[
        Lane(kind=BAD_EVENT_KIND_ERROR, variant="v2", block=2, candidate_events=1,
             control_events=19, log_e_value=-0.5, log_threshold=8.5),
    ],
    checks=[
        Check(metric="error_rate", variant="v2", verdict=VERDICT_PASS, reason=REASON_WITHIN_LIMITS,
              control_value=0.02, candidate_value=0.02, sentence="2 % against 2 %"),
        Check(metric="accuracy", variant="v2", verdict=VERDICT_UNDECIDED,
              reason=REASON_NO_LABELS_YET, sentence="no labels"),
    ],
    primary_reason=REASON_ANALYSIS_PENDING,
    primary_sentence="accuracy is not judged yet",
    unstamped={"timeout": 3, "unreachable": 12},
    beside={"held_out": 50, "invalid_token": 1},
)  # fmt: skip

SIDECARS = [
    Sidecar(
        node="node-a", connected=True, acked_version=7, current_version=8,
        nack=[FieldViolation(field="experiments[0].epoch", value="0", rule="must be at least 1")],
        report=SidecarReport(applied_version=7, config_state="CURRENT", workers_ready=1, workers=2,
                             gates=[ExperimentGate(experiment="fraud-v2", epoch=3, open=False,
                                                   waiting_for=["turnout.fraud.1234"])]),
    ),
    Sidecar(
        node="node-b", connected=False, acked_version=8, current_version=8,
        last_seen_time=Timestamp(seconds=1_700_000_000),
        report=SidecarReport(applied_version=8, config_state="CURRENT", workers_ready=2, workers=2),
    ),
]  # fmt: skip

FAULTS = [
    Fault("spec.unit.header", "X-User", "must be a lower-case header name"),
    Fault("spec.steps[1].canary.split.v2", "1.5", "must be at least 0 and at most 1"),
    Fault("spec.target", "", "required"),
]
REFUSALS = {
    "invalid": (invalid(FAULTS), 3),
    "future": (unimplemented(["spec.holdback", "spec.safety.autonomous"]), 7),
    "busy": (Refused(code_pb2.FAILED_PRECONDITION, "the layer is taken", reason="LAYER"), 5),
    "taken": (Refused(code_pb2.ALREADY_EXISTS, "it exists", reason="X"), 5),
    "stale": (Refused(code_pb2.ABORTED, "etag is stale", reason="X"), 5),
    "full": (Refused(code_pb2.RESOURCE_EXHAUSTED, "too many", reason="X"), 1),
    "broken": (Refused(code_pb2.INTERNAL, "our bug", reason="X"), 1),
    "away": (Refused(code_pb2.UNAVAILABLE, "the store is locked", reason="X"), 6),
}


class Server:
    """Answers every request with what is above; `calls` holds what was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, dict[str, str]]] = []

    def _noted(self, request: Any, context: grpc.ServicerContext) -> None:
        pairs: Any = context.invocation_metadata()
        self.calls.append((request, dict(pairs)))

    def results(
        self, request: api.GetExperimentResultsRequest, context: grpc.ServicerContext
    ) -> api.ExperimentResults:
        self._noted(request, context)
        return RESULTS

    def sidecars(
        self, request: ListSidecarsRequest, context: grpc.ServicerContext
    ) -> ListSidecarsResponse:
        self._noted(request, context)
        return ListSidecarsResponse(sidecars=SIDECARS)

    def page(
        self, request: api.ListExperimentsRequest, context: grpc.ServicerContext
    ) -> api.ListExperimentsResponse:
        """Three pages of one experiment each."""
        self._noted(request, context)
        number = int(request.page_token or "0")
        name = f"tenants/risk/experiments/e{number}"
        token = str(number + 1) if number < 2 else ""
        return api.ListExperimentsResponse(
            experiments=[Experiment(name=name)], next_page_token=token
        )

    def start(
        self, request: api.StartExperimentRequest, context: grpc.ServicerContext
    ) -> Experiment:
        """Refuse in the way that the experiment's name says."""
        self._noted(request, context)
        name = request.name.rpartition("/")[2]
        if name in REFUSALS:
            status = REFUSALS[name][0].status()
            context.set_trailing_metadata(
                (("grpc-status-details-bin", status.SerializeToString()),)
            )
            codes = {code.value[0]: code for code in grpc.StatusCode}
            context.abort(codes[status.code], status.message)
        return Experiment(name=request.name)


def _handlers(
    service: str, methods: Mapping[str, tuple[Any, type[Message]]]
) -> grpc.GenericRpcHandler:
    """The methods of one service of the contract."""
    return grpc.method_handlers_generic_handler(
        f"turnout.v1alpha1.{service}",
        {
            name: grpc.unary_unary_rpc_method_handler(
                method,
                request_deserializer=request.FromString,
                response_serializer=lambda message: message.SerializeToString(),
            )
            for name, (method, request) in methods.items()
        },
    )


@pytest.fixture
def server() -> Server:
    """What answers."""
    return Server()


@pytest.fixture
def run(server: Server) -> Iterator[Run]:
    """Runs a command against it."""
    listener = grpc.server(ThreadPoolExecutor(max_workers=2))
    services: dict[str, dict[str, tuple[Any, type[Message]]]] = {
        "ExperimentService": {
            "GetExperimentResults": (server.results, api.GetExperimentResultsRequest),
            "ListExperiments": (server.page, api.ListExperimentsRequest),
            "StartExperiment": (server.start, api.StartExperimentRequest),
        },
        "SidecarService": {"ListSidecars": (server.sidecars, ListSidecarsRequest)},
    }
    for service, methods in services.items():
        listener.add_generic_rpc_handlers((_handlers(service, methods),))
    port = listener.add_insecure_port("127.0.0.1:0")
    listener.start()
    try:
        yield lambda *words: turnout(*words, "--tenant", "risk", "--control", f"127.0.0.1:{port}")
    finally:
        listener.stop(grace=None).wait()


def test_results_show_rates_lanes_checks_and_unstamped_when_there_are_some(run: Run) -> None:
    assert run("results", "fraud-v2").lines == [
        "VARIANT (* CONTROL) REQUESTS ERRORS SLOW P50 MS P95 MS ACCURACY LABELLED LOSS "
        "COPIES COPIES' ERRORS COPIES' P95 MS COPIES' ACCURACY",
        "control * 950 19 (2 %) 2 (0.2105 %) 12.35 80 96 % 475 (50 %) 5 % 0 0",
        "v2 50 1 (2 %) 0 (0 %) 9 70.5 0 (0 %) 0 % 200 1 (0.5 %) 44 97 %",
        "",
        "LANE VARIANT BLOCK EVENTS CONTROL'S LOG E THRESHOLD CROSSED",
        "ERROR v2 2 1 19 -0.5 8.5 no",
        "",
        "CHECK VARIANT VERDICT REASON CONTROL CANDIDATE WHY",
        "error_rate v2 PASS WITHIN_LIMITS 0.02 0.02 2 % against 2 %",
        "accuracy v2 UNDECIDED NO_LABELS_YET 0 0 no labels",
        "",
        "Primary metric: accuracy is not judged yet",
        "",
        "Unstamped: timeout 3, unreachable 12",
        "",
        "Beside the variants: held out 50, invalid token 1",
    ]


def test_results_begin_with_the_verdict_when_there_is_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = api.ExperimentResults(
        sentence="v2 is better: accuracy 95 % of 900, control 85 % of 910",
        verdicts=[
            CandidateVerdict(
                variant="v2",
                row=TABLE_ROW_PROMOTE,
                reasons=[VerdictReason(code="better", text="accuracy improved")],
                notes=["less than a week"],
            )
        ],
        comparisons=[
            api.Comparison(
                metric="accuracy", variant="v2", stratum="new", higher_is_better=True,
                control=api.ArmValue(n=910, value=0.85), candidate=api.ArmValue(n=900, value=0.95),
                difference=0.1, low=0.05, high=0.15, confidence=0.975, standing=api.STANDING_BETTER,
            ),
            api.Comparison(
                metric="latency_p95", variant="v2", slo=Duration(nanos=200_000_000),
                control=api.ArmValue(n=5, value=0.02), candidate=api.ArmValue(n=4), confidence=0.95,
                standing=api.STANDING_UNCLEAR, projected_n=12_345.0,
            ),
        ],
        fairness_gaps=[
            api.FairnessGap(variant="v2", metric="accuracy", lowest_stratum="new", lowest=0.6,
                        highest_stratum="(rest)", highest=0.97)
        ],
        hours=[api.HourBalance(hour=3, shares={"control": 1.0, "v2": 1.0})],
        throughput={"control": 12.0, "v2": 3.25},
    )  # fmt: skip
    comparing.print_verdicts(found)
    comparing.print_comparisons(found)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "v2 is better: accuracy 95 % of 900, control 85 % of 910",
        "",
        "Verdict on v2: PROMOTE",
        "better: accuracy improved",
        "note: less than a week",
        "",
        "",
        "Metrics (95 % confidence sequences, of a stratum 97.5 % so that all strata of a metric "
        "together hold 95 %: valid however often you look)",
        "METRIC VARIANT STRATUM CONTROL (N) CANDIDATE (N) DIFFERENCE SEQUENCE STANDING N NEEDED",
        "accuracy v2 new 85 % (910) 95 % (900) +10 % [+5 %, +15 %] better",
        "latency_p95 > 200 ms v2 all 2 % (5) - (4) unclear 12,300",
        "Strata of v2: accuracy from 60 % (new) to 97 % ((rest))",
        "Time of day: 1 hour seen; the arms' shares of an hour differ by at most 0 %",
        "Throughput (the split's, not judged): control 12/s, v2 3.25/s",
    ]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("ROLLBACK", "ROLLBACK"),
        ("INVALID", "INVALID"),
        ("WARMING_UP", "CONTINUE (warm-up)"),
        ("HOLD", "HOLD"),
        ("PROMOTE", "PROMOTE"),
        ("KEEP_CONTROL_WORSE", "KEEP CONTROL (worse)"),
        ("KEEP_CONTROL_FUTILE", "KEEP CONTROL (futile)"),
        ("NO_DIFFERENCE", "NO DIFFERENCE"),
        ("CONTINUE", "CONTINUE"),
        ("INCONCLUSIVE", "INCONCLUSIVE"),
    ],
)
def test_verdict_has_the_decision_table_s_words_when_results_are_shown(
    row: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    verdict = CandidateVerdict(variant="v2", row=TableRow.Value(f"TABLE_ROW_{row}"))
    comparing.print_verdicts(api.ExperimentResults(verdicts=[verdict]))
    assert capsys.readouterr().out.splitlines()[0] == f"Verdict on v2: {words}"


def test_results_say_one_level_when_there_are_no_strata(capsys: pytest.CaptureFixture[str]) -> None:
    one = api.Comparison(metric="accuracy", variant="v2", confidence=0.99)
    comparing.print_comparisons(api.ExperimentResults(comparisons=[one]))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "Metrics (99 % confidence sequences: valid however often you look)"


def test_results_say_that_the_level_is_of_each_candidate_when_there_are_several(
    capsys: pytest.CaptureFixture[str],
) -> None:
    both = [api.Comparison(metric="f1", variant=name, confidence=0.975) for name in ("v2", "v3")]
    comparing.print_comparisons(api.ExperimentResults(comparisons=both))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == (
        "Metrics (97.5 % confidence sequences of each candidate: valid however often you look)"
    )


def test_results_are_the_sum_of_epochs_when_that_is_asked(run: Run) -> None:
    assert run("results", "fraud-v2", "--all-epochs").lines[1].startswith("control * 7777 0 (0 %)")


def test_results_keep_the_contract_s_names_when_they_are_json(run: Run) -> None:
    found = json.loads(run("results", "fraud-v2", "-o", "json").out)
    assert found["state"] == "RUNNING"
    assert found["primaryReason"] == "ANALYSIS_PENDING"
    assert found["unstamped"] == {"timeout": 3, "unreachable": 12}
    assert [item["variant"] for item in found["epochVariants"]] == ["control", "v2"]
    assert found["lanes"][0]["kind"] == "ERROR"


def test_sidecars_show_versions_and_every_trouble_when_one_lags(run: Run) -> None:
    assert run("sidecars").lines == [
        "NODE CONNECTED SERVES CURRENT CONFIG WORKERS SEEN TROUBLE",
        "node-a yes 7 8 CURRENT 1/2 NACK experiments[0].epoch: 0: must be at least 1; "
        "fraud-v2 waits for turnout.fraud.1234",
        "node-b no 8 DISCONNECTED 11-14 22:13:20Z",
    ]


def test_list_is_whole_when_it_comes_in_pages(run: Run, server: Server) -> None:
    assert [line.split()[0] for line in run("get", "experiments").lines[1:]] == ["e0", "e1", "e2"]
    assert [request.page_token for request, _ in server.calls] == ["", "1", "2"]


def test_every_violation_is_a_line_of_field_value_and_rule_when_the_server_refuses(
    run: Run,
) -> None:
    done = run("start", "invalid")
    assert done.code == 3
    assert done.err.splitlines() == [
        "spec.unit.header: X-User: must be a lower-case header name",
        "spec.steps[1].canary.split.v2: 1.5: must be at least 0 and at most 1",
        "spec.target: required",
    ]
    future = run("start", "future")
    assert future.code == 7
    assert future.err.splitlines() == [
        "spec.holdback: not implemented",
        "spec.safety.autonomous: not implemented",
    ]


@pytest.mark.parametrize("name", sorted(REFUSALS))
def test_exit_code_follows_the_status_when_the_server_refuses(run: Run, name: str) -> None:
    refused, code = REFUSALS[name]
    done = run("start", name)
    assert (done.code, done.out) == (code, "")
    if not refused.faults:
        assert refused.message in done.err


def test_mutation_carries_who_asks_a_fresh_request_id_and_the_etag(
    run: Run, server: Server
) -> None:
    for _ in range(2):
        assert run("start", "fine", "--etag", "abc").code == 0
    requests = [request for request, _ in server.calls]
    assert [request.etag for request in requests] == ["abc", "abc"]
    assert len({request.request_id for request in requests}) == 2
    assert all(0 < len(request.request_id) <= 64 for request in requests)
    assert [sent["x-turnout-actor"] for _, sent in server.calls] == ["tester", "tester"]


def test_request_keeps_its_id_when_it_is_retried(run: Run, server: Server) -> None:
    assert run("start", "away").code == 6
    assert len(server.calls) == 3
    assert len({request.request_id for request, _ in server.calls}) == 1


def test_condition_has_no_reason_when_there_is_none_to_tell() -> None:
    status = ExperimentStatus(conditions=[Condition(type="WAITING_FOR_UPSTREAM", status=False)])
    page = describing.experiment(Experiment(status=status), [])
    assert "  WAITING_FOR_UPSTREAM no" in page.splitlines()
    assert "UNSPECIFIED)" not in page


def test_every_example_has_a_line_of_its_own_in_the_help() -> None:
    commands = [*re.findall(r"^  ([a-z]+) ", turnout("--help").out, re.MULTILINE)]
    assert {"explain", "force", "sidecar"} <= set(commands)
    for command in commands:
        lines = turnout(command, "--help").out.splitlines()
        assert [line for line in lines if re.match(r" +turnout .*[^|& ] +turnout ", line)] == []
    explained = turnout("explain", "--help").lines
    assert """turnout explain -f fraud.yaml --claims '{"sub": "42"}'""" in explained
