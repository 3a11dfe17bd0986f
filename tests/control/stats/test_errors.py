"""Every refusal names the argument, the value and the rule."""

from __future__ import annotations

import math

import numpy as np
import pytest

from control.stats import errors


@pytest.mark.parametrize(
    ("value", "rule", "message"),
    [
        (2.0, {"lt": 1.0}, "alpha == 2.0, must be < 1"),
        ([0.5, -1.0], {"ge": 0.0}, "alpha == -1.0, must be >= 0"),
        ([0.5, 0.0], {"gt": 0.0}, "alpha == 0.0, must be > 0"),
        (3.0, {"le": 1.0}, "alpha == 3.0, must be <= 1"),
        (1.5, {"whole": True}, "alpha == 1.5, must be whole"),
        (math.nan, {}, "alpha == nan, must be finite"),
        ([1.0, math.inf], {}, "alpha == inf, must be finite"),
        (None, {}, "alpha == nan, must be finite"),
        ("0.5", {}, "alpha == '0.5', must be numbers"),
        ([[1.0], [1.0, 2.0]], {}, "alpha == [[1.0], [1.0, 2.0]], must be numbers"),
    ],
)
def test_check_names_argument_value_and_rule_when_it_refuses(
    value: object, rule: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError) as refused:
        errors.check("alpha", value, **rule)  # type: ignore[arg-type]
    assert str(refused.value) == message


def test_check_takes_integers_beyond_64_bits() -> None:
    assert errors.check("n", 10**25) == 1e25


def test_scalar_is_refused_when_an_array_is_given() -> None:
    with pytest.raises(ValueError, match=r"alpha has shape \(2,\), must be one number"):
        errors.check_scalar("alpha", np.array([0.1, 0.2]))  # type: ignore[arg-type]


def test_vector_is_refused_when_empty_or_of_two_dimensions() -> None:
    with pytest.raises(ValueError, match=r"p has 0 values, must be at least 1"):
        errors.check_vector("p", [])
    with pytest.raises(ValueError, match=r"must be one-dimensional"):
        errors.check_vector("p", [[1.0]])


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, 1.1, math.nan])
def test_alpha_is_refused_when_out_of_range(alpha: float) -> None:
    with pytest.raises(ValueError, match=r"^alpha == "):
        errors.check_alpha(alpha)


def test_words_are_refused_when_unknown() -> None:
    with pytest.raises(ValueError, match=r"alternative == 'larger', must be one of"):
        errors.check_alternative("larger")
    with pytest.raises(ValueError, match=r"direction == 'up', must be one of"):
        errors.check_direction("up")


def test_shapes_are_refused_when_they_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"'a': \(2,\), 'b': \(3,\)"):
        errors.check_shapes(a=[1, 2], b=[1, 2, 3])
