"""Rules about the holdout: the share of a tenant's units that no experiment touches."""

from __future__ import annotations

from typing import Final

from control.model.rules import check_label, check_number, check_salt
from control.model.violations import Report, Violation
from turnout.v1alpha1.experiment_service_pb2 import HoldoutSpec

# Beyond half of the units it is the experiments that are held out.
FRACTION_MAX: Final = 0.5


def validate_holdout(tenant: str, spec: HoldoutSpec) -> list[Violation]:
    """Every rule that a holdout breaks; empty when it may be stored."""
    report = Report()
    check_label(report, "tenant", tenant)
    check_number(report, "spec.fraction", spec.fraction, 0, FRACTION_MAX)
    if spec.salt:
        check_salt(report, "spec.salt", spec.salt)
    return report.violations
