"""Benchmarks of speed and memory, and the tests that they run: of the sidecar as it is shipped."""

import sys

from tests import compiling

# So it is while `python -m tests.benchmarks...` looks for its module; never when pytest comes here.
if sys.argv[0] == "-m":
    compiling.begin()
