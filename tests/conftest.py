"""What holds for every test: property tests draw the same examples in every run."""

from __future__ import annotations

import os

from hypothesis import settings

# A failure of `make test` is a change of ours, not of the examples; `long` looks for new ones.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("long", max_examples=5_000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
