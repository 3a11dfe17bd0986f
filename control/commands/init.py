"""`turnout init`: a first resource file, from a few questions or from flags.

Owns the file's words. Refuses to overwrite unless told to, and to write what `turnout lint` would
refuse: the answers are checked by the rules of the resources themselves.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

from control.commands.client import command_with
from control.commands.files import EXIT_FAILED, EXIT_INVALID
from control.model import Violation, check_documents, is_label, read_yaml, unimplemented
from control.model.text import Scalar

EXIT_CODES: Final = (
    "Exit codes: 0 written, 1 the file exists or cannot be written, 2 usage (a flag is missing and "
    "nobody can be asked), 3 an answer is invalid."
)


class Kind(StrEnum):
    """What is tried first."""

    CANARY = "canary"
    AB = "ab"
    SHADOW = "shadow"


# In the order in which they are asked: flag -> (question, default).
QUESTIONS: Final[Mapping[str, tuple[str, str | None]]] = {
    "target": ("Name of the model endpoint (a-z 0-9 -)", None),
    "baseline": ("HOST:PORT of the version that serves now", None),
    "candidate": ("HOST:PORT of the version to try", None),
    "unit-header": ("Request header that names the user (kept on one version)", "x-user-id"),
    "kind": ("canary (grow step by step), ab (hold a split), shadow (copies only)", "canary"),
}
# What stands in for answers that are not given yet while the others are checked.
_EXAMPLE: Final = {
    "target": "model",
    "baseline": "v1:80",
    "candidate": "v2:80",
    "unit-header": "x-user-id",
    "kind": "canary",
    "host": "*",
    "path-prefix": "/",
    "health-path": "",
    "name": "try",
    "tenant": "",
}
# Which flag a fault in the file comes from: the end of its path in a target, in an experiment.
_SOURCES: Final = (
    ("Target", "spec.match.hosts", "host"),
    ("Target", "spec.match.pathPrefix", "path-prefix"),
    ("Target", "spec.baseline.upstream.address", "baseline"),
    ("Target", "spec.baseline.upstream.healthPath", "health-path"),
    ("Target", "metadata.name", "target"),
    ("Experiment", "metadata.name", "name"),
    ("Experiment", "spec.variants[1].upstream.address", "candidate"),
    ("Experiment", "spec.variants[1].upstream.healthPath", "health-path"),
    ("Experiment", "spec.unit.header", "unit-header"),
    ("Experiment", "spec.target", "target"),
    ("Target", "metadata.tenant", "tenant"),
    ("Experiment", "metadata.tenant", "tenant"),
)


@command_with(EXIT_CODES)
def init(
    *,
    target: Annotated[str | None, typer.Option(help="Name of the model endpoint.")] = None,
    baseline: Annotated[
        str | None, typer.Option(help="HOST:PORT of the version that serves now.")
    ] = None,
    candidate: Annotated[str | None, typer.Option(help="HOST:PORT of the version to try.")] = None,
    unit_header: Annotated[
        str | None, typer.Option(help="Header whose value is kept on one version.")
    ] = None,
    kind: Annotated[Kind | None, typer.Option(help="What is tried first.")] = None,
    host: Annotated[str, typer.Option(help="Host of its requests; * is any.")] = "*",
    path_prefix: Annotated[
        str, typer.Option(help="Path of its requests.  [default: /v2/models/TARGET]")
    ] = "",
    health_path: Annotated[
        str, typer.Option(help="Health check's path; without it a TCP connect is the check.")
    ] = "",
    name: Annotated[str, typer.Option(help="Of the experiment.  [default: TARGET-v2]")] = "",
    tenant: Annotated[str, typer.Option(help="Written into the file.  [default: none]")] = "",
    out: Annotated[
        str, typer.Option("--out", "-o", help="File; - prints it.  [default: NAME.yaml]")
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Write a first resource file, with comments: a target and an experiment on it.

    On a terminal it asks for what no flag says. The file is good as it is (`turnout lint`), and
    meant to be edited.

    \b
      turnout init
      turnout init --target fraud --baseline fraud-v1:8080 --candidate fraud-v2:8080 \\
        --unit-header x-user-id --kind canary -o fraud.yaml
    """  # noqa: D301 - click reads the escape
    given = {
        "target": target,
        "baseline": baseline,
        "candidate": candidate,
        "unit-header": unit_header,
        "kind": kind.value if kind else None,
    }
    given |= {"host": host, "health-path": health_path, "tenant": tenant}
    given |= {"path-prefix": path_prefix or None, "name": name or None}
    answers = _answers(given, interactive=sys.stdin.isatty())
    path = Path(out or f"{answers['name']}.yaml")
    faults = _faults(answers)
    for flag, fault in faults.items():
        typer.echo(f"--{flag}: {fault}", err=True)
    if faults:
        raise typer.Exit(EXIT_INVALID)
    text = resource_file(answers, str(path))
    if out == "-":
        typer.echo(text, nl=False)
        return
    if not str(path).isprintable():
        raise typer.BadParameter(f"{str(path)!r} is not printable", param_hint="--out")
    _write(path, text, force=force)
    typer.echo(f"{path}: a target and an experiment ({answers['kind']}). Next: edit it, then")
    typer.echo(f"  turnout lint -f {path}")


