"""Analyses to show, from the usual one to absurd ones; numbers are made, not measured.

Owns the data of the tests of report and plots. Refuses chance: the same worlds every time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from control.analyze.result import (
    Analysis,
    Arm,
    MetricResult,
    Point,
    Reason,
    SampleRatio,
    Series,
    Source,
    StratumResult,
    Value,
)

Z = 1.96
SETTINGS: Mapping[str, Value] = {"alpha": 0.05, "method": "sequential", "primary": "conversion"}


def metric(
    name: str,
    kind: str,
    variant: str,
    control: float,
    treatment: float,
    error: float,
    n: int = 10_000,
) -> MetricResult:
    """A result whose interval and sequence follow from its error."""
    difference = treatment - control
    z = difference / error
    return MetricResult(
        name=name,
        kind=kind,
        variant=variant,
        control=Arm(n, control),
        treatment=Arm(n - 37, treatment),
        difference=difference,
        relative=difference / control if control else None,
        standard_error=error,
        ci_low=difference - Z * error,
        ci_high=difference + Z * error,
        p_value=math.erfc(abs(z) / math.sqrt(2)),
        cs_low=difference - 3.1 * error,
        cs_high=difference + 3.1 * error,
        always_valid_p=min(1.0, 6 * math.erfc(abs(z) / math.sqrt(2))),
    )


def series(result: MetricResult, looks: int = 40, *, times: bool = False) -> Series:
    """How the result came about: noise that dies out around the last difference."""
    assert result.difference is not None
    assert result.standard_error is not None
    units = result.control.n + result.treatment.n
    points = []
    for look in range(1, looks + 1):
        share = look / looks
        error = result.standard_error / math.sqrt(share)
        difference = result.difference + error * math.sin(7.0 * share) * (1 - share)
        width = error * (3.1 + 0.6 * math.log(1 / share))
        time = f"2026-03-{1 + look // 2:02d}T{12 * (look % 2):02d}:00:00" if times else None
        at = round(units * share)
        points.append(Point(at, time, difference, difference - width, difference + width))
    return Series(result.name, result.variant, tuple(points))


def usual() -> Analysis:
    """One treatment, four metrics, four strata, a clear winner."""
    metrics = (
        metric("conversion", "proportion", "new-checkout", 0.1112, 0.1251, 0.0031),
        metric("revenue_per_user", "mean", "new-checkout", 8.412, 8.771, 0.142),
        metric("latency_p95", "quantile", "new-checkout", 212.0, 219.5, 2.1),
        metric("clicks_per_view", "ratio", "new-checkout", 0.0412, 0.0409, 0.0006),
    )
    strata = tuple(
        StratumResult(
            name,
            tuple(_within(result, place) for result in metrics[:2]),
            SampleRatio(0.41, 0.31, {"control": 2500.0, "new-checkout": 2500.0}, observed),
        )
        for place, (name, observed) in enumerate(
            {
                "Germany": {"control": 2510, "new-checkout": 2470},
                "France": {"control": 2530, "new-checkout": 2497},
                "Japan": {"control": 2470, "new-checkout": 2501},
                "everywhere else": {"control": 2490, "new-checkout": 2495},
            }.items()
        )
    )
    return Analysis(
        decision="PROMOTE",
        reasons=(
            Reason(
                "better",
                "conversion improved by at least 0.004: 0.0139 in [0.0043, 0.0235]",
                {"metric": "conversion", "effect": 0.0139, "low": 0.0043, "high": 0.0235},
            ),
        ),
        srm=SampleRatio(
            0.7942,
            0.0231,
            {"control": 9981.5, "new-checkout": 9981.5},
            {"control": 10_000, "new-checkout": 9963},
        ),
        metrics=metrics,
        strata=strata,
        warnings=("latency_p95 is 3.5 % slower; nobody said how much slower is too slow",),
        source=Source(
            path="orders-2026-03.parquet",
            rows=61_204,
            units=19_963,
            control="control",
            variants=("control", "new-checkout"),
            columns={"variant": "arm", "unit": "user_id", "time": "ts", "strata": "country"},
            settings={
                **SETTINGS,
                "direction conversion": "higher",
                "direction revenue_per_user": "higher",
                "direction latency_p95": "lower",
            },
        ),
        series=tuple(series(result, times=True) for result in metrics),
    )


def single() -> Analysis:
    """One metric, no split, strata or time, a fixed look."""
    whole = usual()
    one = replace(whole.metrics[1], cs_low=None, cs_high=None, always_valid_p=None)
    source = replace(whole.source, settings={"alpha": 0.1, "method": "fixed"})
    return Analysis(
        decision="INCONCLUSIVE",
        reasons=(Reason("maximum_units", "all 19,963 units have been seen", {"units": 19_963}),),
        srm=None,
        metrics=(one,),
        strata=(),
        warnings=("no --expected: the sample ratio is not checked",),
        source=source,
    )


def broken() -> Analysis:
    """A split that is not as planned, a metric without numbers, several treatments."""
    names = ("control", "v2", "v3")
    good = [
        metric("error_rate", "proportion", "v2", 0.011, 0.0164, 0.0011),
        metric("error_rate", "proportion", "v3", 0.011, 0.0091, 0.0011),
        metric("revenue", "mean", "v2", 1e9 + 3.0, 1e9 + 2.0, 0.4),
        metric("revenue", "mean", "v3", 1e9 + 3.0, 1e9 + 2.9, 0.4),
    ]
    empty = MetricResult(
        "refunds", "mean", "v2", Arm(10_000, 0.0), Arm(9_000, 0.0), 0.0, *(None,) * 8
    )
    gone = MetricResult("refunds", "mean", "v3", Arm(10_000, 0.0), Arm(0, None), *(None,) * 9)
    one = MetricResult("tips", "mean", "v2", Arm(1, 3.5), Arm(9_000, 4.25), 0.75, *(None,) * 8)
    return Analysis(
        decision="INVALID",
        reasons=(
            Reason(
                "sample_ratio",
                "sample ratio mismatch in all units: ln e 74.2 >= 6.908",
                {"about": "all units", "log_e": 74.2, "threshold": 6.908, "variant": "v2"},
            ),
        ),
        srm=SampleRatio(
            3.1e-41,
            None,
            {"control": 9600.0, "v2": 9600.0, "v3": 9600.0},
            {"control": 10_000, "v2": 9_000, "v3": 9_800},
        ),
        metrics=(*good, empty, gone, one),
        strata=(),
        warnings=(),
        source=Source(
            "results.csv", 28_800, 28_800, "control", names, {"variant": "v"}, dict(SETTINGS)
        ),
        series=tuple(series(result, 12) for result in good[:2]),
    )


ABSURD = (
    "<script>alert('x')</script><img src=x onerror=alert(1)>",
    "a" * 5_000,
    "عرض ترويجي جديد للمستخدمين الجدد",
    "\u202eright-to-left override\u202c and \x00\x07 controls \ud800",
    "名前がとても長い実験群の候補バージョン" * 4,
    "]]> --> </style></title> {{ 7*7 }} $x^2$ \\frac{1}{2} %s & &amp; \"quoted\" 'single'",
    "https://example.com/a?b=c&d=e",
    "",
)


def absurd() -> Analysis:
    """Names that are HTML, templates, addresses, endless, empty, or written from the right."""
    metrics = tuple(
        metric(name, "proportion" if place % 2 else "mean", variant, 0.5, 0.51 - place / 1e3, 4e-3)
        for place, name in enumerate(ABSURD)
        for variant in ABSURD[:3]
    )
    strata = tuple(StratumResult(name, metrics[:6], None) for name in ABSURD)
    return Analysis(
        decision="SOMETHING_<NEW>",
        reasons=(Reason("<b>", ABSURD[0] + ABSURD[3], {ABSURD[0]: ABSURD[5], "none": None}),),
        srm=SampleRatio(0.5, 0.1, dict.fromkeys(ABSURD, 100.0), dict.fromkeys(ABSURD, 100)),
        metrics=metrics,
        strata=strata,
        warnings=(ABSURD[0], ABSURD[1], ABSURD[2]),
        source=Source(
            ABSURD[0], 1, 1, ABSURD[2], (ABSURD[2], *ABSURD[:2]), {"variant": ABSURD[1]}, {}
        ),
        series=tuple(series(result, 5) for result in metrics[:6]),
    )


def huge() -> Analysis:
    """60 metrics x 8 treatments x 16 strata, with a sequence for each."""
    names = [f"metric_{place:02d}" for place in range(60)]
    variants = [f"v{place}" for place in range(1, 9)]
    metrics = tuple(
        metric(
            name,
            ("proportion", "mean", "ratio", "quantile")[k % 4],
            variant,
            0.2 + k / 100,
            0.2 + k / 100 + 0.002 * math.sin(3 * k + j),
            0.0006,
        )
        for k, name in enumerate(names)
        for j, variant in enumerate(variants)
    )
    strata = tuple(
        StratumResult(f"stratum {s}", tuple(_within(result, s) for result in metrics), None)
        for s in range(16)
    )
    units = {name: 10_000 - 7 * place for place, name in enumerate(["control", *variants])}
    return Analysis(
        decision="CONTINUE",
        reasons=(Reason("undecided", "metric_00 may still improve by 0.002", {"variant": "v3"}),),
        srm=SampleRatio(0.99, 0.001, dict.fromkeys(units, 9972.0), units),
        metrics=metrics,
        strata=strata,
        warnings=(),
        source=Source(
            "all.parquet", 9 * 10**7, 89_748, "control", tuple(units), {}, {"alpha": 0.05}
        ),
        series=tuple(series(result, 50) for result in metrics),
    )


def empty() -> Analysis:
    """Nothing but a decision."""
    return Analysis(
        "WARMING_UP", (), None, (), (), (), Source("", 0, 0, "control", ("control",), {}, {})
    )


WORLDS: Mapping[str, Callable[[], Analysis]] = {
    "usual": usual,
    "single": single,
    "broken": broken,
    "absurd": absurd,
    "huge": huge,
    "empty": empty,
}


def _within(result: MetricResult, place: int) -> MetricResult:
    """The same metric in a stratum: a quarter of the units, another effect."""
    assert result.difference is not None
    assert result.standard_error is not None
    assert result.control.mean is not None
    difference = result.difference * (1.6, 0.9, -0.8, 1.2)[place % 4]
    error = 2 * result.standard_error
    return replace(
        result,
        control=Arm(result.control.n // 4, result.control.mean),
        treatment=Arm(result.treatment.n // 4, result.control.mean + difference),
        difference=difference,
        relative=difference / result.control.mean,
        standard_error=error,
        ci_low=difference - Z * error,
        ci_high=difference + Z * error,
        cs_low=difference - 3.6 * error,
        cs_high=difference + 3.6 * error,
    )
