"""Another name for the suites attention and flow of the harness: --rows flow,linear is run.py's --only.

    python benchmarks/attention.py --rows flow,linear --arms inductor,fuse --repeat 21
"""
from __future__ import annotations

import sys

from run import main

if __name__ == "__main__":
    sys.exit(main(["--suite=attention,flow", "--no-sweeps", *(a.replace("--rows", "--only") for a in sys.argv[1:])]))
