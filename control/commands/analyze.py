"""`turnout analyze`: judge any experiment's data, on one machine, however large they are."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

if TYPE_CHECKING:
    from control.analyze.data import Progress
    from control.analyze.result import Analysis

EXIT_UNREADABLE: Final = 1
EXIT_INVALID: Final = 3
NEEDED: Final = ("duckdb", "numpy", "pyarrow", "scipy")

_METRIC_HELP: Final = (
    "NAME, NAME:mean, NAME:proportion, NAME:count, NAME:ratio:NUM/DEN, NAME:quantile:0.95, "
    "LABEL=COLUMN:KIND or LABEL:recall; or a built-in name, as conversion_rate. Repeatable; the "
    "first decides."
)


DataArgument = Annotated[
    list[str],
    typer.Argument(metavar="DATA", help="CSV, Parquet, Arrow or JSON lines: by suffix."),
]
VariantColumnOption = Annotated[
    str, typer.Option("--variant-column", help="Column that names each row's variant.")
]
ControlOption = Annotated[
    str, typer.Option("--control", help="The variant that the others are compared with.")
]
UnitColumnOption = Annotated[
    str | None,
    typer.Option("--unit-column", help="Whom variants were given to: user, session."),
]
MetricOption = Annotated[list[str] | None, typer.Option("--metric", help=_METRIC_HELP)]
FileOption = Annotated[
    list[Path] | None,
    typer.Option("--file", "-f", help="Declared metrics (kind: Metric): --metric takes a NAME."),
]
StrataOption = Annotated[
    str | None, typer.Option("--strata", help="Column by which all is looked at apart too.")
]
CovariateOption = Annotated[
    str | None,
    typer.Option("--covariate", help="Column measured before the experiment (CUPED)."),
]
ExpectedOption = Annotated[
    list[str] | None,
    typer.Option(
        "--expected",
        metavar="VARIANT=SHARE",
        help="Share of units, as 0.5, or weight, as 50; once per variant.",
    ),
]
SequentialOption = Annotated[
    bool,
    typer.Option(
        "--sequential/--fixed",
        help="Decide by what holds at any look, or by one look planned beforehand.",
    ),
]
AlphaOption = Annotated[float, typer.Option("--alpha", help="Error probability of each interval.")]
PrimaryOption = Annotated[
    str | None, typer.Option("--primary", help="Metric that decides; the first by default.")
]
MinimumEffectOption = Annotated[
    str,
    typer.Option("--minimum-effect", help="Least improvement worth having: 0.01, or 2%."),
]
EquivalenceOption = Annotated[
    str | None,
    typer.Option("--equivalence", help="Loss as good as none; the minimum effect by default."),
]
HarmOption = Annotated[
    str, typer.Option("--harm", help="Effect from which a proven loss is a ROLLBACK.")
]
GuardrailOption = Annotated[
    list[str] | None,
    typer.Option("--guardrail", metavar="METRIC=MARGIN", help="Must not get worse by the margin."),
]
LowerIsBetterOption = Annotated[
    list[str] | None,
    typer.Option("--lower-is-better", metavar="METRIC", help="Less of it is better."),
]
HigherIsBetterOption = Annotated[
    list[str] | None,
    typer.Option("--higher-is-better", metavar="METRIC", help="More of it is better."),
]
CapOption = Annotated[
    list[str] | None,
    typer.Option(
        "--cap",
        metavar="METRIC=VALUE",
        help="Greater values count as this much: a row's, or a unit's sum where that is its value "
        "(a ratio's numerator, revenue_per_user). For heavy tails; chosen before the data.",
    ),
]
LabelMaturityOption = Annotated[
    str | None,
    typer.Option(
        "--label-maturity",
        metavar="DURATION",
        help="How long an outcome takes, as 7d: units whose first row is younger are left out. "
        "Needs --time-column.",
    ),
]
AsOfOption = Annotated[
    str | None,
    typer.Option(
        "--as-of",
        metavar="TIME",
        help="When outcomes were taken, for --label-maturity; the newest time by default.",
    ),
]
StrictOption = Annotated[
    bool, typer.Option("--strict", help="Promote only if the whole sequence is above minimum.")
]
MinUnitsOption = Annotated[
    int, typer.Option("--min-units", help="Units of each arm before anything is decided.")
]
FinalOption = Annotated[
    bool, typer.Option("--final", help="No more data will come: open is INCONCLUSIVE.")
]
TunedForOption = Annotated[
    float,
    typer.Option("--tuned-for", help="Units at which sequences are tightest; chosen blind."),
]
TimeColumnOption = Annotated[
    str | None, typer.Option("--time-column", help="When a row happened: for plots, duration.")
]
LabelColumnOption = Annotated[
    str | None, typer.Option("--label-column", help="What was true, for accuracy, f1, auc ...")
]
PredictionColumnOption = Annotated[
    str | None, typer.Option("--prediction-column", help="What the model said.")
]
ScoreColumnOption = Annotated[
    str | None, typer.Option("--score-column", help="How sure the model was, for auc.")
]
PositiveOption = Annotated[
    str | None, typer.Option("--positive", help="Label that counts as positive; 1 or true.")
]
DropInvalidOption = Annotated[
    bool, typer.Option("--drop-invalid", help="Leave out NaN and infinities; else refused.")
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print only JSON; progress goes to stderr.")
]
HtmlOption = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Write a report, one file.")
]
PlotOption = Annotated[
    Path | None, typer.Option("--plot", metavar="FILE", help="Write a plot: .svg .png .pdf.")
]
MemoryOption = Annotated[str, typer.Option("--memory", help="Limit; what is more is spilled.")]
SpillOption = Annotated[
    Path | None, typer.Option("--spill", metavar="DIR", help="Where to spill to.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]


def analyze(
    data: DataArgument,
    variant_column: VariantColumnOption,
    control: ControlOption,
    unit_column: UnitColumnOption = None,
    metric: MetricOption = None,
    file: FileOption = None,
    strata: StrataOption = None,
    covariate: CovariateOption = None,
    expected: ExpectedOption = None,
    sequential: SequentialOption = True,
    alpha: AlphaOption = 0.05,
    primary: PrimaryOption = None,
    minimum_effect: MinimumEffectOption = "0",
    equivalence: EquivalenceOption = None,
    harm: HarmOption = "0",
    guardrail: GuardrailOption = None,
    lower_is_better: LowerIsBetterOption = None,
    higher_is_better: HigherIsBetterOption = None,
    cap: CapOption = None,
    label_maturity: LabelMaturityOption = None,
    as_of: AsOfOption = None,
    strict: StrictOption = False,
    min_units: MinUnitsOption = 100,
    final: FinalOption = False,
    tuned_for: TunedForOption = 10_000,
    time_column: TimeColumnOption = None,
    label_column: LabelColumnOption = None,
    prediction_column: PredictionColumnOption = None,
    score_column: ScoreColumnOption = None,
    positive: PositiveOption = None,
    drop_invalid: DropInvalidOption = False,
    json: JsonOption = False,
    html: HtmlOption = None,
    plot: PlotOption = None,
    memory: MemoryOption = "1GB",
    spill: SpillOption = None,
    quiet: QuietOption = False,
) -> None:
    """Judge an experiment from its data: sample ratio, effects, a decision with reasons.

    DATA is files, globs or directories (.csv .tsv .parquet .arrow .feather .jsonl .ndjson .json),
    larger than memory if need be. A row has its variant and its numbers:

    \b
      turnout analyze orders.parquet --variant-column variant --control control \\
        --unit-column user_id --metric converted:proportion --metric revenue:mean \\
        --expected control=0.5 --expected treatment=0.5

    Without --metric every column of numbers or yes/no is taken. Without --unit-column a row is a
    unit; with it, errors count units, however many rows each one has. Each metric shows an interval
    for one look and a sequence that holds however often you look; the decision uses the sequence,
    with --fixed the interval.

    \b
    Built-in metrics: error_rate latency_p50/p90/p95/p99 click_through_rate conversion_rate
      revenue_per_user satisfaction cost_per_request; with labels and predictions accuracy f1
      precision recall specificity false_positive_rate; auc; prediction_drift.
    Decisions: PROMOTE, ROLLBACK (harm), KEEP_CONTROL_WORSE, KEEP_CONTROL_FUTILE, NO_DIFFERENCE,
      CONTINUE, HOLD, WARMING_UP (too few data), INVALID (do not believe them), INCONCLUSIVE.

    Exit codes: 0 whatever the decision, 1 a file cannot be read or written, 2 usage, 3 data or an
    option that no honest number can be made of.
    """  # noqa: D301 - click takes a backspace for "do not wrap"
    check_possible(html, plot, data)
    with refused(), progress_on_stderr(quiet=quiet) as progress:
        better = {"lower": lower_is_better or (), "higher": higher_is_better or ()}
        young = {"label_maturity_s": _seconds("--label-maturity", label_maturity)}
        more: dict[str, Any] = {**better, **young, "caps": _shares("--cap", cap)}
        found, spread = _asked(metric or (), file or (), covariate=covariate, strata=strata, **more)
        effects = {"minimum_effect": minimum_effect, "equivalence": equivalence, "harm": harm}
        model = {"score_column": score_column, "positive": positive}
        model |= {"label_column": label_column, "prediction_column": prediction_column}
        rule = {"rule": "strict" if strict else "point", "final": final, "sequential": sequential}
        analysis = engine()(
            list(data),
            variant_column=variant_column,
            control=control,
            unit_column=unit_column,
            **{**found, **effects, **model, **rule},
            as_of=as_of,
            expected=_shares("--expected", expected),
            alpha=alpha,
            time_column=time_column,
            primary=primary,
            guardrails=_shares("--guardrail", guardrail),
            min_units=min_units,
            tuned_for=tuned_for,
            drop_invalid=drop_invalid,
            series=html is not None or plot is not None,
            memory=memory,
            spill=None if spill is None else str(spill),
            progress=progress,
        )
        deliver(_warned(analysis, spread), as_json=json, html=html, plot=plot)


def _asked(
    texts: Sequence[str],
    files: Sequence[Path],
    *,
    covariate: str | None,
    strata: str | None,
    lower: Sequence[str],
    higher: Sequence[str],
    caps: Mapping[str, float],
    label_maturity_s: float | None,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What is asked for, and warnings.

    `control.commands.declaring` takes a while to import, and needs files.
    """
    if files:
        from control.commands.declaring import asked

        found = asked(
            texts,
            files,
            covariate=covariate,
            strata=strata,
            lower=lower,
            higher=higher,
            caps=caps,
            label_maturity_s=label_maturity_s,
        )
        return found.question._asdict(), found.warnings
    return {
        "metrics": tuple(texts),
        "lower_is_better": tuple(lower),
        "higher_is_better": tuple(higher),
        "covariate": covariate or None,
        "strata": strata or None,
        "caps": caps,
        "label_maturity_s": label_maturity_s or 0.0,
    }, ()


