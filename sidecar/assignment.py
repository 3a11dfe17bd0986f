"""What a target's experiments do with one of its requests.

Owns layers, overrides, holdout and the choice of one arm in each layer, for a target whose
experiments are bound to their gates and counters. Refuses bytes of requests: headers come decoded.

Two ways lead to the same assignments (`tests/sidecar/test_assignment.py` compares them). `decide`
is the whole of the rules. `Quick` is the short way for a target whose experiments read one unit and
have one holdout, and a request without anything unusual: it looks at no experiment one by one, but
finds each layer's arm and adds up a number, which names the combination and so its answer.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from math import prod
from typing import Final, NamedTuple

from sidecar.answers import (
    Arm,
    Assembler,
    Encoded,
    Template,
    cookie_template,
    encode,
    encoded_arm,
    template,
)
from sidecar.arms import Experiment
from sidecar.layers import Bound, Layer, Slots, bind_layers
from sidecar.outcome import DUPLICATE_UNIT, Outcome, Tally
from sidecar.predicates import Headers, Test
from sidecar.tokens import ForceToken
from sidecar.units import HeaderSource, Request, SessionSource, Taken
from turnout.contract import BUCKET_COUNT, HEADER_UPSTREAM, UNIT_BYTES_MAX

# Answers that are kept for one target, about 1 KB each. Where more combinations can be, the short
# way assembles each answer from its arms' parts (2 us) and the long way builds it again (20 us).
TEMPLATES_MAX: Final = 1_024


class Target:
    """One target, and its experiments bound to gates and counters."""

    __slots__ = (
        "_bound", "_closed", "_default", "_slots", "_tallies", "_templates", "baseline", "default",
        "experiments", "hop", "name",
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
        # The answer to a request that gets no variant; None = Envoy's route knows the baseline.
        self.default = encode([(HEADER_UPSTREAM, default.encode())]) if default else None
        self._default = default
        self.baseline = default or baseline
        self._closed = closed
        self._slots = slots
        self.hop = hop
        self._bound: Binding | None = None
        self._templates: dict[int | tuple[int, int], Template] = {}
        self._tallies: dict[tuple[Outcome, int], Tally] = {}

    @property
    def bound(self) -> "Binding":
        """The experiments that may enrol, bound when this is first asked for.

        A plan has a thousand targets, of which the models beside this sidecar are one or two: bound
        at once, the others would take half of a plan's time and memory.
        """
        found = self._bound
        if found is None:
            found = self._bound = Binding(self, self._closed, self._slots)
        return found

    def tally(self, outcome: Outcome, flags: int = 0) -> Tally:
        """What an answer of this target counts as: one object for each kind."""
        found = self._tallies.get((outcome, flags))
        if found is None:
            found = self._tallies[outcome, flags] = Tally(self.name, outcome, flags)
        return found

    def template(self, number: int, issued: int | None = None) -> Template:
        """The answer to a combination.

        Args:
            number: Of the combination; 0, which stamps nothing, with `issued` alone.
            issued: Number of the unit whose session has just begun.
        """
        key = number if issued is None else (number, issued)
        found = self._templates.get(key)
        if found is None:
            found = self.build(number, issued)
            if len(self._templates) >= TEMPLATES_MAX:
                self._templates.clear()
            self._templates[key] = found
        return found

    def build(self, number: int, issued: int | None = None) -> Template:
        """A new answer to a combination; arguments as `template`."""
        arms, stamped = self.arms(number), self.tally(Outcome.STAMPED)
        # Of experiments that read one cookie and give it different ages, the first one's counts.
        source = self.bound.sources[issued] if issued is not None else None
        session = (source.name, source.max_age_s) if isinstance(source, SessionSource) else None
        if session is not None and not arms:
            return cookie_template(session, self.bound.idle, default=self._default)
        return template(arms, stamped, baseline=self.baseline, session=session, hop=self.hop)

    def arms(self, number: int) -> list[Arm]:
        """The assignments that a combination's number stands for."""
        arms = []
        for layer in self.bound.layers:
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
        bound = self.bound
        number, furthest = 0, bound.idle.outcome
        for layer in bound.layers:
            digit, outcome = _assign(layer, request.headers, units, token)
            number += digit
            furthest = max(furthest, outcome)
        several = any(unit.several for unit in units)
        issued = next((n for n, unit in enumerate(units) if unit.issued), None)
        return Decision(number, furthest, DUPLICATE_UNIT * several, units, issued)

    def _units(self, request: Request, random_unit: Callable[[], bytes]) -> list[Taken]:
        units: list[Taken] = []
        issued = False
        for source in self.bound.sources:
            unit = source.take(request, random_unit)
            if unit.issued and issued:
                # One answer tells the client of one cookie: the other session begins next time.
                unit = Taken(b"", unit.several)
            issued = issued or unit.issued
            units.append(unit)
        return units


