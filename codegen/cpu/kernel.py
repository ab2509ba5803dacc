"""A built kernel as a Python callable: tensors in, tensors out."""
from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from fuse.codegen import Schedule
from fuse.codegen.build import cpu_features
from fuse.codegen.cpu.arguments import Launch, arguments
from fuse.codegen.launch import shapes_of
from fuse.codegen.tile import Affine, State, TileProgram
from fuse.ir.size import product

NARROW = 2048           # columns
SPARE = 32 << 20        # bytes
WAKE = 1 << 14          # elements of all tiles together: below, one thread does them all


class Blas(ctypes.Structure):
    """The GEMMs of libtorch, as fuse_cpu.h declares them; null where libtorch does not export one."""

    _fields_ = (("sgemm", ctypes.c_void_p), ("dgemm", ctypes.c_void_p), ("bgemm", ctypes.c_void_p))


@lru_cache(maxsize=1)
def blas() -> Blas:
    found = Blas()
    try:
        lib = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    except OSError:
        return found
    for field, symbol in (("sgemm", "sgemm_"), ("dgemm", "dgemm_"), ("bgemm", "cblas_gemm_bf16bf16f32")):
        if hasattr(lib, symbol):
            setattr(found, field, ctypes.cast(getattr(lib, symbol), ctypes.c_void_p))
    return found


@lru_cache(maxsize=1)
def zeros() -> torch.Tensor:
    """What reads of an empty tensor see."""
    return torch.zeros(2, dtype=torch.int64)


def native_bfloat16() -> bool:
    """Whether libtorch exports a bfloat16 GEMM and this CPU has the instructions that make it faster than sgemm."""
    return bool(blas().bgemm) and any(f in cpu_features().split() for f in ("amx_bf16", "avx512_bf16"))


@dataclass(frozen=True)
class Prepared:
    """A launch but for its pointers: the same for tensors of the same strides under the same sizes."""

    key: tuple[Any, ...]
    arg: Any                                  # int64_t[]
    shapes: tuple[tuple[tuple[int, ...], torch.dtype], ...]
    outer: int
    inner: int
    bytes: int


