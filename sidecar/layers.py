"""The experiments of one target by layer, their arms numbered.

Owns the number of a combination of assignments: each layer is a digit, 0 for none of its arms.
Refuses to choose an arm: `assignment` does.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sidecar.answers import NO_SLOT, Arm
from sidecar.arms import Experiment

Slots = Mapping[tuple[str, int, str], int]


class Bound(NamedTuple):
    """An experiment that may enrol, with what its arms add to the number of a combination.

    Attributes:
        experiment: As compiled.
        unit: Number of its unit among the target's.
        codes: By piece.
        forced: By variant.
        strata: As codes, of each stratum; () = the experiment has none.
    """

    experiment: Experiment
    unit: int
    codes: tuple[int, ...]
    forced: tuple[int, ...]
    strata: tuple[tuple[int, ...], ...] = ()


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


def bind_layers(
    serving: Sequence[Experiment], keys: Sequence[bytes], slots: Slots
) -> tuple[Layer, ...]:
    """Experiments by layer, each arm with its digit.

    Args:
        serving: The target's experiments that may enrol, in their order.
        keys: Of their units; a unit's place is its number.
        slots: (experiment, epoch, variant) -> decided counter.
    """
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
    made: dict[tuple[int, bool, bool, int], int] = {}

    def code(index: int, *, copied: bool, forced: bool, stratum: int = 0) -> int:
        key = (index, copied, forced, stratum)
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
                    slot=slots.get((one.name, one.epoch, variant.name), NO_SLOT),
                    stratum=stratum,
                )
            )
            made[key] = len(arms) * stride
        return made[key]

    def coded(stratum: int) -> tuple[int, ...]:
        return tuple(
            code(p.variant, copied=p.copied and shadowing, forced=False, stratum=stratum)
            for p in one.pieces
        )

    codes = coded(0)
    strata = (codes, *(coded(number) for number in range(1, len(one.strata) + 1)))
    forced = tuple(code(i, copied=False, forced=True) for i in range(len(one.variants)))
    return Bound(one, unit, codes, forced, strata if one.strata else ())
