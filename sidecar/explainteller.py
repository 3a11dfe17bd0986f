"""What becomes of a request in one experiment, question after question.

Owns the order of the questions and their words. Refuses to decide: the arms were given by
`Target.decide`, and each question is put to the function that is asked while serving.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from sidecar.answers import Arm
from sidecar.arms import Experiment
from sidecar.assignment import Decision
from sidecar.explainwords import Conditions, percent, shown, size
from sidecar.hashing import bucket_after
from sidecar.layers import Bound
from sidecar.outcome import Outcome
from sidecar.units import Taken
from turnout.contract import BUCKET_COUNT, LAYER_MODELS, UNIT_BYTES_MAX
from turnout.v1alpha1.snapshot_pb2 import ExperimentPlan


class Step(NamedTuple):
    """One question about the request.

    Attributes:
        name: What is asked: target, token, experiment, gate, unit, holdout, override, segment,
            layer, bucket, variant, stratum, shadow.
        passed: False ends the story, or that of the experiment; a token then changes nothing.
        sentence: The answer, with its facts.
        experiment: That is asked about, "" = none.
    """

    name: str
    passed: bool
    sentence: str
    experiment: str = ""


class Assigned(NamedTuple):
    """What becomes of a request in one experiment.

    Attributes:
        experiment: Its name.
        epoch: Its epoch.
        layer: Its layer.
        outcome: STAMPED, or how far the request came.
        unit: Printable; "" = none.
        bucket: In [0, BUCKET_COUNT), None when it was not asked for.
        bucket_range: The variant's range that has the bucket: [start, end).
        variant: That the request gets, "" = none.
        forced: By an override, whatever its bucket is.
    """

    experiment: str
    epoch: int
    layer: str
    outcome: str
    unit: str = ""
    bucket: int | None = None
    bucket_range: tuple[int, int] | None = None
    variant: str = ""
    forced: bool = False


class Teller:
    """The story of one experiment; stops at the first question that ends it.

    Attributes:
        steps: What was asked so far.
    """

    def __init__(
        self,
        experiment: Experiment,
        message: ExperimentPlan,
        arms: Mapping[str, Arm],
        words: Conditions,
    ) -> None:
        """Nothing is asked yet.

        Args:
            experiment: As it serves.
            message: As the snapshot has it.
            arms: What the request was given, by experiment.
            words: Of the request.
        """
        self.steps: list[Step] = []
        self._experiment = experiment
        self._message = message
        self._words = words
        self._arm = arms.get(experiment.name)
        rivals = (arm for arm in arms.values() if arm.layer == experiment.layer)
        self._rival = next((arm for arm in rivals if arm.experiment != experiment.name), None)
        self._forced = self._rival is not None and self._rival.forced
        self._told = Assigned(message.name, message.epoch, message.layer, "")

    def told(self, bound: Bound | None, decision: Decision | None) -> Assigned:
        """Ask everything.

        Args:
            bound: The experiment among those that may enrol; None = its gate is closed.
            decision: About the request; None = no experiment of the target may enrol.
        """
        shares = ", ".join(f"{v.name} {percent(size(v.ranges))}" for v in self._message.variants)
        layer = self._message.layer
        of = f", layer {layer}" if layer != LAYER_MODELS else ""
        self._say("experiment", f"{self._message.name}, epoch {self._message.epoch}{of}: {shares}")
        if bound is None or decision is None:
            name = self._message.name
            self._no("gate", f"{name} waits for healthy upstreams and enrols nobody, in either arm")
            return self._ended(Outcome.WAITING)
        taken = decision.units[bound.unit]
        ended = self._ask_unit(taken) or self._ask_holdout(taken.value)
        if ended is not None:
            return self._ended(ended)
        if self._arm is not None and self._arm.forced:
            return self._ask_override(taken.value)
        ended = self._ask_segment(taken.value) or self._ask_layer(taken.value)
        if ended is not None:
            return self._ended(ended)
        return self._ask_bucket(taken.value)

    def _ask_unit(self, taken: Taken) -> Outcome | None:
        source, unit = self._experiment.source.describe(), taken.value
        self._told = self._told._replace(unit=shown(unit))
        if not unit:
            self._no("unit", f"{source} is not there or empty: a request without a unit is not "
                             "enrolled")  # fmt: skip
            return Outcome.NO_UNIT
        if len(unit) > UNIT_BYTES_MAX:
            self._no("unit", f"{source} has {len(unit)} bytes, at most {UNIT_BYTES_MAX} are a unit")
            return Outcome.INVALID_UNIT
        note = " (there are several: the first counts)" if taken.several else ""
        issued = " (new: the answer sets the cookie)" if taken.issued else ""
        self._say("unit", f"{shown(unit)} ({source}){note}{issued}")
        return None

    def _ask_holdout(self, unit: bytes) -> Outcome | None:
        holdout = self._experiment.holdout
        if holdout is None:
            return None
        share = percent(size(self._message.holdout.ranges))
        if holdout.holds(unit):
            self._no("holdout", f"the unit is among the {share} that no experiment has")
            return Outcome.HELD_OUT
        self._say("holdout", f"the unit is not among the {share} that no experiment has")
        return None

    def _ask_override(self, unit: bytes) -> Assigned:
        arm = self._arm
        assert arm is not None, "an override made it"
        listed = unit in self._experiment.overrides
        by = "the allow-list" if listed else "the token"
        self._say("override", f"{by} gives {arm.variant}: flagged, and left out of analysis")
        self._say("variant", f"{arm.variant} ({self._role(arm.variant)}), whatever the bucket")
        self._told = self._told._replace(variant=arm.variant, forced=True)
        return self._ended(Outcome.STAMPED)

    def _ask_segment(self, unit: bytes) -> Outcome | None:
        segment = self._experiment.segment
        if segment is None or self._forced:
            return None
        passed = segment(self._words.headers, unit)
        judged = self._words.judged([self._message.segment], unit)
        self._say("segment", "; ".join(text for text, _ in judged), passed=passed)
        return None if passed else Outcome.NOT_IN_SEGMENT

    def _ask_layer(self, unit: bytes) -> Outcome | None:
        prefix = self._experiment.layer_prefix
        if self._rival is not None and self._forced:
            self._no("layer", f"{self._rival.experiment} has the request, by an override")
            return Outcome.NOT_IN_LAYER
        if prefix is None:
            return None
        share = percent(size(self._message.layer_ranges))
        place = bucket_after(prefix, unit)
        passed = self._experiment.in_layer(unit)
        word = "in" if passed else "not in"
        text = f"place {place} of {BUCKET_COUNT} in layer {self._message.layer} is {word} its"
        if passed and self._rival is not None:
            # Only where two experiments of a layer have other units.
            self._no("layer", f"{text} {share}, and {self._rival.experiment} has the request")
            return Outcome.NOT_IN_LAYER
        self._say("layer", f"{text} {share}", passed=passed)
        return None if passed else Outcome.NOT_IN_LAYER

    def _ask_bucket(self, unit: bytes) -> Assigned:
        message, arm = self._message, self._arm
        assert arm is not None, "nothing ended the story"
        bucket = self._experiment.bucket(unit)
        salt = f"salt {shown(message.salt.encode())}"
        self._say("bucket", f"{bucket} of {BUCKET_COUNT} (hash of {salt} and the unit)")
        ranges = next(v.ranges for v in message.variants if v.name == arm.variant)
        found = next((r.start, r.end) for r in ranges if r.start <= bucket < r.end)
        place = f"has buckets {found[0]}..{found[1] - 1}"
        role = self._role(arm.variant)
        self._say("variant", f"{arm.variant} ({role}) {place}, so the unit is its own")
        if message.strata:
            number = self._experiment.stratum(self._words.headers, unit)
            name = message.strata[number - 1].name if number else "none that has a name"
            self._say("stratum", f"{name}: counted apart ({number} in the stamp)")
        if message.HasField("shadow"):
            self._ask_shadow(arm, bucket)
        self._told = self._told._replace(variant=arm.variant, bucket=bucket, bucket_range=found)
        return self._ended(Outcome.STAMPED)

    def _ask_shadow(self, arm: Arm, bucket: int) -> None:
        shadow = self._message.shadow
        share = percent(size(shadow.ranges))
        if arm.shadow is not None:
            text = f"copied to {shadow.variant} ({share} of the units are), which answers nobody"
        elif arm.variant == shadow.variant:
            text = f"not copied: {arm.variant} serves it already"
        elif any(part.start <= bucket < part.end for part in shadow.ranges):
            text = "not copied: another experiment of this target copies requests"
        else:
            text = f"not copied: bucket {bucket} is not in the {share} that go to {shadow.variant}"
        self._say("shadow", text)

    def _role(self, variant: str) -> str:
        return "control" if self._message.variants[0].name == variant else "candidate"

    def _say(self, name: str, sentence: str, *, passed: bool = True) -> None:
        self.steps.append(Step(name, passed, sentence, self._message.name))

    def _no(self, name: str, sentence: str) -> None:
        self._say(name, sentence, passed=False)

    def _ended(self, outcome: Outcome) -> Assigned:
        return self._told._replace(outcome=outcome.name)
