"""`fuse doctor [PROGRAM]`: whether this machine has what fuse needs, and whether a program hides its large values from it."""
from __future__ import annotations

import argparse
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from fuse.cli import screen
from fuse.cli.program import Program, add_program, load, options_of

if TYPE_CHECKING:
    from fuse.report import Report

TESTED = ((2, 11), (2, 15))      # versions of torch


@dataclass(frozen=True)
class Finding:
    """`status` is ok, warn (slower, or less fused than it could be) or fail (what fuse is there for does not work)."""

    status: str
    check: str
    text: str
    hint: str = ""


def add(commands: Any) -> None:
    parser = commands.add_parser("doctor", help="check this machine, and a program for what keeps it from being fused",
                                 description=__doc__)
    add_program(parser, optional=True)
    screen.add_json(parser)
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    options = options_of(parsed)
    findings = list(machine())
    if parsed.program:
        findings += examined(load(parsed), options, parsed.dynamic)
    if parsed.json:
        screen.document("doctor", {"program": parsed.program, "findings": [asdict(f) for f in findings]})
    else:
        for finding in findings:
            hint = f"\n       {'':<12}{finding.hint}" if finding.hint else ""
            screen.say(f"{finding.status:<5}  {finding.check:<12}{finding.text}{hint}")
    return int(any(f.status == "fail" for f in findings))


# ---- the machine -------------------------------------------------------------------------------------------------

def machine() -> Iterator[Finding]:
    for check in (_versions, _backend, _compiler, _gemm, _gpu, _caches):
        yield from check()


def _versions() -> Iterator[Finding]:
    import torch

    from fuse import __version__

    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    known = TESTED[0] <= version <= TESTED[1]
    text = f"fuse {__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    yield Finding("ok" if known else "warn", "versions", text,
                  "" if known else "fuse is tested with torch " + " to ".join(".".join(map(str, v)) for v in TESTED))


def _backend() -> Iterator[Finding]:
    import torch

    found = "fuse" in torch.compiler.list_backends(exclude_tags=())
    yield Finding("ok" if found else "fail", "backend", 'torch.compile finds backend="fuse"' if found else
                  'torch.compile does not find backend="fuse"', "" if found else "install fuse, or import it first")


def _compiler() -> Iterator[Finding]:
    from fuse.codegen.build import compiler, library
    from fuse.reasons import Refused

    tool = compiler()
    if tool is None:
        yield Finding("fail", "compiler", "no C++ compiler: regions on the CPU run in plain torch", "install g++ or set CXX")
        return
    try:
        library('extern "C" int fuse_kernel() { return 0; }\n')
    except (Refused, OSError) as error:
        yield Finding("fail", "compiler", f"{tool[0]} does not build a kernel: {error}", "set CXX to a compiler with OpenMP")
    else:
        yield Finding("ok", "compiler", f"{tool[0]}, {tool[1]}")


def _gemm() -> Iterator[Finding]:
    from fuse.codegen.cpu.kernel import blas, native_bfloat16

    names = [name for name in ("sgemm", "dgemm", "bgemm") if getattr(blas(), name)]
    native = "; bfloat16 is multiplied natively" if native_bfloat16() else "; bfloat16 is multiplied in float32"
    missing = {"sgemm", "dgemm"} - set(names)
    yield Finding("warn" if missing else "ok", "gemm", f"torch exports {', '.join(names) or 'no matrix product'}{native}",
                  "large products on the CPU are slower without torch's own" if missing else "")


def _gpu() -> Iterator[Finding]:
    from fuse.codegen.triton import machine_here
    from fuse.reasons import Miss

    found = machine_here()
    if isinstance(found, Miss):
        yield Finding("ok", "gpu", f"none is used: {found.detail}")
    else:
        import triton

        yield Finding("ok", "gpu", f"{found.arch} with {found.units} multiprocessors, triton {triton.__version__}")


def _caches() -> Iterator[Finding]:
    from fuse.cli.cache import entries
    from fuse.codegen.build import cache_dir
    from fuse.reasons import size_text

    folder = cache_dir()
    if folder is None:
        yield Finding("warn", "cache", "kernels are not kept on disk: each process builds its own",
                      "FUSE_CACHE_DIR names their folder; TORCHINDUCTOR_FORCE_DISABLE_CACHES=1 switches it off")
        return
    found = list(entries(folder))
    yield Finding("ok", "cache", f"{len(found)} kernels, {size_text(sum(e.bytes for e in found))}, in {folder}")


# ---- a program ---------------------------------------------------------------------------------------------------

def examined(program: Program, options: dict[str, Any], dynamic: bool) -> Iterator[Finding]:
    """What keeps large values of the program from being streamed, and how to write it instead."""
    from fuse.cli.inspect import analysed

    yield from _split_heads(program)
    report = analysed(program, options, dynamic)
    for check in (_breaks, _escapes, _failures, _fused):
        yield from check(report)


def _split_heads(program: Program) -> Iterator[Finding]:
    """FSDP2 runs hooks around a module it shards: what follows it, a loss say, is in another graph."""
    from torch.distributed import is_available

    from fuse.cli.replace import modules_of

    if not is_available():
        return
    from torch.distributed.fsdp import FSDPModule

    for module in modules_of(program.function):
        for name, part in module.named_modules():
            out, features = getattr(part, "out_features", 0), getattr(part, "in_features", 1)
            if isinstance(part, FSDPModule) and out > 4 * features:
                yield Finding("fail", "head", f"{name or 'the head'} ({features} -> {out}) is sharded by FSDP2 on its own, so "
                              "that its loss is in another graph", "call fully_shard on a module that computes the loss as well")


def _breaks(report: Report) -> Iterator[Finding]:
    from fuse.report_text import indented

    for reason in report.graph_breaks:
        yield Finding("warn", "break", f"graph break: {indented(reason).splitlines()[0]}",
                      "a large value that is made before it and reduced behind it has to be stored")
    if not report.graph_breaks:
        yield Finding("ok", "break", f"{len(report.graphs)} graph{'s' * (len(report.graphs) != 1)}, no graph break")


def _escapes(report: Report) -> Iterator[Finding]:
    """A large value that leaves the graph: at a break it is lost, as a result it is stored at least once."""
    for miss in report.misses:
        if miss.code == "ESCAPES":
            split = " (at a graph break, or as a result)" if report.graph_breaks else ""
            yield Finding("fail", "escape", f"a large value leaves the graph{split}: {miss.detail} at {miss.where}",
                          miss.reason.hint)
    for miss in (note for region in report.regions for note in region.notes if note.code == "STORED"):
        yield Finding("warn", "escape", f"{miss.reason.cause} ({miss.detail}) at {miss.where}", miss.reason.hint)


def _failures(report: Report) -> Iterator[Finding]:
    from fuse.log import FAILURES

    for miss in (*report.misses, *(note for region in report.regions for note in region.notes)):
        if miss.code in FAILURES:
            yield Finding("fail", "kernels", str(miss))


def _fused(report: Report) -> Iterator[Finding]:
    from fuse.reasons import size_text

    saved, count = sum(r.bytes_saved for r in report.regions), len(report.regions)
    others = sorted({m.code for m in report.misses} - {"ESCAPES"})
    declined = f"; declined: {', '.join(others)} (fuse explain CODE)" if others else ""
    yield Finding("ok" if count else "warn", "regions", f"{count} fused, {size_text(saved)} are not stored{declined}",
                  "" if count else "fuse inspect shows what was looked at")