class CpuKernel:
    """Calls `fuse_kernel`. Raises RuntimeError if a tensor is not what the region was compiled for."""

    def __init__(self, program: TileProgram, schedule: Schedule, library: ctypes.CDLL, source: str):
        self.program, self.schedule, self.source = program, schedule, source
        self.arguments = arguments(program)
        self.expected = tuple((slot.source, getattr(torch, slot.dtype)) for slot in program.inputs)
        self.symbols = tuple(sorted({s for a in program.axes for s in a.extent.symbols}
                                    | {s for p in program.params for s in p.symbols}
                                    | {s for n in program.loads for i in n.index if isinstance(i, Affine)
                                       for x in (i.offset, *(c for _, c in i.terms)) for s in x.symbols}))
        self.run, self.workspace = library.fuse_kernel, library.fuse_workspace
        self.run.restype, self.workspace.restype = None, ctypes.c_int64
        self.run.argtypes = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int
        self.results = tuple(slot.source for slot in program.outputs)
        self.last: Prepared | None = None

    def __call__(self, env: Mapping[str, torch.Tensor], sizes: Mapping[str, int]) -> dict[str, torch.Tensor]:
        inputs = [env[source] for source, _ in self.expected]
        for x, (source, dtype) in zip(inputs, self.expected, strict=True):
            if x.dtype != dtype or not x.is_cpu:
                raise RuntimeError(f"{source} is {x.dtype} on {x.device}, the kernel is for {dtype} on the CPU")
        ready = self.prepare(inputs, sizes)
        outputs = [torch.empty(shape, dtype=dtype) for shape, dtype in ready.shapes]
        pointers = [x.data_ptr() or zeros().data_ptr() for x in inputs] + [y.data_ptr() for y in outputs]
        work = torch.empty(ready.bytes + 64, dtype=torch.uint8)
        aligned = (work.data_ptr() + 63) // 64 * 64
        self.run((ctypes.c_void_p * len(pointers))(*pointers), ready.arg, ctypes.addressof(blas()), aligned,
                 ready.outer, ready.inner)
        return dict(zip(self.results, outputs, strict=True))

    def prepare(self, inputs: Sequence[torch.Tensor], sizes: Mapping[str, int]) -> Prepared:
        """Arguments and shapes, kept from the last launch if nothing that shapes them has changed."""
        strides = tuple(x.stride() if x.numel() else (0,) * x.dim() for x in inputs)
        key = (torch.get_num_threads(), strides, tuple(sizes[s] for s in self.symbols))
        if self.last is None or self.last.key != key:
            shapes = shapes_of(self.program, sizes)
            outer, inner = self.threads(sizes)
            by_name = dict(zip((s.name for s in self.program.inputs), strides, strict=True))
            by_name |= {slot.name: contiguous(shape) for slot, (shape, _) in zip(self.program.outputs, shapes, strict=True)}
            arg, work = self.fitting(by_name, sizes, outer)
            self.last = Prepared(key, arg, shapes, outer, inner, work)
        return self.last

    def fitting(self, strides: Mapping[str, Sequence[int]], sizes: Mapping[str, int], outer: int) -> tuple[Any, int]:
        """(arguments, bytes of workspace) of the widest tile whose operands need few packed copies.

        Columns are narrowed until the workspace is at most `SPARE` above that of narrow tiles: how much is copied depends
        on the strides and types of the operands, which only a launch knows.
        """
        wide = self.schedule.extent("col")
        arg, work = self.tiled(strides, sizes, outer, wide)
        least = self.tiled(strides, sizes, outer, NARROW)[1] if wide > NARROW else work
        while wide > NARROW and work > least + SPARE:
            wide = max(wide // 2, NARROW)
            arg, work = self.tiled(strides, sizes, outer, wide)
        return arg, work

    def tiled(self, strides: Mapping[str, Sequence[int]], sizes: Mapping[str, int], outer: int, wide: int) -> tuple[Any, int]:
        rows, cols = (self.program.extent(d).evaluate(sizes) for d in ("row", "col"))
        columns = self.program.region.tile or even(cols, wide)
        tile = even(rows, self.schedule.extent("row")), columns, int(self.schedule.parallel == "grid")
        launch = Launch(strides, sizes, tile)
        values = [v for _, group in self.arguments for v in group(launch)]
        arg = (ctypes.c_int64 * len(values))(*values)
        return arg, self.workspace(arg, ctypes.c_int(outer))

    def threads(self, sizes: Mapping[str, int]) -> tuple[int, int]:
        """(outer, inner) threads: one where waking the others takes longer than the work."""
        points = product(self.program.axis(a).extent for a in self.program.batch).evaluate(sizes)
        elements = points * self.program.extent("row").evaluate(sizes) * self.program.extent("col").evaluate(sizes)
        threads, mode = torch.get_num_threads() if elements >= WAKE else 1, self.schedule.parallel
        if mode not in modes(self.program):
            raise RuntimeError(f"tiles of this region cannot run in parallel over the {mode}: their sums overlap")
        return (1, threads) if mode == "inside" else (threads, 1)


def contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of a contiguous tensor."""
    out = [1]
    for n in reversed(shape[1:]):
        out.append(out[-1] * n)
    return tuple(reversed(out))[:len(shape)] if shape else ()


def even(n: int, most: int) -> int:
    """Extent of equal tiles of at most `most` positions (0: no limit) that cover n."""
    return max(1, -(-n // -(-n // most))) if 0 < most < n else max(n, 1)


def accumulators(program: TileProgram) -> list[State]:
    """The states that several tiles or points add to. A walk has one of each for every tile of lanes."""
    return [s for s in program.states if s.scope == "grid" and not program.scans]


def independent(program: TileProgram) -> tuple[str, ...]:
    """The batch axes at whose points nothing accumulates: threads may share these out; a thread visits the others in order."""
    return tuple(a for a in program.batch if all(a in s.keeps for s in accumulators(program)))


def modes(program: TileProgram) -> tuple[str, ...]:
    """Where threads may work: "grid" (row tiles), "batch" (batch points) or "inside" a tile; a state that accumulates over
    what is shared out would be written by two threads at once."""
    rows = all("row" in s.dims for s in accumulators(program))
    points = not program.batch or bool(independent(program))
    return (*(["grid"] if rows else []), *(["batch"] if points else []), "inside")
