"""`python -m meshbus.runtime.worker SERVICE [SETTINGS FILE]`: one of several workers of a service;
see `meshbus.runtime.workers`."""

import os
import sys

from meshbus.runtime.process import main

if __name__ == "__main__":
    raise SystemExit(main([sys.argv[1]], os.environ, *sys.argv[2:3]))
