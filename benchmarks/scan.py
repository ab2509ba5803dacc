"""Another name for the suite scan of the harness: --rows selective is run.py's --only, which also knows selective/L=4096.

    python benchmarks/scan.py --rows selective,s4d/L=16384 --arms inductor,fuse --repeat 21
"""
from __future__ import annotations

import sys

from run import main

if __name__ == "__main__":
    sys.exit(main(["--suite=scan", *(a.replace("--rows", "--only") for a in sys.argv[1:])]))
