"""What a target's experiments do with one of its requests.

Owns layers, overrides, holdout and the choice of one arm in each layer, for a target whose
experiments are bound to their gates and counters. Refuses bytes of requests: headers come decoded.

Two ways lead to the same assignments (`tests/sidecar/test_assignment.py` compares them). `decide`
is the whole of the rules. `Quick` is the short way for a target whose experiments read one unit and
have one holdout, and a request without anything unusual: it looks at no experiment one by one, but
finds each layer's arm and adds up a number, which names the combination and so its answer.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final, NamedTuple

from sidecar.answers import NO_SLOT, Arm, Template, encode, template
from sidecar.arms import Experiment, Holdout
from sidecar.outcome import DUPLICATE_UNIT, Outcome, Tally
from sidecar.predicates import Headers, Test
from sidecar.tokens import ForceToken
from sidecar.units import HeaderSource, Request, Source, Taken
from turnout.contract import BUCKET_COUNT, HEADER_UPSTREAM, UNIT_BYTES_MAX

# Answers that are kept for one target, about 1 KB each; a combination beyond them is built again
# when it is met again (about 10 us).
TEMPLATES_MAX: Final = 1_024

Slots = Mapping[tuple[str, int, str], int]


class Bound(NamedTuple):
    """An experiment that may enrol, with what its arms add to the number of a combination.

    Attributes:
        experiment: As compiled.
        unit: Number of its unit among the target's.
        codes: By piece.
        forced: By variant.
    """

    experiment: Experiment
    unit: int
    codes: tuple[int, ...]
    forced: tuple[int, ...]


class Layer(NamedTuple):
    """The experiments of one layer, by name, and its digit in the number of a combination.

    Attributes:
        name: The layer's.
        members: Of which a unit is in one at most.
        stride: Value of the digit's 1.
        arms: What the digits 1, 2, ... mean.
    """

    name: str
    members: tuple[Bound, ...]
    stride: int
    arms: tuple[Arm, ...]


class Target:
    """One target, and its experiments bound to gates and counters."""

    __slots__ = (
        "_baseline", "_hop", "_tallies", "_templates", "default", "experiments", "idle", "layers",
        "name", "quick", "sources", "waiting",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        experiments: Sequence[Experiment],
        *,
        baseline: str,
        default: str = "",
        closed: Collection[str] = (),
        slots: Slots,
        hop: bool = False,
    ) -> None:
        """Bind a target's experiments.

        Args:
            name: The target's.
            experiments: That run on it, in any order.
            baseline: Cluster that serves what no experiment routes.
            default: Cluster for requests that get no variant, where Envoy's routes are somebody
                else's; "" = they know it.
            closed: Names of the experiments whose start gate is closed.
            slots: (experiment, epoch, variant) -> decided counter.
            hop: Sidecars intercept: answers are marked.
        """
        self.name = name
        self.experiments = tuple(sorted(experiments, key=lambda one: one.order))
        self.waiting = any(one.name in closed for one in experiments)
        # The answer to a request that gets no variant; None = Envoy's route knows the baseline.
        self.default = encode([(HEADER_UPSTREAM, default.encode())]) if default else None
        self._baseline = default or baseline
        self._hop = hop
        self._templates: dict[int | tuple[int, int], Template] = {}
        self._tallies: dict[tuple[Outcome, int], Tally] = {}
        serving = [one for one in self.experiments if one.name not in closed]
        keys = list(dict.fromkeys(one.unit_key for one in serving))
        self.sources: tuple[Source, ...] = tuple(
            next(one.source for one in serving if one.unit_key == key) for key in keys
        )
        self.layers = _layers(serving, keys, slots)
        self.idle = self.tally(Outcome.WAITING if self.waiting else Outcome.NO_EXPERIMENT)
        self.quick = None if hop else _quick(self)

    def tally(self, outcome: Outcome, flags: int = 0) -> Tally:
        """What an answer of this target counts as: one object for each kind."""
        found = self._tallies.get((outcome, flags))
        if found is None:
            found = self._tallies[outcome, flags] = Tally(self.name, outcome, flags)
        return found

    def template(self, number: int, issued: int | None = None) -> Template:
        """The answer to a combination; `issued` is the number of a unit whose session began."""
        key = number if issued is None else (number, issued)
        found = self._templates.get(key)
        if found is None:
            found = template(
                self.name, self.arms(number), baseline=self._baseline, issued=issued, hop=self._hop
            )
            if len(self._templates) >= TEMPLATES_MAX:
                self._templates.clear()
            self._templates[key] = found
        return found

    def arms(self, number: int) -> list[Arm]:
        """The assignments that a combination's number stands for."""
        arms = []
        for layer in self.layers:
            number, digit = divmod(number, len(layer.arms) + 1)
            if digit:
                arms.append(layer.arms[digit - 1])
        return arms

    def decide(
        self, request: Request, token: ForceToken | None, random_unit: Callable[[], bytes]
    ) -> "Decision":
        """Assign one request by the whole of the rules.

        Args:
            request: As decoded.
            token: A force token that was believed.
            random_unit: Draws RANDOM_UNIT_BYTES; called once for each unit that needs them.
        """
        units = self._units(request, random_unit)
        number, furthest = 0, self.idle.outcome
        for layer in self.layers:
            digit, outcome = _assign(layer, request.headers, units, token)
            number += digit
            furthest = max(furthest, outcome)
        several = any(unit.several for unit in units)
        issued = next((n for n, unit in enumerate(units) if unit.issued), None)
        return Decision(number, furthest, DUPLICATE_UNIT * several, units, issued)

    def _units(self, request: Request, random_unit: Callable[[], bytes]) -> list[Taken]:
        units: list[Taken] = []
        issued = False
        for source in self.sources:
            unit = source.take(request, random_unit)
            if unit.issued and issued:
                # One answer tells the client of one cookie: the other session begins next time.
                unit = Taken(b"", unit.several)
            issued = issued or unit.issued
            units.append(unit)
        return units