class Binding:
    """What requests to a target can come to.

    Attributes:
        idle: What an answer counts as when no experiment serves here.
        layers: Of the experiments that may enrol: `models` first, then by name.
        sources: Where their units come from.
        quick: None = there is no short way.
    """

    __slots__ = ("idle", "layers", "quick", "sources")

    def __init__(self, target: Target, closed: Collection[str], slots: Slots) -> None:
        serving = [one for one in target.experiments if one.name not in closed]
        waiting = len(serving) < len(target.experiments)
        keys = list(dict.fromkeys(one.unit_key for one in serving))
        self.sources = tuple(
            next(one.source for one in serving if one.unit_key == key) for key in keys
        )
        self.idle = target.tally(Outcome.WAITING if waiting else Outcome.NO_EXPERIMENT)
        self.layers = bind_layers(serving, keys, slots)
        possible = not target.hop and Quick.is_possible(self)
        self.quick = Quick(target, self) if possible else None


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
            codes = bound.codes
            if bound.strata:
                codes = bound.strata[experiment.stratum(headers, unit)]
            return codes[experiment.piece(unit)], Outcome.STAMPED
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


# -- The short way --------------------------------------------------------------------------------


class Member:
    """One experiment in a layer, as the short way looks at it.

    Attributes:
        segment: Who is eligible; None = all.
        salt: Of its buckets.
        edges: Where its pieces begin, after the first.
        pieces: How many; a stratum's begin behind those of the one before.
        strata: Tests of strata 1, 2, ...
        codes: What each piece of each stratum adds to the number of a combination.
        arms: Their arms; [] where every combination can have a template.
    """

    __slots__ = ("arms", "codes", "edges", "pieces", "salt", "segment", "strata")

    def __init__(
        self, segment: Test | None, experiment: Experiment, codes: list[int], arms: list[Encoded]
    ) -> None:
        self.segment = segment
        self.salt = experiment.prefix
        self.edges = experiment.starts
        self.pieces = len(experiment.pieces)
        self.strata = experiment.strata
        self.codes = codes
        self.arms = arms


class QuickLayer:
    """A layer whose experiments read the same unit.

    Attributes:
        only: The experiment that has all of it; None = look for the unit's place.
        salt: Of the places.
        starts: At which the experiment changes, after the first.
        members: The experiments between them; None = nobody's.
    """

    __slots__ = ("members", "only", "salt", "starts")

    def __init__(self, salt: bytes, starts: list[int], members: list[Member | None]) -> None:
        self.only = members[0] if len(members) == 1 else None
        self.salt = salt
        self.starts = starts
        self.members = members


# What to send, decided counters to raise, what the answer counts as.
Answering = tuple[bytes, tuple[int, ...], Tally]


