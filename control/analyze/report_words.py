"""What the report says about terms and methods, in words for who did not run the experiment.

Owns these words. Refuses numbers: they are the analysis'.
"""

from __future__ import annotations

from typing import Final

METHODS: Final = (
    (
        "proportion",
        "p at one look: two-proportion z test, pooled, without continuity correction",
    ),
    ("mean", "p and interval at one look: Welch's t test, unequal variances"),
    (
        "ratio",
        "standard error: delta method over units (Deng, Knoblich, Lu 2018), as units and not rows "
        "were assigned",
    ),
    (
        "quantile",
        "standard error: from order statistics, wider where rows of a unit go together (Deng, "
        "Knoblich, Lu 2018)",
    ),
)

TERMS: Final = (
    ("Unit", "What was assigned to a variant, such as a user; its rows count together."),
    ("Control, treatment", "What there was before, and what is compared with it."),
    ("Difference", "Treatment's value minus control's."),
    ("Relative", "The difference as a share of control's value."),
    (
        "pp",
        "Percent points: from 10 % to 12 % are 2 percent points (relative, it is 20 %).",
    ),
    (
        "Standard error",
        "How far the difference would typically be off if the experiment were repeated.",
    ),
    (
        "Confidence interval",
        "Where the true difference is, if the data are looked at once, at a time decided "
        "beforehand. Who looks again and again and stops when 0 is outside is wrong far more "
        "often than promised.",
    ),
    (
        "Confidence sequence",
        "Where the true difference is, whenever and however often one looks. Wider than the "
        "interval: that is the price of being free to look.",
    ),
    (
        "p-value",
        "How surprising the data were if there were no difference: small is against that. One "
        "holds for one planned look, one for any look.",
    ),
    (
        "Higher, lower, not told apart",
        "Whether 0 is outside the governing interval. “Not told apart” does not mean equal: the "
        "interval says how large a difference may still be.",
    ),
    (
        "Sample ratio",
        "Whether as many units are in each variant as were meant to be. If not, something chose "
        "who is counted, and no other number can be trusted.",
    ),
    (
        "e-value",
        "Evidence against the expected split, valid at any look: about 1 means none, 1,000 is "
        "as strong as a p-value of 0.001.",
    ),
    ("Stratum", "A part of the units, such as a country, looked at by itself."),
)
