"""Resource files that tests begin from, and ways to break them."""

from __future__ import annotations

from control.model import Document, InvalidDocument, Violation, check_documents, read_yaml

TARGET = """
apiVersion: turnout/v1alpha1
kind: Target
metadata: {name: fraud, tenant: risk}
spec:
  match: {hosts: ["fraud.risk.svc"], pathPrefix: /v2/models/fraud}
  baseline: {model: {id: fraud, version: "1"}, upstream: {address: "fraud-v1:8080"}}
  timeout: 60s
"""

EXPERIMENT = """
kind: Experiment
metadata: {name: fraud-v2, tenant: risk, labels: {team: payments}}
spec:
  target: fraud
  unit: {header: x-user-id, noUnit: skip}
  layer: {name: models, reserve: 1.0}
  segment: {all: [{header: x-country, in: [DE, FR]}]}
  control: control
  variants:
  - {name: control}
  - {name: v2, upstream: {address: "fraud-v2:8080"}, parameters: {threshold: "0.7"}}
  - {name: v3, upstream: {address: "fraud-v3:8080"}}
  metrics:
    primary: {metric: accuracy, minimumImprovement: {absolute: 0.01}}
    guardrails:
    - {metric: error_rate, maximumHarm: {absolute: 0.01}}
    - {metric: latency_p95, maximumHarm: {absolute: 50ms}, slo: 200ms}
  steps:
  - shadow: {variant: v2, fraction: 1.0, for: 30m}
  - canary: {split: {v2: 0.01, v3: 0.01}, for: 30m, checks: [error_rate], minimumRequests: 30}
  - canary: {split: {v2: 0.05, v3: 0.01}, for: 1h, checks: [error_rate, latency_p95]}
  onFinish: hold
  safety: {alpha: 0.001, window: {length: 15m, difference: 0.05, minimumRequests: 300}}
"""


def violations_of(text: str | bytes, *, whole: bool = False) -> list[Violation]:
    """Every violation of a text: of its spelling, its types and its values."""
    data = text.encode() if isinstance(text, str) else text
    try:
        documents, violations = read_yaml(data)
    except InvalidDocument as error:
        return list(error.violations)
    checked = check_documents(documents, tenant="default", whole=whole)
    return violations + [violation for found in checked for violation in found]


def document(text: str) -> Document:
    """The one good document of a text."""
    documents, violations = read_yaml(text.encode())
    assert violations == []
    assert len(documents) == 1
    return documents[0]


def replaced(text: str, old: str, new: str) -> str:
    """The text with one place changed, which must be there."""
    assert text.count(old) == 1, f"{old!r} is there {text.count(old)} times"
    return text.replace(old, new)
