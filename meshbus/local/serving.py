"""`python -m meshbus.local.serving NAME...`: what `meshbus serve` does, without the command line's
imports, which cost each of six processes a fifth of a second."""

import os
import sys

from meshbus.runtime.process import main

if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:], os.environ))
