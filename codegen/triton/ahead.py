"""Compiling ahead of time for a device that is not here: registers, spills and shared memory of every kernel.

The launcher runs on meta tensors with recorders in place of kernels, so what is compiled is what would be launched:
same specialisation (strides of 1, multiples of 16), same constants.
"""
from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from fuse.codegen import Schedule
from fuse.codegen.triton import text_of, whole
from fuse.codegen.triton.chain import REMEDIES, Chain
from fuse.codegen.triton.kernel import Sweep
from fuse.codegen.triton.launch import Machine
from fuse.codegen.triton.module import directory, load
from fuse.codegen.triton.schedule import relieved
from fuse.codegen.triton.spell import POINTERS
from fuse.ir.expr import reads_of
from fuse.ir.program import Region

SHARED_LIMIT = {"sm80": 163 << 10, "sm89": 99 << 10, "sm90": 227 << 10, "sm100": 227 << 10, "sm120": 99 << 10,
                "gfx942": 64 << 10}
UNITS = {"sm80": 108, "sm90": 132, "sm100": 148, "gfx942": 304}


@dataclass(frozen=True)
class Usage:
    """What one compiled kernel takes: registers per thread, spilled bytes per thread, shared bytes per program."""

    kernel: str
    arch: str
    registers: int
    spills: int
    shared: int
    assembly: Mapping[str, Any] = field(compare=False, repr=False, default_factory=dict)

    @property
    def fits(self) -> bool:
        return self.spills == 0 and self.shared <= SHARED_LIMIT[self.arch]

    def to_dict(self) -> dict[str, Any]:
        return {"kernel": self.kernel, "arch": self.arch, "registers": self.registers, "spills": self.spills,
                "shared": self.shared, "fits": self.fits}


def machine(arch: str) -> Machine:
    """A device that need not be here."""
    return Machine(arch, UNITS.get(arch, 100))


class Recorder:
    """Stands for a kernel: keeps the arguments of its launches."""

    def __init__(self) -> None:
        self.launches: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *args, **options: self.launches.append((args, options))


def launches(region: Region, schedule: Schedule, sizes: Mapping[str, int], arch: str) -> list[Launch]:
    """The first launch of every kernel of `region`, at contiguous inputs of the given sizes."""
    source, kernels = text_of(region, schedule)
    module = load(source, directory())
    recorders = [Recorder() for _ in kernels]
    recorded = [(p, k, r) for (p, k), r in zip(kernels, recorders, strict=True)]
    chain = Chain(whole(region, kernels), schedule, machine(arch), recorded)
    chain(meta_inputs(region, sizes), sizes)
    return [launched(getattr(module, k.name), k, *r.launches[0], arch) for (_, k), r in zip(kernels, recorders, strict=True)]


def settled(region: Region, schedule: Schedule, sizes: Mapping[str, int], arch: str) -> tuple[Schedule, list[Launch]]:
    """What the launcher ends with: a kernel that does not fit is launched otherwise (see `relieved`), a few times."""
    for _ in range(REMEDIES + 1):
        found = launches(region, schedule, sizes, arch)
        other = schedule
        for k, launch in enumerate(found):
            use = launch.usage
            other = other if use.fits else relieved(other, k, use.spills > 0, arch) or other
        if other == schedule:
            break
        schedule = other
    return schedule, found


def meta_inputs(region: Region, sizes: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """Contiguous inputs without data; complex ones as the pairs of numbers that they are in memory."""
    buffers = {r["buffer"].name: r["buffer"] for r in reads_of(region.bodies)}
    found = {name: torch.empty([s.evaluate(sizes) for s in b.shape], dtype=getattr(torch, b.dtype), device="meta")
             for name, b in buffers.items()}
    return {name: torch.view_as_real(x) if x.is_complex() else x for name, x in found.items()}


@dataclass(frozen=True)
class Launch:
    """One kernel as the launcher specialises it to its arguments; equal `key`s compile to equal code."""

    function: Any
    text: str
    signature: dict[str, str]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], list[Any]]
    options: dict[str, int]
    arch: str

    @cached_property
    def key(self) -> str:
        specialised = (self.signature, self.constants, self.attributes, self.options, self.arch)
        return "\0".join((self.text.partition("(")[2], *map(repr, specialised)))

    @property
    def usage(self) -> Usage:
        if self.key not in _compiled:
            _compiled[self.key] = self.compiled()
        return _compiled[self.key]

    def compiled(self) -> Usage:
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        cuda = self.arch.startswith("sm")
        target = GPUTarget("cuda", int(self.arch[2:]), 32) if cuda else GPUTarget("hip", self.arch, 64)
        source = ASTSource(self.function, self.signature, self.constants, self.attributes)
        kernel = triton.compile(source, target=target, options=self.options)
        registers, spills = measured(kernel, self.arch)
        return Usage(self.function.__name__, self.arch, registers, spills, kernel.metadata.shared, kernel.asm)