def _warned(analysis: Analysis, warnings: tuple[str, ...]) -> Analysis:
    return replace(analysis, warnings=(*warnings, *analysis.warnings))


def engine() -> Callable[..., Analysis]:
    """What does the work; imported only once it is known to be there."""
    # What is imported stays: to look through it for garbage takes a tenth of a short run.
    collecting = gc.isenabled()
    gc.disable()
    try:
        from control.analyze.engine import analyze as judge
    finally:
        if collecting:
            gc.enable()
    return judge


def check_possible(html: Path | None, plot: Path | None, data: Sequence[str]) -> None:
    """Find out before the work whether its result can be had.

    Raises:
        typer.Exit, typer.BadParameter: A package or a directory is missing, or a result would be
            written over the data.
    """
    drawn = (("jinja2",) if html is not None else ()) + (
        ("matplotlib",) if plot is not None else ()
    )
    require_extra(*NEEDED, *drawn)
    for option, path in (("--html", html), ("--plot", plot)):
        if path is not None and not path.absolute().parent.is_dir():
            raise typer.BadParameter(f"no directory {path.parent}", param_hint=option)
        if path is not None and any(_same(path, Path(name)) for name in data):
            raise typer.BadParameter(f"{path} is the data: name another file", param_hint=option)


def _same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