# -- answers ---------------------------------------------------------------------------------------


def _answers(given: Mapping[str, str | None], *, interactive: bool) -> dict[str, str]:
    """Everything that the file says, asked for where no flag says it.

    Raises:
        typer.BadParameter: Nobody can be asked; with every flag that is missing.
    """
    missing = [flag for flag in QUESTIONS if given[flag] is None]
    if missing and not interactive:
        flags = ", ".join(f"--{flag}" for flag in missing)
        raise typer.BadParameter(f"standard input is no terminal to ask at: say {flags}")
    answers = {flag: value for flag, value in given.items() if value is not None}
    for flag in missing:
        answers[flag] = _ask(flag, answers)
    answers.setdefault("path-prefix", f"/v2/models/{answers['target']}")
    answers.setdefault("name", f"{answers['target'][:60].rstrip('-')}-v2")
    return {**_EXAMPLE, **answers}


def _ask(flag: str, answers: Mapping[str, str]) -> str:
    question, default = QUESTIONS[flag]

    def checked(text: str) -> str:
        text = text.strip()
        if flag == "kind" and text not in tuple(Kind):
            raise typer.BadParameter(f"{text!r} is none of {', '.join(Kind)}")
        fault = _faults({**_EXAMPLE, **answers, flag: text}).get(flag)
        if fault:
            raise typer.BadParameter(fault)
        return text

    # The file may go to standard output; `err=True` alone leaves a blank of the prompt there.
    with contextlib.redirect_stdout(sys.stderr):
        found: str = typer.prompt(question, default=default, value_proc=checked, err=True)
    return found


def _faults(answers: Mapping[str, str]) -> dict[str, str]:
    """What is wrong with the answers, by flag: the rules that the file would break."""
    found = {
        flag: f"{value!a}: must be printable"
        for flag, value in answers.items()
        if not value.isprintable()
    }
    if found:
        return found
    documents, violations = read_yaml(resource_file(answers, "-").encode())
    checked = check_documents(documents, tenant="default", whole=True)
    for document, broken in zip(documents, checked, strict=True):
        for violation in broken:
            found.setdefault(_source(document.kind, violation), _said(violation))
        for feature in unimplemented(document):
            found.setdefault("kind", f"{feature}: not implemented")
    for violation in violations:
        found.setdefault("target", _said(violation))
    return found


def _source(kind: str, violation: Violation) -> str:
    for owner, field, flag in _SOURCES:
        if owner == kind and violation.field.startswith(field):
            return flag
    return "kind"


def _said(violation: Violation) -> str:
    return f"{violation.value}: {violation.rule}"


# -- the file --------------------------------------------------------------------------------------


def resource_file(answers: Mapping[str, str], path: str) -> str:
    """The file's text.

    Args:
        answers: By flag.
        path: Where it will be, as the comments name it.
    """
    quoted = {flag: json.dumps(value, ensure_ascii=False) for flag, value in answers.items()}
    target, name = (_plain(answers[flag], quoted[flag]) for flag in ("target", "name"))
    tenant = f"\n  tenant: {quoted['tenant']}" if answers["tenant"] else ""
    health = f", healthPath: {quoted['health-path']}" if answers["health-path"] else ""
    hint = "" if health else " # with healthPath: /... health is asked for"
    return _TARGET.format(
        path=shlex.quote(path), name=name, target=target, tenant=tenant, health=health, hint=hint,
        host=quoted["host"], prefix=quoted["path-prefix"], baseline=quoted["baseline"],
    ) + _EXPERIMENT.format(
        name=name, target=target, tenant=tenant, health=health,
        candidate=quoted["candidate"], unit=quoted["unit-header"],
        steps=_STEPS[Kind(answers["kind"])],
    )  # fmt: skip


def _plain(text: str, quoted: str) -> str:
    """Without quotes where YAML reads the same."""
    return text if is_label(text) and Scalar(text, plain=True, line=0).is_string() else quoted


