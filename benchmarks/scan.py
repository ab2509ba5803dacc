"""Another name for the suite scan of the harness: --rows selective-512 is run.py's --only selective/L=512.

    python benchmarks/scan.py --rows selective-512,s4d-16384 --arms inductor,fuse --repeat 21
"""
from __future__ import annotations

import re
import sys

from run import main

if __name__ == "__main__":
    given = [re.sub(r"-(\d+)(?=,|$)", r"/L=\1", a.replace("--rows", "--only")) for a in sys.argv[1:]]
    sys.exit(main(["--suite=scan", *given]))
