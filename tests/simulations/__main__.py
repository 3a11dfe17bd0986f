"""`python -m tests.simulations [--long] [--only P1,P7] [--json FILE]`: run the plan, print it.

Prints the table as Markdown; ends with 1 if any figure is out of its bound or a naive method does
not fail. Without --long it takes about 100 s of CPU, with it about twenty minutes.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from tests.simulations.figures import table, to_json
from tests.simulations.plan import PLAN


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulations")
    parser.add_argument("--long", action="store_true", help="the repetitions of `make soak`")
    parser.add_argument("--only", default=",".join(PLAN), help="parts, such as P1,P7")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    asked = parser.parse_args()
    figures, cpu_s = [], {}
    for name in asked.only.split(","):
        if name not in PLAN:
            parser.error(f"there is no part {name}: {', '.join(PLAN)}")
        began = time.process_time()
        figures += PLAN[name](long=asked.long)
        cpu_s[name] = round(time.process_time() - began, 1)
        print(f"{name}: {cpu_s[name]} s of CPU", file=sys.stderr, flush=True)
        if asked.json is not None:
            asked.json.write_text(to_json(figures, cpu_s))
    print(table(figures))
    faults = [figure.fault for figure in figures if figure.fault]
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
