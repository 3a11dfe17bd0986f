"""The plan for the statistics, P1 to P9: what the product's own functions do in simulated worlds.

Owns the worlds (seeded numpy), the bounds and, beside each method, the naive one that must fail in
the same world: a world in which nothing fails proves nothing. Refuses methods of its own: all that
is judged here comes from control.stats, control.rollout and control.evidence.
`python -m tests.simulations` prints the table that is in control/stats/README.md.
"""