def deliver(analysis: Analysis, *, as_json: bool, html: Path | None, plot: Path | None) -> None:
    """Write the files, then print.

    Raises:
        OSError: A file cannot be written.
        ValueError: A plot's suffix is not known.
    """
    if html is not None:
        from control.analyze.report import write_html

        write_html(analysis, html)
    if plot is not None:
        from control.analyze.plots import write_plot

        write_plot(analysis, plot)
    if as_json:
        from control.analyze.result import to_json

        typer.echo(to_json(analysis))
    else:
        from control.analyze.text import render_text

        render_text(analysis)


def require_extra(*needed: str) -> None:
    """Say how to install what is missing, and end.

    Raises:
        typer.Exit: Something is.
    """
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        typer.echo(
            f'turnout analyze needs {", ".join(missing)}: pip install "turnout[analyze]"', err=True
        )
        raise typer.Exit(EXIT_UNREADABLE)


@contextmanager
def refused() -> Iterator[None]:
    """Turn refusals and unreadable files into a message and an exit code."""
    from control.analyze.errors import Unreadable

    try:
        yield
    except Unreadable as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(EXIT_UNREADABLE) from error
    except ValueError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(EXIT_INVALID) from error
    except OSError as error:
        typer.echo(f"error: {error.filename or 'file'}: {error.strerror or error}", err=True)
        raise typer.Exit(EXIT_UNREADABLE) from error


@contextmanager
def progress_on_stderr(*, quiet: bool) -> Iterator[Progress | None]:
    """A moving line for a person, a line per step for a log."""
    if quiet:
        yield None
        return
    if not sys.stderr.isatty():
        yield _log_step
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        shown: dict[str, TaskID] = {}

        def report(step: str, share: float | None) -> None:
            if step not in shown:
                shown[step] = bars.add_task(step, total=1.0)
            bars.update(shown[step], completed=share or 0.0)

        yield report


def _log_step(step: str, share: float | None) -> None:
    if share is None:
        typer.echo(f"{step} ...", err=True)


def _seconds(option: str, text: str | None) -> float | None:
    if text is None:
        return None
    from control.model import durations

    found = durations.parse(text)
    if found is None:
        raise typer.BadParameter(f"{text!r}: must be {durations.RULE}", param_hint=option)
    return durations.milliseconds(found) / 1e3


def _shares(option: str, texts: Sequence[str] | None) -> dict[str, float]:
    found: dict[str, float] = {}
    for text in texts or ():
        name, equals, value = text.rpartition("=")
        try:
            number = float(value)
        except ValueError:
            equals = ""
        if not equals or not name:
            raise typer.BadParameter(
                f"{text!r} must be NAME=NUMBER, as treatment=0.5", param_hint=option
            )
        if name in found:
            raise typer.BadParameter(f"{name!r} is given twice", param_hint=option)
        found[name] = number
    return found
