"""`python -m mmt_cli` is `mmt`."""

import sys

from mmt_cli.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