class Decision(NamedTuple):
    """What `Target.decide` found.

    Attributes:
        number: Of the combination, 0 = nothing is stamped.
        furthest: Why not.
        flags: Bits beside the outcome.
        units: By number.
        issued: Number of the unit whose session has just begun.
    """

    number: int
    furthest: Outcome
    flags: int
    units: Sequence[Taken]
    issued: int | None


def _assign(
    layer: Layer, headers: Headers, units: Sequence[Taken], token: ForceToken | None
) -> tuple[int, Outcome]:
    """What one layer adds to the combination's number; and how far its experiments came."""
    furthest = Outcome.NO_EXPERIMENT
    able: list[tuple[Bound, bytes]] = []
    for bound in layer.members:
        unit = units[bound.unit].value
        outcome = _reachable(bound.experiment, unit)
        if outcome is not None:
            furthest = max(furthest, outcome)
            continue
        variant = _forced(bound.experiment, unit, token)
        if variant is not None:
            return bound.forced[variant], Outcome.STAMPED
        able.append((bound, unit))
    for bound, unit in able:
        experiment = bound.experiment
        if experiment.segment is not None and not experiment.segment(headers, unit):
            furthest = max(furthest, Outcome.NOT_IN_SEGMENT)
        elif not experiment.in_layer(unit):
            furthest = max(furthest, Outcome.NOT_IN_LAYER)
        else:
            return bound.codes[experiment.piece(unit)], Outcome.STAMPED
    return 0, furthest


def _reachable(experiment: Experiment, unit: bytes) -> Outcome | None:
    """Why an experiment cannot have a unit, whatever its overrides say; None = it can."""
    if not unit:
        return Outcome.NO_UNIT
    if len(unit) > UNIT_BYTES_MAX:
        return Outcome.INVALID_UNIT
    held = experiment.holdout is not None and experiment.holdout.holds(unit)
    return Outcome.HELD_OUT if held else None


def _forced(experiment: Experiment, unit: bytes, token: ForceToken | None) -> int | None:
    """The variant that an override gives to a unit: the allow-list, then the token."""
    listed = experiment.overrides.get(unit)
    if listed is not None or token is None or token.experiment != experiment.name:
        return listed
    return experiment.variant_index(token.variant) if token.unit in (b"", unit) else None


def _layers(
    serving: Sequence[Experiment], keys: Sequence[bytes], slots: Slots
) -> tuple[Layer, ...]:
    """Experiments by layer, each arm with its digit."""
    # One shadow per target at a time: two copies of a request would double a model's load twice.
    shadowing = next((one.name for one in serving if one.shadow is not None), None)
    layers: list[Layer] = []
    stride = 1
    for name in dict.fromkeys(one.layer for one in serving):
        arms: list[Arm] = []
        members = tuple(
            _bind(one, keys.index(one.unit_key), arms, stride, slots, one.name == shadowing)
            for one in serving
            if one.layer == name
        )
        layers.append(Layer(name, members, stride, tuple(arms)))
        stride *= len(arms) + 1
    return tuple(layers)


