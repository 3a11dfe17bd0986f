"""`python -m envoy.demo`."""

import sys

from envoy.demo.run import main

if __name__ == "__main__":
    sys.exit(main())
