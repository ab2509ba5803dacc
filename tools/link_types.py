"""Lay out the package for a type checker as it is installed: build/types/fuse = fuse/* + passes + codegen, as links."""
from __future__ import annotations

import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TREE = ROOT / "build" / "types" / "fuse"


def main() -> None:
    shutil.rmtree(TREE, ignore_errors=True)
    TREE.mkdir(parents=True)
    for source in [*(ROOT / "fuse").iterdir(), ROOT / "passes", ROOT / "codegen"]:
        if source.name != "__pycache__":
            (TREE / source.name).symlink_to(source)


if __name__ == "__main__":
    main()
