"""Rules about the holdout: the share of a tenant's units that no experiment touches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from control.model.predicates import percentage_salts
from control.model.rules import check_label, check_salt, check_share
from control.model.violations import Report, Violation
from turnout.v1alpha1.experiment_pb2 import ExperimentSpec
from turnout.v1alpha1.experiment_service_pb2 import HoldoutSpec

# Beyond half of the units it is the experiments that are held out.
FRACTION_MAX: Final = 0.5
_OWN_UNITS: Final = "those who are held out would all be among the ones that it takes"
_OWN_SALT: Final = "those who are held out would all be its first candidate's"


def validate_holdout(tenant: str, spec: HoldoutSpec) -> list[Violation]:
    """Every rule that a holdout breaks; empty when it may be stored."""
    report = Report()
    check_label(report, "tenant", tenant)
    check_share(report, "spec.fraction", spec.fraction, FRACTION_MAX)
    if spec.salt:
        check_salt(report, "spec.salt", spec.salt)
    return report.violations


def check_held_salts(
    holdout: HoldoutSpec, experiments: Mapping[str, ExperimentSpec]
) -> list[Violation]:
    """A violation where the holdout takes an experiment's units by the experiment's own salt.

    Both would look at the same buckets: who is held out would all be the first candidate's.

    Args:
        holdout: With or without its salt.
        experiments: Those of the tenant that have not ended, by id.
    """
    report = Report()
    for name, spec in sorted(experiments.items()):
        if holdout.salt and spec.salt == holdout.salt:
            rule = f'is the salt of experiment "{name}", too: {_OWN_SALT}'
        elif holdout.salt and holdout.salt in percentage_salts(spec):
            rule = f'is the salt of a percentage of experiment "{name}", too: {_OWN_UNITS}'
        else:
            continue
        report.add("spec.salt", holdout.salt, rule)
        break
    return report.violations
