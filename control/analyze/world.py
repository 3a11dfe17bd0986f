"""All comparisons of one question: metrics whose sums are known, and those that need the rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from control.analyze.aggregate import Group
from control.analyze.estimate import Compared, Settings, compare
from control.analyze.metrics import Metric
from control.analyze.plans import Plan
from control.analyze.whole import Scanner


@dataclass(frozen=True, slots=True)
class World:
    """What can be compared: metrics of which sums are known, and those that need the rows."""

    plans: Mapping[str, Plan]
    metrics: tuple[Metric, ...]
    control: str
    treatments: tuple[str, ...]
    scanner: Scanner

    def compare_all(
        self, groups: Mapping[str, Group], settings: Settings
    ) -> dict[tuple[str, str], Compared]:
        """Every metric of every treatment."""
        return {
            (metric.name, variant): self.compare(metric, variant, groups, settings)
            for metric in self.metrics
            for variant in self.treatments
        }

    def compare(
        self,
        metric: Metric,
        variant: str,
        groups: Mapping[str, Group],
        settings: Settings,
        *,
        stratum: str | None = None,
    ) -> Compared:
        """One metric of one treatment, among the groups of a stratum if it is named."""
        if metric.name not in self.plans:
            return self.scanner.compare(metric, self.control, variant, settings, stratum=stratum)
        index = list(self.plans).index(metric.name)
        return compare(
            self.plans[metric.name],
            variant,
            groups[self.control].cells[index],
            groups[variant].cells[index],
            settings,
        )

    def missing(
        self, names: Iterable[str], variant: str, groups: Mapping[str, Group]
    ) -> dict[str, tuple[tuple[int, int], tuple[int, int]]]:
        """Per metric and arm: units without a value, of all."""
        found = {}
        for index, (name, plan) in enumerate(self.plans.items()):
            if name in names and not self.partial(plan.metric):
                arms = [groups[arm] for arm in (self.control, variant)]
                pairs = [(arm.cells[index].missing, arm.units) for arm in arms]
                found[name] = (pairs[0], pairs[1])
        return found

    def partial(self, metric: Metric) -> bool:
        """Whether rows without a value are meant to be: precision is of what is said positive."""
        return metric.kind in ("precision", "recall", "specificity", "false_positive_rate")
