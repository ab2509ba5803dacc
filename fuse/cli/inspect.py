"""`fuse inspect PROGRAM`: the regions of a program, the refusals, the IR after any pass, and the kernels."""
from __future__ import annotations

import argparse
import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fuse.cli import screen
from fuse.cli.errors import ProgramFailed, UsageError
from fuse.cli.program import Program, add_program, checked_kinds, load, options_of

if TYPE_CHECKING:
    from fuse.report import RegionReport, Report, Watch


def add(commands: Any) -> None:
    parser = commands.add_parser("inspect", help="show the regions, refusals, IR and kernels of a program", description=__doc__)
    add_program(parser)
    parser.add_argument("--after", metavar="PASS", help="print the IR after this pass; a wrong name lists the passes")
    parser.add_argument("--diff", metavar="PASS", help="print what this pass changes in the IR")
    parser.add_argument("--kernels", action="store_true", help="print the source of every kernel")
    parser.add_argument("--arch", help="with --kernels also registers, shared memory and spills (sm_90, gfx942, ...; no GPU is "
                                       "needed), or the widths of vectors (cpu)")
    parser.add_argument("--profile", action="store_true", help="print what fuse's passes took")
    parser.add_argument("--require", action="append", default=[], metavar="KIND",
                        help="exit with 1 if no region of this kind was fused; repeatable")
    parser.add_argument("--html", metavar="FILE", help="write everything as one page for a browser, with a picture of the graph")
    screen.add_json(parser)
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    _check_passes(parsed.after, parsed.diff)
    required, options = checked_kinds(parsed.require), options_of(parsed)
    program = load(parsed)
    _choose_arch(options)
    report = _with_page(program, options, parsed) if parsed.html else analysed(program, options, parsed.dynamic)
    found = {kind for region in report.regions for kind in region.kinds}
    missing = sorted(required - found)
    if parsed.json:
        screen.document("inspect", _document(report, parsed, missing))
    else:
        _show(report, parsed)
    if missing:
        screen.warn(f"required but not fused: {', '.join(missing)}")
    return 1 if missing else 0


def analysed(program: Program, options: dict[str, Any], dynamic: bool, watch: Watch | None = None) -> Report:
    """The report of one call. ProgramFailed if the program raises."""
    from fuse.report import explain

    try:
        with program.mode():
            return explain(program.function, *program.args, fuse_options=options, fuse_dynamic=dynamic or None,
                           fuse_watch=watch, **program.kwargs)
    except Exception as error:
        raise ProgramFailed(f"{program.label} failed while it was compiled") from error


def _with_page(program: Program, options: dict[str, Any], parsed: argparse.Namespace) -> Report:
    """The report, which is also written as a page."""
    from fuse.page import Record, render

    file, record = Path(parsed.html), Record()
    if file.is_dir() or not file.absolute().parent.is_dir():
        raise UsageError(f"there is no folder for {parsed.html!r}" if not file.is_dir() else f"{parsed.html!r} is a folder")
    report = analysed(program, options, parsed.dynamic, record.watch)
    try:
        file.write_text(render(report, record, program.label), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{parsed.html!r} cannot be written: {error.strerror}") from error
    return report


def _check_passes(*given: str | None) -> None:
    from fuse.passes import PIPELINE

    names = ["import", *(name for name, _ in PIPELINE)]
    for name in given:
        if name is not None and name not in names:
            raise UsageError(f"there is no pass called {name!r}; the passes are {', '.join(names)}")


def _choose_arch(options: dict[str, Any]) -> None:
    """Triton's kernels can be looked at without a device: for one that many have."""
    if options.get("target") != "triton" or "arch" in options:
        return
    from fuse.codegen.triton import machine_here
    from fuse.reasons import Miss

    if isinstance(machine_here(), Miss):
        options["arch"] = "sm90"
        screen.warn("there is no GPU here: these are the kernels for sm_90 (--arch chooses another)")


def before(region: RegionReport, name: str) -> str:
    """The IR that the pass `name` was given; the importer was given none."""
    names = list(region.snapshots)
    at = names.index(name)
    return region.snapshots[names[at - 1]]() if at else ""


def difference(region: RegionReport, name: str) -> str:
    lines = difflib.unified_diff(before(region, name).splitlines(), region.snapshots[name]().splitlines(),
                                 f"before {name}", f"after {name}", lineterm="")
    return "\n".join(lines) or f"{name} changes nothing"


def _document(report: Report, parsed: argparse.Namespace, missing: list[str]) -> dict[str, Any]:
    regions = report.regions
    return {
        "program": parsed.program, **{k: v for k, v in report.to_dict().items() if k != "schema"}, "missing": missing,
        "after": {parsed.after: [r.snapshots[parsed.after]() for r in regions]} if parsed.after else {},
        "diff": {parsed.diff: [difference(r, parsed.diff) for r in regions]} if parsed.diff else {},
        "resources": [{w.name: w.resources() for w in r.walks} for r in regions] if parsed.arch else [],
    }


def _show(report: Report, parsed: argparse.Namespace) -> None:
    from fuse.report_text import profile_text

    screen.say(str(report))
    if parsed.profile:
        screen.say(f"\n{profile_text(report)}")
    for i, region in enumerate(report.regions):
        title = f"\n; region {i}, {next(iter(region.kinds), 'contraction')} at {region.where}"
        if parsed.after:
            screen.say(f"{title}, after {parsed.after}")
            screen.code(region.snapshots[parsed.after](), "")
        if parsed.diff:
            screen.say(f"{title}, {parsed.diff}")
            screen.code(difference(region, parsed.diff), "diff")
    if parsed.kernels or parsed.arch:
        _show_kernels(report, parsed)


def _show_kernels(report: Report, parsed: argparse.Namespace) -> None:
    """Every kernel once, though many regions may share it."""
    shown: set[str] = set()
    for i, region in enumerate(report.regions):
        for walk in region.walks:
            if walk.source in shown:
                continue
            shown.add(walk.source)
            screen.say(f"\n; region {i}, kernel {walk.name}, {region.target}")
            if parsed.arch:
                screen.say("\n".join(map(_resources, walk.resources())))
            if parsed.kernels:
                screen.code(walk.source, "cpp" if region.target == "cpu" else "python")


def _resources(use: dict[str, Any]) -> str:
    if "vector_bits" in use:
        widths = ", ".join(f"{count} of {width} bits" if width.isdigit() else f"{count} {width}"
                           for width, count in use["instructions"].items())
        return f"  {use['kernel']}: vectors of {use['vector_bits']} bits; floating-point instructions: {widths}"
    fits = "" if use["fits"] else "; it does not fit"
    return (f"  {use['kernel']} on {use['arch']}: {use['registers']} registers a thread, {use['spills']} bytes spilled, "
            f"{use['shared']} bytes of shared memory{fits}")
