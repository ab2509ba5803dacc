"""`python -m fuse`: the command line of fuse."""
import sys

from fuse.cli import main

if __name__ == "__main__":
    sys.exit(main())