_compiled: dict[str, Usage] = {}


def launched(function: Any, kernel: Sweep, args: tuple[Any, ...], options: dict[str, Any], arch: str) -> Launch:
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], list[Any]] = {}
    for k, (name, value) in enumerate(zip(kernel.arguments, args, strict=True)):
        signature[name], divisible = type_of(value)
        if signature[name] == "constexpr":
            constants[(k,)] = value
        elif divisible:
            attributes[(k,)] = [["tt.divisibility", 16]]
    how: dict[str, int] = {name: options.pop(name) for name in ("num_warps", "num_stages", "maxnreg") if name in options}
    for k, (name, value) in enumerate(options.items(), len(args)):
        signature[name], constants[(k,)] = "constexpr", value
    return Launch(function, kernel.text, signature, constants, attributes, how, arch)


def type_of(value: Any) -> tuple[str, bool]:
    """(Triton's signature entry, is it a multiple of 16) as its launcher specialises it."""
    if isinstance(value, torch.Tensor):
        return POINTERS[str(value.dtype).removeprefix("torch.")], True
    if value == 1:
        return "constexpr", False
    return "i32" if -2 ** 31 <= value < 2 ** 31 else "i64", value % 16 == 0


def measured(kernel: Any, arch: str) -> tuple[int, int]:
    """(registers, spilled bytes) per thread, from the assembler's own records."""
    if not arch.startswith("sm"):
        text = kernel.asm["amdgcn"]
        found = {key: int(n) for key, n in re.findall(r"\.(vgpr_count|vgpr_spill_count):\s+(\d+)", text)}
        return found["vgpr_count"], 4 * found["vgpr_spill_count"]
    row = re.search(r"REG:(\d+) STACK:(\d+)", dumped("cuobjdump", "--dump-resource-usage", kernel.asm["cubin"]))
    assert row is not None
    return int(row[1]), int(row[2])


def dumped(name: str, option: str, cubin: bytes) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        return subprocess.run([str(tool(name)), option, str(path)], capture_output=True, text=True, check=True).stdout


def tool(name: str) -> Path:
    import triton.backends.nvidia
    return Path(triton.backends.nvidia.__file__).parent / "bin" / name


def transposed_dots(ir: str) -> list[str]:
    """Lines of Triton IR (ttir or ttgir) that transpose the result of a dot, or what was computed from one element by
    element: what the law of `emit` forbids."""
    tainted, before, ir = set[str](), -1, told_apart(ir)
    while before != len(tainted):      # what a loop yields is known after its body, what its arguments are, before
        before = len(tainted)
        found = _scan(ir, tainted)
    return found


def told_apart(ir: str) -> str:
    """The text with a name of its own for every value: where one scope has ended the next may use its names again."""
    count: dict[str, int] = {}

    def name(match: re.Match[str]) -> str:
        if re.match(r"(:\d+)? = |: ", match.string[match.end():]):     # here it is defined
            count[match[0]] = count.get(match[0], -1) + 1
        return f"{match[0]}__{count.get(match[0], 0)}"
    return "\n".join(re.sub(r"%\w+", name, line) for line in ir.splitlines())


def _scan(ir: str, tainted: set[str]) -> list[str]:
    """One pass over the text, which adds to `tainted`."""
    found, loops = [], list[tuple[list[str], list[str]]]()
    for line in ir.splitlines():
        match = re.match(r"\s*(?:(%\w+)(?::(\d+))? = )?(.*)", line)
        assert match is not None
        name, count, rest = match.groups()
        used = tainted.intersection(re.findall(r"%\w+(?:#\d+)?", rest))
        if re.match(r"scf\.(for|while|if)", rest):
            bound = re.findall(r"(%\w+) = (%\w+(?:#\d+)?)", rest.partition("iter_args(")[2])
            tainted.update(argument for argument, first in bound if first in tainted)
            results = [f"{name}#{k}" for k in range(int(count))] if count else [str(name)]
            loops.append((results, [argument for argument, _ in bound]))
        elif rest.startswith("scf.yield") and loops:
            for k, value in enumerate(re.findall(r"%\w+(?:#\d+)?", rest.partition(":")[0])):
                if value in tainted:
                    tainted.update(names[k] for names in loops[-1] if k < len(names))
        elif loops and re.match(r"\}(?!\)| else| do)", rest):
            loops.pop()
        elif used and re.search(r"tt\.trans|memdesc_trans", rest):
            found.append(line.strip())
        elif name and (re.search(r"tt\.dot\b|warp_group_dot\b", rest) or (used and "tt.reduce" not in rest)):
            tainted.add(name)
    return found
