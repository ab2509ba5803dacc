"""A built kernel as a Python callable: tensors in, tensors out."""
from __future__ import annotations

import ctypes
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import torch

from fuse.codegen import Schedule
from fuse.codegen.build import cpu_features
from fuse.codegen.cpu.arguments import Launch, arguments
from fuse.codegen.launch import allocate
from fuse.codegen.tile import TileProgram


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


def native_bfloat16() -> bool:
    """Whether libtorch exports a bfloat16 GEMM and this CPU has the instructions that make it faster than sgemm."""
    return bool(blas().bgemm) and any(f in cpu_features().split() for f in ("amx_bf16", "avx512_bf16"))


class CpuKernel:
    """Calls `fuse_kernel`. Raises RuntimeError if a tensor is not what the region was compiled for."""

    def __init__(self, program: TileProgram, schedule: Schedule, library: ctypes.CDLL, source: str):
        self.program, self.schedule, self.source = program, schedule, source
        self.arguments = arguments(program)
        self.run, self.workspace = library.fuse_kernel, library.fuse_workspace
        self.run.restype, self.workspace.restype = None, ctypes.c_int64

    def __call__(self, env: Mapping[str, torch.Tensor], sizes: Mapping[str, int]) -> dict[str, torch.Tensor]:
        program = self.program
        tensors = {slot.name: env[slot.source] for slot in program.inputs}
        for slot in program.inputs:
            x = tensors[slot.name]
            if x.device.type != "cpu" or x.dtype != getattr(torch, slot.dtype):
                raise RuntimeError(f"{slot.source} is {x.dtype} on {x.device}, the kernel is for {slot.dtype} on the CPU")
        outputs = allocate(program, sizes, torch.device("cpu"))
        tile, outer, inner = self.parallelism(sizes)
        empty = [name for name, x in tensors.items() if x.numel() == 0]       # reads of it yield `zero`
        tensors |= outputs
        strides = {name: (0,) * x.dim() if name in empty else x.stride() for name, x in tensors.items()}
        launch = Launch(strides, sizes, tile)
        values = [v for _, group in self.arguments for v in group(launch)]
        arg = (ctypes.c_int64 * len(values))(*values)
        zero = torch.zeros(2, dtype=torch.int64)
        pointers = [(zero if s.name in empty else tensors[s.name]).data_ptr() for s in (*program.inputs, *program.outputs)]
        buf = (ctypes.c_void_p * len(pointers))(*pointers)
        work = torch.empty(self.workspace(arg, ctypes.c_int(outer)) + 64, dtype=torch.uint8)
        start = (work.data_ptr() + 63) // 64 * 64
        self.run(buf, arg, ctypes.byref(blas()), ctypes.c_void_p(start), ctypes.c_int(outer), ctypes.c_int(inner))
        return {slot.source: outputs[slot.name] for slot in program.outputs}

    def parallelism(self, sizes: Mapping[str, int]) -> tuple[tuple[int, int, int], int, int]:
        """((R, C, spread), outer threads, inner threads)."""
        rows, cols = (self.program.extent(d).evaluate(sizes) for d in ("row", "col"))
        row, col = (even(n, self.schedule.extent(d)) for d, n in (("row", rows), ("col", cols)))
        threads, mode = torch.get_num_threads(), self.schedule.parallel
        if mode not in modes(self.program):
            raise RuntimeError(f"tiles of this region cannot run in parallel over the {mode}: their sums overlap")
        outer, inner = (1, threads) if mode == "inside" else (threads, 1)
        return (row, col, int(mode == "grid")), outer, inner


def even(n: int, most: int) -> int:
    """Extent of equal tiles of at most `most` positions (0: no limit) that cover n."""
    return max(1, -(-n // -(-n // most))) if 0 < most < n else max(n, 1)


def modes(program: TileProgram) -> tuple[str, ...]:
    """Where threads may work: "grid" (row tiles), "batch" (batch points) or "inside" a tile; a state that accumulates over
    what is shared out would be written by two threads at once."""
    shared = [s for s in program.states if s.scope == "grid"]
    if any(len(s.keeps) < len(program.batch) for s in shared):
        return ("inside",)
    return ("batch", "inside") if shared else ("grid", "batch", "inside")
