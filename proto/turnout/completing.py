"""`turnout completion`, and the words that shells are offered: names from the control plane.

Owns the scripts' command and the look-up of names. Refuses to say anything but words: a control
plane that does not answer within a second is as good as none.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Any, Final

import typer

TIMEOUT_S: Final = 1.0
PAGE_SIZE: Final = 500
# Set by the scripts.
COMPLETE_VARIABLE: Final = "_TURNOUT_COMPLETE"
KINDS: Final = ("experiments", "targets", "metrics")
HOLDOUT: Final = ("holdout", "the tenant's holdout")  # one, without a name

HELP: Final = """Print the script that lets a shell complete commands, options and names.

Names of experiments and targets are the control plane's (--control, TURNOUT_CONTROL, --config),
when it answers within a second; otherwise there are none.

\b
  bash  source <(turnout completion bash)        # in ~/.bashrc
  zsh   source <(turnout completion zsh)         # in ~/.zshrc, after compinit
  fish  turnout completion fish > ~/.config/fish/completions/turnout.fish

Exit codes: 0 printed, 2 usage.
"""

Words = list[tuple[str, str]]


class Shell(StrEnum):
    """Whose script."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


completion = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
)


@completion.command("completion", help=HELP)
def print_script(shell: Annotated[Shell, typer.Argument(help="Whose script.")]) -> None:
    """Print Typer's script for a shell."""
    from typer._completion_shared import get_completion_script

    typer.echo(
        get_completion_script(
            prog_name="turnout", complete_var=COMPLETE_VARIABLE, shell=shell.value
        )
    )


def experiment_names(ctx: typer.Context, incomplete: str) -> Words:
    """Names of experiments that begin like this."""
    return _beginning(_names(ctx, "experiments"), incomplete)


def any_names(ctx: typer.Context, incomplete: str) -> Words:
    """Kinds, names of experiments, and names of the kind that was said before."""
    said = [word for value in ctx.params.values() if isinstance(value, list) for word in value]
    kind, slash, name = incomplete.rpartition("/")
    if slash:
        found = _beginning(_names(ctx, _collection(kind)), name)
        return [(f"{kind}/{word}", meaning) for word, meaning in found]
    if said:
        return _beginning(_names(ctx, _collection(str(said[0]))), incomplete)
    kinds = [(kind, f"all {kind}") for kind in KINDS]
    return _beginning([*kinds, HOLDOUT, *_names(ctx, "experiments")], incomplete)


def experiments_and_targets(ctx: typer.Context, incomplete: str) -> Words:
    """Names of both, for what takes either."""
    both = [*_names(ctx, "experiments"), *_names(ctx, "targets")]
    return _beginning(both, incomplete)


def _beginning(words: Iterable[tuple[str, str]], incomplete: str) -> Words:
    return [(word, meaning) for word, meaning in words if word.startswith(incomplete)]


def _collection(kind: str) -> str:
    plural = f"{kind.lower().removesuffix('s')}s"
    return plural if plural in KINDS else ""


def _names(ctx: typer.Context, kind: str) -> Words:
    """Names of a kind with a word about each; none when the control plane does not say."""
    control, tenant = ctx.params.get("control"), ctx.params.get("tenant")
    if not control or not tenant or not kind:
        return []
    # A shell's line is no place for a library's log.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    import grpc

    from turnout.v1alpha1 import experiment_service_pb2 as api
    from turnout.v1alpha1 import metric_service_pb2 as metric_api
    from turnout.v1alpha1.experiment_pb2 import State
    from turnout.v1alpha1.experiment_service_pb2_grpc import (
        ExperimentServiceStub,
        TargetServiceStub,
    )
    from turnout.v1alpha1.metric_service_pb2_grpc import MetricServiceStub

    parent = f"tenants/{tenant}"
    listed: Any
    try:
        with grpc.insecure_channel(control) as channel:
            if kind == "targets":
                targets = api.ListTargetsRequest(parent=parent, page_size=PAGE_SIZE)
                listed = TargetServiceStub(channel).ListTargets(targets, timeout=TIMEOUT_S)
                return [(_last(target.name), "target") for target in listed.targets]
            if kind == "metrics":
                metrics = metric_api.ListMetricsRequest(parent=parent, page_size=PAGE_SIZE)
                listed = MetricServiceStub(channel).ListMetrics(metrics, timeout=TIMEOUT_S)
                return [(_last(metric.name), "metric") for metric in listed.metrics]
            experiments = api.ListExperimentsRequest(parent=parent, page_size=PAGE_SIZE)
            stub = ExperimentServiceStub(channel)
            listed = stub.ListExperiments(experiments, timeout=TIMEOUT_S)
    except grpc.RpcError:
        return []
    return [
        (_last(found.name), State.Name(found.status.state).removeprefix("STATE_").lower())
        for found in listed.experiments
    ]


def _last(name: str) -> str:
    return name.rpartition("/")[2]