_TARGET: Final = """\
# Made by `turnout init`. Next:
#   turnout lint -f {path}          names every fault, with its line
#   turnout diff -f {path}          shows what apply would change
#   turnout apply -f {path}
#   turnout start {name}
#   turnout status {name} --watch   follows it; the exit code says how it ended

# A model endpoint: which requests it is about, and the version that serves them. Everything that is
# not being tried, and everything when the sidecar is away, goes to the baseline.
apiVersion: turnout/v1alpha1
kind: Target
metadata:
  name: {target}{tenant}
spec:
  match:
    hosts: [{host}]
    pathPrefix: {prefix}
  baseline:
    model: {{id: {target}, version: "1"}}
    upstream: {{address: {baseline}{health}}}{hint}
  timeout: 60s # Envoy's own default of 15 s would cut slow models
  keepPrevious: 24h # how long `turnout undo` can take a promotion back
---
# Versions compared on the target. The control is the target's baseline, pinned at the start.
apiVersion: turnout/v1alpha1
kind: Experiment
"""

_EXPERIMENT: Final = """\
metadata:
  name: {name}{tenant}
spec:
  target: {target}
  # Who is kept on one version; a request without it is served by the baseline, and counted.
  unit: {{header: {unit}}}
  # Only some of the requests:
  # segment: {{all: [{{header: x-country, in: [DE, FR]}}]}}
  control: control
  variants:
    - name: control
    - name: v2
      model: {{id: {target}, version: "2"}}
      upstream: {{address: {candidate}{health}}}
      # The model gets these as headers, x-param-threshold:
      # parameters: {{threshold: "0.7"}}
{steps}  safety:
    alpha: 0.001 # probability of any false rollback by the safety lanes
    window: {{length: 15m, difference: 0.05, minimumRequests: 300}}
"""

_GUARDRAILS: Final = """\
    # Harm that takes all traffic from the candidate, within seconds, at any step.
    guardrails:
      - {metric: error_rate, maximumHarm: {absolute: 0.01}}
      - {metric: latency_p95, maximumHarm: {absolute: 50ms}, slo: 200ms}
"""

_STEPS: Final = {
    Kind.CANARY: f"""\
  metrics:
{_GUARDRAILS}\
  # A step lasts `for` and passes when its checks do; no traffic never passes. A user who is on v2
  # stays there as its share grows.
  steps:
    # - shadow: {{variant: v2, fraction: 1.0, for: 30m}} # copies only, before any user sees it
    - canary: {{split: {{v2: 0.01}}, for: 30m, checks: [error_rate], minimumRequests: 30}}
    - canary: {{split: {{v2: 0.05}}, for: 1h, checks: [error_rate, latency_p95]}}
    - canary: {{split: {{v2: 0.25}}, for: 4h, checks: [error_rate, latency_p95]}}
    - canary: {{split: {{v2: 0.50}}, for: 6h, checks: [error_rate, latency_p95]}}
    # A last stage keeps a control to compare with.
    - canary: {{split: {{v2: 0.99}}, for: 1h, checks: [error_rate, latency_p95]}}
  onFinish: promote # or hold: then `turnout promote` when you have looked
""",
    Kind.AB: f"""\
  metrics:
    # What v2 is to be better at; labels come by RecordOutcomes or as turnout.label of a span.
    primary: {{metric: accuracy, minimumImprovement: {{absolute: 0.01}}}}
{_GUARDRAILS}\
  # First little, to see that it works; then the split is held until you decide: `turnout results`,
  # then `turnout promote`, `turnout rollback` or `turnout stop`.
  steps:
    - canary: {{split: {{v2: 0.01}}, for: 30m, checks: [error_rate]}}
    - ab:
        split: {{v2: 0.5}}
        confidence: 0.95
        minimumUnits: 1000
        minimumDuration: 168h # a week has weekends
        maximumDuration: 672h
  onFinish: hold
""",
    Kind.SHADOW: f"""\
  metrics:
{_GUARDRAILS}\
  # v2 gets copies; no user sees its answers. A copy costs what a request costs: lower `fraction`.
  steps:
    - shadow: {{variant: v2, fraction: 1.0, for: 30m, minimumRequests: 1000}}
    # Then a little real traffic:
    # - canary: {{split: {{v2: 0.01}}, for: 30m, checks: [error_rate]}}
  onFinish: hold
""",
}


def _write(path: Path, text: str, *, force: bool) -> None:
    try:
        with path.open("w" if force else "x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError as error:
        typer.echo(f"{path} exists: say --force to overwrite it, or -o FILE", err=True)
        raise typer.Exit(EXIT_FAILED) from error
    except OSError as error:
        typer.echo(f"{path}: {error.strerror or error}", err=True)
        raise typer.Exit(EXIT_FAILED) from error
