"""Stands in for the installed metadata when fuse is imported from a checkout that is not installed.

torch.compile finds backends by name through the entry points of installed distributions. A checkout on PYTHONPATH has
none, so it answers `importlib.metadata` itself: nothing is imported until somebody asks for the backend.
"""
from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib.metadata import Distribution, DistributionFinder
from typing import NoReturn

ENTRY_POINTS = "[torch_dynamo_backends]\nfuse = fuse.backend:fuse\n"


class _Checkout(Distribution):
    """The two metadata files that entry point discovery reads."""

    def read_text(self, filename: str) -> str | None:
        from fuse import __version__

        return {
            "METADATA": f"Metadata-Version: 2.1\nName: torch-fuse\nVersion: {__version__}\n",
            "entry_points.txt": ENTRY_POINTS,
        }.get(filename)

    def locate_file(self, path: object) -> NoReturn:
        raise NotImplementedError("a checkout has no installed files")


class _Finder(DistributionFinder):
    """Asked last, so that an installed torch-fuse of the same name wins."""

    def find_spec(self, *args: object) -> None:
        return None

    def find_distributions(self, context: DistributionFinder.Context | None = None) -> Iterable[Distribution]:
        return [_Checkout()] if context is None or context.name in (None, "torch-fuse") else []


def advertise() -> None:
    """Make `backend="fuse"` known. torch scans the entry points once: if it has done so already, tell it directly."""
    sys.meta_path.append(_Finder())
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is not None and "fuse" not in dynamo.list_backends(exclude_tags=None):
        from fuse.backend import fuse

        dynamo.register_backend(fuse, name="fuse")
