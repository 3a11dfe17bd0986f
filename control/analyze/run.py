"""From a checked question to an answer: plan, count, compare, judge, and say what was noticed.

Owns the order of things and what is said in warnings. Refuses options that contradict the data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from control.analyze.aggregate import (
    STRATA_MAX,
    Group,
    Table,
    aggregate,
    merged,
)
from control.analyze.covariates import Covariate, covariate_of
from control.analyze.data import Data, merged_numbers
from control.analyze.errors import BadInput, closest, listed, require_column
from control.analyze.estimate import Compared, Settings
from control.analyze.judging import (
    Guard,
    Judged,
    Options,
    Part,
    decide,
    guardrail_alpha,
)
from control.analyze.looks import series_of, times_of
from control.analyze.maturity import mature
from control.analyze.metrics import HIGHER, LOWER, Metric, Roles, parse_metrics, with_caps
from control.analyze.plans import VARIANTS_MAX, Plan, plan_metrics
from control.analyze.question import Question
from control.analyze.result import Analysis, Series, Source, StratumResult, Value
from control.analyze.shares import ALPHA, check_expected, log_evidence, sample_ratio
from control.analyze.whole import SCANNED, Scanner
from control.analyze.world import World
from control.stats.errors import check_scalar


@dataclass(slots=True)
class Run:
    """One question to one table; what it finds on the way ends in `warnings`."""

    data: Data
    asked: Question
    warnings: list[str] = field(default_factory=list)

    def answer(self) -> Analysis:
        """Everything that can be said.

        Raises:
            ValueError: Data and question do not fit.
        """
        asked, data = self.asked, self.data
        roles = self._roles()
        if data.is_empty():
            raise BadInput(f"{data.path}: has no rows; at least one per variant is needed")
        if roles.unit is not None and (merged := merged_numbers(data, roles.unit)):
            raise BadInput(
                f"unit: column {roles.unit!r} is of type {data.columns[roles.unit]} with {merged} "
                "values that are NaN or too large to be told apart: give units as text"
            )
        data = self._matured(roles)
        metrics = self._metrics(roles)
        summed = [metric for metric in metrics if metric.kind not in SCANNED]
        plans = plan_metrics(data, summed, roles, positive=asked.positive)
        roles, covariate = self._covariate(roles)
        x_shift = covariate.mean if covariate is not None else 0.0
        apart = roles.unit is None and roles.strata is not None
        table = aggregate(data, plans, roles, by_stratum=apart, x_shift=x_shift)
        whole = _by_variant(table)
        treatments = self._treatments(whole, table.flipped)
        plans = self._kinds(plans, whole)
        world = World(
            plans={plan.metric.name: plan for plan in plans},
            metrics=metrics,
            control=self._control(whole),
            treatments=treatments,
            scanner=Scanner(data, roles, positive=asked.positive, flipped=table.flipped > 0),
        )
        shares = self._shares((world.control, *treatments))
        self._tell_losses(table, whole, world)
        strata = self._groups_by_stratum(table, plans, roles, x_shift)
        primary = self._primary(metrics)
        times = None
        if asked.series or roles.time:
            times = times_of(data, roles.time)
        results = world.compare_all(whole, asked.settings)
        self._tell_notes(results)
        judged = [
            self._judged(world, variant, primary, whole, strata, table, shares)
            for variant in treatments
        ]
        if covariate is not None:
            judged = [_with_absence(each, covariate, world.control) for each in judged]
        base = results[primary.name, treatments[0]].result.control.mean
        options = self._options(base, None if times is None else times.duration_s)
        decision = decide(judged, options, self._split(len(treatments)))
        series: tuple[Series, ...] = ()
        if asked.series and times is not None and plans:
            looks = aggregate(data, plans, roles, look=times.look, x_shift=x_shift)
            series = series_of(
                plans,
                looks,
                times,
                control=world.control,
                treatments=treatments,
                settings=asked.settings,
            )
        counts = {name: group.units for name, group in whole.items()}
        return Analysis(
            decision=decision.kind,
            reasons=decision.reasons,
            srm=None if shares is None else sample_ratio(counts, shares),
            metrics=tuple(compared.result for compared in results.values()),
            strata=self._strata(world, strata, shares),
            warnings=tuple(dict.fromkeys((*self.warnings, *decision.notes))),
            source=self._source(world, roles, whole, primary),
            series=series,
        )

    def _roles(self) -> Roles:
        columns, roles = self.data.columns, self.asked.roles
        found = {
            role: require_column(role, column, columns) for role, column in roles.named().items()
        }
        taken: dict[str, str] = {}
        for role, column in found.items():
            if role in ("variant", "unit", "strata") and column in taken:
                raise BadInput(f"{role}: {column!r} is already the {taken[column]} column")
            taken.setdefault(column, role)
        if roles.unit is None:
            self.warnings.append(
                "no unit column: every row counts as a unit; if units have several rows, errors "
                "are too small: name it with --unit-column"
            )
        return Roles(**found)

    def _covariate(self, roles: Roles) -> tuple[Roles, Covariate | None]:
        """Without a covariate that differs between the arms: it cannot be from before."""
        if roles.covariate is None:
            return roles, None
        name = roles.covariate
        found = covariate_of(self.data, roles, name)
        lost = {arm: count for arm, (count, _) in sorted(found.missing.items()) if count}
        if lost:
            what = "rows" if roles.unit is None else "units"
            said = ", ".join(
                f"{arm} {count} of {found.missing[arm][1]}" for arm, count in lost.items()
            )
            self.warnings.append(f"covariate {name}: {what} without one are given its mean: {said}")
        if apart := found.differs(self.asked.control):
            self.warnings.append(
                f"covariate {name} differs between {self.asked.control} and {listed(apart)} beyond "
                "chance, as what was measured before cannot: it is not applied (no CUPED)"
            )
            roles = roles._replace(covariate=None)
        return roles, found

    def _matured(self, roles: Roles) -> Data:
        if self.asked.label_maturity_s > 0:
            old = mature(self.data, roles, self.asked.label_maturity_s, self.asked.as_of)
            self.data = old[0]
            self.warnings.append(old[1])
        return self.data

    def _metrics(self, roles: Roles) -> tuple[Metric, ...]:
        asked = self.asked
        metrics = parse_metrics(asked.metrics, self.data.columns, roles)
        if not asked.metrics:
            names = ", ".join(metric.name for metric in metrics)
            self.warnings.append(f"no metric named: took {names}; the first decides")
        known = [metric.name for metric in metrics]
        if both := set(asked.lower_is_better) & set(asked.higher_is_better):
            raise BadInput(
                f"lower_is_better and higher_is_better: both name {listed(both)}: say one"
            )
        for option, given in (
            ("lower_is_better", asked.lower_is_better),
            ("higher_is_better", asked.higher_is_better),
            ("guardrail", tuple(asked.guardrails)),
            ("cap", tuple(asked.caps)),
        ):
            for name in given:
                if name not in known:
                    raise BadInput(
                        f"{option}: {name!r} is no metric here{closest(name, known)}; "
                        f"metrics: {listed(known)}"
                    )
        return tuple(self._directed(metric) for metric in with_caps(metrics, asked.caps))

    def _directed(self, metric: Metric) -> Metric:
        if metric.name in self.asked.lower_is_better:
            return replace(metric, direction=LOWER)
        if metric.name in self.asked.higher_is_better:
            return replace(metric, direction=HIGHER)
        if metric.guessed_direction:
            way, other = ("less", "higher") if metric.direction == LOWER else ("more", "lower")
            self.warnings.append(
                f"{metric.name}: {way} is taken as better, by its name; else say "
                f"--{other}-is-better {metric.name}"
            )
        return metric

    def _primary(self, metrics: Sequence[Metric]) -> Metric:
        if self.asked.primary is None:
            return metrics[0]
        for metric in metrics:
            if metric.name == self.asked.primary:
                return metric
        names = [metric.name for metric in metrics]
        raise BadInput(
            f"primary: {self.asked.primary!r} is no metric here"
            f"{closest(self.asked.primary, names)}; metrics: {listed(names)}"
        )

    def _control(self, whole: Mapping[str, Group]) -> str:
        control = self.asked.control
        if control in whole:
            return control
        same = [name for name in whole if name.casefold() == control.casefold()]
        if len(same) == 1:
            return same[0]
        raise BadInput(
            f"control: {control!r}: no such variant in column {self.asked.roles.variant!r}"
            f"{closest(control, whole)}; variants: {listed(sorted(whole))}"
        )

    def _treatments(self, whole: Mapping[str, Group], flipped: int) -> tuple[str, ...]:
        column = self.asked.roles.variant
        if flipped and len(whole) < 2:
            raise BadInput(
                f"unit: all units of a variant of column {column!r} are in another, too ({flipped} "
                "units are in more than one): nothing can be compared; assign each unit to one"
            )
        if not whole:
            raise BadInput(f"variant: column {column!r} is empty in every row")
        if len(whole) > VARIANTS_MAX:
            raise BadInput(
                f"variant: column {column!r} has {len(whole)} values, must have at most "
                f"{VARIANTS_MAX}; is it the unit?"
            )
        control = self._control(whole)
        treatments = tuple(sorted(name for name in whole if name != control))
        if not treatments:
            raise BadInput(
                f"variant: column {column!r} has only {control!r}: nothing to compare it with"
            )
        return treatments

    def _shares(self, variants: tuple[str, ...]) -> dict[str, float] | None:
        if not self.asked.expected:
            self.warnings.append(
                "no expected shares: the sample ratio is not checked; give each variant's share "
                "with --expected VARIANT=SHARE"
            )
            return None
        shares, warning = check_expected(self.asked.expected, variants)
        if warning:
            self.warnings.append(warning)
        return shares

    def _kinds(self, plans: Sequence[Plan], whole: Mapping[str, Group]) -> tuple[Plan, ...]:
        resolved = []
        for index, plan in enumerate(plans):
            bad = sum(group.cells[index].bad for group in whole.values())
            metric = plan.metric
            if not metric.kind:
                kind = "mean" if bad else "proportion"
                self.warnings.append(f"{metric.name}: taken as a {kind}, by its values")
                plan = replace(plan, metric=replace(metric, kind=kind))
            elif bad:
                remedy = f"; use {metric.name}:mean" if metric.kind == "proportion" else ""
                raise BadInput(
                    f"metric {metric.name!r}: {bad} values of column {metric.column!r} break the "
                    f"rule of a {metric.kind}: each must be {plan.rule}{remedy}"
                )
            resolved.append(plan)
        return tuple(resolved)

    def _tell_losses(self, table: Table, whole: Mapping[str, Group], world: World) -> None:
        say = self.warnings.append
        if table.unassigned:
            say(f"{table.unassigned} rows without a variant are left out")
        if table.unitless:
            say(f"{table.unitless} rows without a unit are left out")
        units = table.flipped + sum(group.units for group in whole.values())
        if table.flipped:
            say(
                f"{table.flipped} of {units} units ({table.flipped / units:.3g}) are in more than "
                "one variant: left out of everything; above 1 % the data are invalid"
            )
        what = "rows" if self.asked.roles.unit is None else "units"
        for index, plan in enumerate(world.plans.values()):
            lost = {name: group.cells[index].missing for name, group in whole.items()}
            if any(lost.values()) and not world.partial(plan.metric):
                said = ", ".join(f"{name} {count}" for name, count in lost.items() if count)
                say(f"{plan.metric.name}: {what} without a value are left out: {said}")
        self._tell_caps(whole, world)
        clustered = [
            plan.metric.name
            for index, plan in enumerate(world.plans.values())
            if not plan.below
            and not plan.single
            and any(
                group.cells[index].weighted and not group.cells[index].once
                for group in whole.values()
            )
        ]
        if clustered:
            rows = sum(group.rows for group in whole.values())
            say(
                f"units have {rows / max(units - table.flipped, 1):.3g} rows on average: means are "
                f"over rows, their errors by unit ({', '.join(clustered)})"
            )

    def _tell_caps(self, whole: Mapping[str, Group], world: World) -> None:
        by_unit = self.asked.roles.unit is not None
        for index, plan in enumerate(world.plans.values()):
            cap = plan.metric.cap
            if cap is None:
                continue
            cells = {name: group.cells[index] for name, group in whole.items()}
            cut = {name: cell.cut for name, cell in cells.items()}
            what = "units' sums" if by_unit and plan.summed else "values"
            said = "none is above it"
            if any(cut.values()):
                counts = ", ".join(f"{name} {count:,}" for name, count in cut.items())
                said = f"{sum(cut.values()):,} are above it and count as that ({counts})"
            self.warnings.append(f"{plan.metric.name}: {what} are capped at {cap:g}: {said}")

    def _tell_notes(self, results: Mapping[tuple[str, str], Compared]) -> None:
        for (name, variant), compared in results.items():
            if compared.note:
                self.warnings.append(f"{name} of {variant}: {compared.note}")

    def _groups_by_stratum(
        self, table: Table, plans: Sequence[Plan], roles: Roles, x_shift: float
    ) -> dict[str, dict[str, Group]]:
        if roles.strata is None:
            return {}
        if roles.unit is not None:
            table = aggregate(
                self.data,
                plans,
                roles,
                by_stratum=True,
                x_shift=x_shift,
                without_flips=table.flipped > 0,
            )
        found: dict[str, dict[str, Group]] = {}
        for (variant, stratum, _), group in sorted(
            table.groups.items(), key=lambda item: (str(item[0][1]), item[0][0])
        ):
            found.setdefault(str(stratum), {})[variant] = group
        if len(found) > STRATA_MAX:
            raise BadInput(
                f"strata: column {roles.strata!r} has {len(found)} values, must have at most "
                f"{STRATA_MAX}: group them first"
            )
        return found

    def _split(self, parts: int) -> Settings:
        settings = self.asked.settings
        return settings._replace(alpha=settings.alpha / parts)

    def _judged(
        self,
        world: World,
        variant: str,
        primary: Metric,
        whole: Mapping[str, Group],
        strata: Mapping[str, Mapping[str, Group]],
        table: Table,
        shares: Mapping[str, float] | None,
    ) -> Judged:
        treatments = len(world.treatments)
        settings = self._split(treatments)
        compared = world.compare(primary, variant, whole, settings)
        finer = self._split(treatments * max(len(strata), 1))
        guarded = self.asked.guardrails
        harm = settings._replace(alpha=guardrail_alpha(len(guarded)))

        def parts(metric: Metric, finer: Settings) -> list[Part]:
            return [
                Part(
                    f"{self.asked.roles.strata}={name}",
                    world.compare(metric, variant, groups, finer, stratum=name),
                    sum(groups[arm].units for arm in (world.control, variant)),
                )
                for name, groups in strata.items()
                if world.control in groups and variant in groups
            ]

        guards = [
            Guard(
                world.compare(metric, variant, whole, settings),
                world.compare(metric, variant, whole, harm),
                metric.direction,
                check_scalar(f"guardrail {metric.name}", guarded[metric.name], ge=0),
                parts(metric, finer),
                parts(metric, harm._replace(alpha=harm.alpha / max(len(strata), 1))),
            )
            for metric in world.metrics
            if metric.name in guarded
        ]
        by_stratum, arms = parts(primary, finer), (world.control, variant)
        in_strata = sum(
            groups[arm].units for groups in strata.values() for arm in arms if arm in groups
        )
        returning = in_strata - sum(whole[arm].units for arm in arms)
        if len(strata) > 1:
            if not compared.exact:
                self._tell_left_out(variant, by_stratum)
            if returning > 0:
                self.warnings.append(
                    "units are in several strata, whose errors go together: the effect over strata "
                    "is taken to be less certain by as much as that can make it"
                )
        units = whole[world.control].units + whole[variant].units + table.flipped
        return Judged(
            variant,
            compared,
            primary.direction,
            (compared.result.control.n, compared.result.treatment.n),
            by_stratum,
            len(strata) > 1,
            max(returning, 0),
            guards,
            self._ratios(world, whole, strata, shares),
            (table.flipped, units),
            world.missing((primary.name, *guarded), variant, whole),
        )

    def _tell_left_out(self, variant: str, parts: Sequence[Part]) -> None:
        left = [part for part in parts if part.compared.result.difference is None]
        if left:
            share = sum(part.units for part in left) / sum(part.units for part in parts)
            self.warnings.append(
                f"effect of {variant}: strata without a value in an arm are left out "
                f"({share:.3g} of the units): {listed(part.name for part in left)}"
            )

    def _ratios(
        self,
        world: World,
        whole: Mapping[str, Group],
        strata: Mapping[str, Mapping[str, Group]],
        shares: Mapping[str, float] | None,
    ) -> list[tuple[str, float, float]]:
        if shares is None:
            return []
        variants = (world.control, *world.treatments)
        found = [("the data", log_evidence(_units(whole, variants), shares), ALPHA)]
        for name, groups in strata.items():
            log_e = log_evidence(_units(groups, variants), shares)
            found.append((f"stratum {name}", log_e, ALPHA / len(strata)))
        return found

    def _strata(
        self,
        world: World,
        strata: Mapping[str, Mapping[str, Group]],
        shares: Mapping[str, float] | None,
    ) -> tuple[StratumResult, ...]:
        found = []
        finer = self._split(max(len(strata), 1))
        for name, groups in strata.items():
            results = []
            for metric in world.metrics:
                for variant in world.treatments:
                    if world.control not in groups or variant not in groups:
                        continue
                    one, by = (
                        world.compare(metric, variant, groups, settings, stratum=name).result
                        for settings in (self.asked.settings, finer)
                    )
                    results.append(replace(one, cs_low=by.cs_low, cs_high=by.cs_high))
            units = _units(groups, (world.control, *world.treatments))
            ratio = None if shares is None else sample_ratio(units, shares)
            found.append(StratumResult(name, tuple(results), ratio))
            if any(units[name] == 0 for name in units):
                empty = listed(name for name, count in units.items() if count == 0)
                self.warnings.append(f"stratum {name}: no unit of {empty}")
        return tuple(found)

    def _options(self, base: float | None, duration_s: float | None) -> Options:
        asked = self.asked
        least = _effect("minimum_effect", asked.minimum_effect, base)
        equal = asked.equivalence
        return Options(
            minimum_effect=least,
            equivalence=least if equal is None else _effect("equivalence", equal, base),
            harm=_effect("harm", asked.harm, base),
            rule=asked.rule,
            min_units=asked.min_units,
            fixed=not asked.sequential,
            final=asked.final,
            duration_s=duration_s,
        )

    def _source(
        self, world: World, roles: Roles, whole: Mapping[str, Group], primary: Metric
    ) -> Source:
        asked = self.asked
        settings: dict[str, Value] = {
            "alpha": asked.settings.alpha,
            "method": "sequential" if asked.sequential else "fixed",
            "tuned_for": asked.settings.n_star,
            "primary": primary.name,
            "minimum_effect": asked.minimum_effect,
            "equivalence": asked.equivalence,
            "harm": asked.harm,
            "rule": asked.rule,
            "min_units": asked.min_units,
        }
        for metric in world.metrics:
            settings[f"direction {metric.name}"] = metric.direction
            if metric.cap is not None:
                settings[f"cap {metric.name}"] = metric.cap
        if asked.label_maturity_s > 0:
            settings["label_maturity_s"] = asked.label_maturity_s
        return Source(
            path=self.data.path,
            rows=sum(group.rows for group in whole.values()),
            units=sum(group.units for group in whole.values()),
            control=world.control,
            variants=(world.control, *world.treatments),
            columns=roles.named(),
            settings=settings,
        )


def _by_variant(table: Table) -> dict[str, Group]:
    found: dict[str, list[Group]] = {}
    for (variant, _, _), group in sorted(table.groups.items(), key=lambda item: str(item[0])):
        found.setdefault(variant, []).append(group)
    return {variant: merged(groups) for variant, groups in found.items()}


def _with_absence(each: Judged, covariate: Covariate, control: str) -> Judged:
    """A covariate that one arm lacks is a loss as any other."""
    nothing = (0, 0)
    arms = [covariate.missing.get(arm, nothing) for arm in (control, each.variant)]
    if not (arms[0][0] + arms[1][0]):
        return each
    return replace(each, missing={**each.missing, "the covariate": (arms[0], arms[1])})


def _units(groups: Mapping[str, Group], variants: Iterable[str]) -> dict[str, int]:
    return {name: groups[name].units if name in groups else 0 for name in variants}


def _effect(name: str, value: float | str, base: float | None) -> float:
    """An effect in the primary's unit; "2%" is of control's value."""
    if isinstance(value, str):
        text = value.strip()
        try:
            share = float(text.removesuffix("%"))
        except ValueError as error:
            raise BadInput(f"{name}: {value!r}: must be a number, or a share as 2%") from error
        if text.endswith("%"):
            if base is None:
                raise BadInput(f"{name}: {value!r}: control has no value to take a share of")
            return check_scalar(name, share / 100 * abs(base), ge=0)
        value = share
    return check_scalar(name, value, ge=0)
