"""`fuse inspect PROGRAM --html FILE`: a report as one page that needs nothing else, no network either.

    record          the graphs as they were captured, and the values that enter each region
    graph           their operations, gathered into regions and into what lies between them
    regions         what a region is, stores, computes and runs
    interaction     for attention and scans: which position acts on which
    highlight       source text with its words sorted into a few classes
    template.html   what all of it is put into, with page.css, page.js, picture.js and, from vendor/, the library that draws
"""
from __future__ import annotations

from fuse.page.record import Record
from fuse.page.render import render

__all__ = ["Record", "render"]