class Quick:
    """What the short way (`processor.assign`) needs to know of a target.

    Attributes:
        header: Name of the unit's header, "" = it is read by `source`.
        source: The unit's.
        overridden: Units that some allow-list names: they take the long way.
        held_salt: Of the holdout that all experiments share; None = nobody is held out.
        held_edges: Where its ranges begin and end: a unit between an odd number of them is held.
        layers: In their order.
        few: Every combination can have a template.
        templates: Answers by the number of the combination.
        stamped, no_unit, invalid_unit, held_out: What these count as.
    """

    __slots__ = (
        "_assembler", "_not_in_layer", "_not_in_segment", "_target", "_tests", "few", "header",
        "held_edges", "held_out", "held_salt", "invalid_unit", "layers", "no_unit",
        "overridden", "source", "stamped", "templates",
    )  # fmt: skip

    def __init__(self, target: Target, binding: Binding) -> None:
        """Prepare a target of whose binding `is_possible` holds."""
        members = [bound.experiment for layer in binding.layers for bound in layer.members]
        [self.source] = binding.sources
        self.header = self.source.name if isinstance(self.source, HeaderSource) else ""
        self.overridden = frozenset(unit for one in members for unit in one.overrides)
        holdout = members[0].holdout
        self.held_salt = holdout.prefix if holdout is not None else None
        self.held_edges = [edge for part in holdout.ranges for edge in part] if holdout else []
        # Equal segments are one function: the short way calls it once for neighbours.
        tests = {one.segment_key: one.segment for one in members}
        self.few = prod(_possible(layer) for layer in binding.layers) <= TEMPLATES_MAX
        self.layers = tuple(_quick_layer(layer, tests, self.few) for layer in binding.layers)
        self.templates: dict[int, Template] = {}
        self.stamped = target.tally(Outcome.STAMPED)
        self.no_unit = target.tally(Outcome.NO_UNIT)
        self.invalid_unit = target.tally(Outcome.INVALID_UNIT)
        self.held_out = target.tally(Outcome.HELD_OUT)
        self._not_in_segment = target.tally(Outcome.NOT_IN_SEGMENT)
        self._not_in_layer = target.tally(Outcome.NOT_IN_LAYER)
        self._tests = tuple(tests.values())
        self._target = target
        self._assembler = Assembler(target.baseline)

    @staticmethod
    def is_possible(binding: Binding) -> bool:
        """Whether all experiments of a target have one unit and one holdout."""
        members = [bound.experiment for layer in binding.layers for bound in layer.members]
        holdouts = {one.holdout.key if one.holdout is not None else None for one in members}
        return len(binding.sources) == 1 and len(holdouts) == 1

    def answer(self, number: int, arms: Sequence[Encoded], unit_hash: bytes) -> Answering:
        """The answer to a combination without a template; it gets one where there is room."""
        if self.few:
            found = self.templates[number] = self._target.build(number)
            return unit_hash.join(found.parts), found.slots, self.stamped
        slots = tuple([slot for arm in arms for slot in arm.slots])
        return self._assembler.answer(arms, unit_hash), slots, self.stamped

    def why_not(self, headers: Headers, unit: bytes) -> Tally:
        """What a request counts as that no experiment has, although its unit is good."""
        if any(test is None or test(headers, unit) for test in self._tests):
            return self._not_in_layer
        return self._not_in_segment


def _possible(layer: Layer) -> int:
    """How many arms of a layer a unit can have without being forced; none of them is one more."""
    return 1 + sum(len(set(_codes(bound))) for bound in layer.members)


def _codes(bound: Bound) -> list[int]:
    """What each piece adds, stratum after stratum."""
    return [code for codes in bound.strata or (bound.codes,) for code in codes]


def _quick_layer(layer: Layer, tests: Mapping[bytes, Test | None], few: bool) -> QuickLayer:
    def member(bound: Bound) -> Member:
        codes = _codes(bound)
        arms = [] if few else [layer.arms[code // layer.stride - 1] for code in codes]
        test = tests[bound.experiment.segment_key]
        return Member(test, bound.experiment, codes, [encoded_arm(arm) for arm in arms])

    prefix = layer.members[0].experiment.layer_prefix
    if prefix is None:
        return QuickLayer(b"", [], [member(layer.members[0])])
    owned = [
        (part, member(bound)) for bound in layer.members for part in bound.experiment.layer_ranges
    ]
    edges: list[tuple[int, Member | None]] = []
    position = 0
    for (start, end), owner in sorted(owned, key=lambda item: item[0]):
        if start > position:
            edges.append((position, None))
        edges.append((start, owner))
        position = end
    if position < BUCKET_COUNT:
        edges.append((position, None))
    return QuickLayer(prefix, [edge for edge, _ in edges[1:]], [owner for _, owner in edges])