def _bind(
    one: Experiment, unit: int, arms: list[Arm], stride: int, slots: Slots, shadowing: bool
) -> Bound:
    made: dict[tuple[int, bool, bool], int] = {}

    def code(index: int, *, copied: bool, forced: bool) -> int:
        key = (index, copied, forced)
        if key not in made:
            variant = one.variants[index]
            shadow = one.variants[one.shadow] if copied and one.shadow is not None else None
            arms.append(
                Arm(
                    experiment=one.name,
                    epoch=one.epoch,
                    layer=one.layer,
                    variant=variant.name,
                    cluster=variant.cluster,
                    parameters=variant.parameters,
                    shadow=(shadow.name, shadow.cluster) if shadow is not None else None,
                    forced=forced,
                    unit=unit,
                    session=one.session,
                    slot=slots.get((one.name, one.epoch, variant.name), NO_SLOT),
                )
            )
            made[key] = len(arms) * stride
        return made[key]

    codes = tuple(code(p.variant, copied=p.copied and shadowing, forced=False) for p in one.pieces)
    forced = tuple(code(i, copied=False, forced=True) for i in range(len(one.variants)))
    return Bound(one, unit, codes, forced)


# -- The short way --------------------------------------------------------------------------------

# One experiment: segment, salt, starts of the pieces after the first, their codes.
_Member = tuple[Test | None, bytes, Sequence[int], Sequence[int]]


class QuickLayer(NamedTuple):
    """A layer whose experiments read the same unit.

    Attributes:
        prefix: The layer's salt; None = all of it is one experiment's.
        starts: Buckets at which the experiment changes, after the first.
        members: The experiments between them; None = nobody's.
    """

    prefix: bytes | None
    starts: Sequence[int]
    members: Sequence[_Member | None]


class Quick(NamedTuple):
    """What the short way needs to know of a target.

    Attributes:
        header: Name of the unit's header, "" = it is read by `source`.
        source: The unit's.
        overridden: Units that some allow-list names: they take the long way.
        holdout: Of all experiments; None = nobody is held out.
        layers: In their order.
        tests: Segments of all experiments; None among them = everybody is in one.
        templates: Answers by the number of the combination.
        no_unit, invalid_unit, held_out, not_in_segment, not_in_layer: What these count as.
    """

    header: str
    source: Source
    overridden: frozenset[bytes]
    holdout: Holdout | None
    layers: tuple[QuickLayer, ...]
    tests: tuple[Test | None, ...]
    templates: Mapping[int | tuple[int, int], Template]
    no_unit: Tally
    invalid_unit: Tally
    held_out: Tally
    not_in_segment: Tally
    not_in_layer: Tally

    def why_not(self, headers: Headers, unit: bytes) -> Tally:
        """What a request counts as that no experiment has, although its unit is good."""
        if any(test is None or test(headers, unit) for test in self.tests):
            return self.not_in_layer
        return self.not_in_segment


def _quick(target: Target) -> Quick | None:
    members = [bound.experiment for layer in target.layers for bound in layer.members]
    holdouts = {one.holdout.key if one.holdout is not None else None for one in members}
    if len(target.sources) != 1 or len(holdouts) != 1:
        return None
    [source] = target.sources
    return Quick(
        header=source.name if isinstance(source, HeaderSource) else "",
        source=source,
        overridden=frozenset(unit for one in members for unit in one.overrides),
        holdout=members[0].holdout,
        layers=tuple(map(_quick_layer, target.layers)),
        tests=tuple({id(one.segment): one.segment for one in members}.values()),
        templates=target._templates,
        no_unit=target.tally(Outcome.NO_UNIT),
        invalid_unit=target.tally(Outcome.INVALID_UNIT),
        held_out=target.tally(Outcome.HELD_OUT),
        not_in_segment=target.tally(Outcome.NOT_IN_SEGMENT),
        not_in_layer=target.tally(Outcome.NOT_IN_LAYER),
    )


def _quick_layer(layer: Layer) -> QuickLayer:
    prefix = layer.members[0].experiment.layer_prefix
    if prefix is None:
        return QuickLayer(None, (), (_member(layer.members[0]),))
    owned = [
        (part, _member(bound)) for bound in layer.members for part in bound.experiment.layer_ranges
    ]
    edges: list[tuple[int, _Member | None]] = []
    position = 0
    for (start, end), member in sorted(owned, key=lambda item: item[0]):
        if start > position:
            edges.append((position, None))
        edges.append((start, member))
        position = end
    if position < BUCKET_COUNT:
        edges.append((position, None))
    return QuickLayer(prefix, [edge for edge, _ in edges[1:]], [m for _, m in edges])


def _member(bound: Bound) -> _Member:
    one = bound.experiment
    return (one.segment, one.prefix, one.starts, bound.codes)
