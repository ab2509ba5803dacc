"""A torch.compile backend that streams huge intermediate values instead of storing them."""
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fuse.recurrence import scan as scan
    from fuse.report import explain as explain

__all__ = ["__version__", "explain", "scan"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`fuse.explain` and `fuse.scan` are loaded on first use: importing fuse does not import torch."""
    if name == "explain":
        from fuse.report import explain

        return explain
    if name == "scan":
        from fuse.recurrence import scan

        return scan
    raise AttributeError(f"module 'fuse' has no attribute {name!r}")


# In a wheel passes/ and codegen/ lie inside this package, in the repository beside it. These lines let a checkout that
# is not installed import them too, and let torch.compile find the backend by its name.
_root = Path(__file__).resolve().parent.parent
if __name__ == "fuse" and (_root / "pyproject.toml").is_file():
    __path__.append(str(_root))
    from fuse._checkout import advertise

    advertise()
