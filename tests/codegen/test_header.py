"""What generated CPU kernels include (fuse_cpu.h, fuse_gemm.h), function by function, against float64."""
from __future__ import annotations

import ctypes

import pytest
import torch
from torch import Tensor

from fuse.codegen.build import library
from fuse.codegen.cpu.kernel import blas

INF, NAN = float("inf"), float("nan")
TINY, LEAST, LARGE = 2.0 ** -126, 2.0 ** -149, 3.4e38       # smallest normal and subnormal float32
SPECIAL = torch.tensor([0.0, -0.0, 1.0, -1.0, 3.0, TINY, -TINY, TINY / 8, -TINY / 3, LEAST, 1e-20, 1e20, LARGE, -LARGE,
                        INF, -INF, NAN])

SOURCE = """
#include "fuse_cpu.h"
#define MAP(name) extern "C" void all_##name(const float* x, float* y, int n) { \\
  strips(n, [&](int c, int) EACH { y[c] = name##_(x[c]); }); }
MAP(exp) MAP(erf)
extern "C" void all_over(const float* x, float d, float* y, int n) {
  const auto i = inverse(d);
  strips(n, [&](int c, int) EACH { y[c] = over(x[c], i); });
}
extern "C" void turned_tile(const float* p, int64_t ld, int nr, int nc, float* copy, float* out) {
  const Tile<float> t = upright<float>(p, {0, 1, nullptr}, {0, ld, nullptr}, nr, nc, copy, 2);
  for (int r = 0; r < nr; ++r) for (int c = 0; c < nc; ++c) out[r * nc + c] = t.p[t.row(r) + t.col(c)];
}
extern "C" void product(int m, int n, int k, const float* a, int ta, const float* b, int tb, float beta, float* c) {
  narrow<float>(m, n, k, Mat<float>{a, ta ? m : k, bool(ta)}, Mat<float>{b, tb ? k : n, bool(tb)}, beta, c, n);
}
extern "C" int broad() { return BROAD<float>; }
extern "C" void any_product(const Blas& f, int m, int n, int k, const float* a, const float* b, float* c) {
  gemm(f, m, n, k, Mat<float>{a, k, false}, Mat<float>{b, n, false}, 0.f, c, n);
}
"""


@pytest.fixture(scope="module")
def header() -> ctypes.CDLL:
    return library(SOURCE)


def at(x: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(x.data_ptr())


def mapped(header: ctypes.CDLL, name: str, x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    getattr(header, f"all_{name}")(at(x), at(y), x.numel())
    return y


def divided(header: ctypes.CDLL, x: Tensor, d: float) -> Tensor:
    y = torch.empty_like(x)
    header.all_over(at(x), ctypes.c_float(d), at(y), x.numel())
    return y


def ulps(found: Tensor, wanted: Tensor) -> float:
    """The largest error in units of the last place of float32; subnormal results have those of the smallest normal."""
    size = wanted.float().abs().clamp(TINY, LARGE)
    return float(((found.double() - wanted).abs() / (torch.nextafter(size, torch.tensor(INF)).double() - size.double())).max())


def test_a_quotient_errs_by_at_most_one_ulp_more_than_a_division(header: ctypes.CDLL) -> None:
    """x * (1 / d) rounds twice, a division once: 1.5 ulp against 0.5, at every size of d and x that has normal results."""
    generator = torch.Generator().manual_seed(0)
    for exponent in range(-126, 128):
        d = float((torch.rand((), generator=generator) + 1) * 2.0 ** exponent)
        ratio = torch.empty(259).uniform_(-3, 3, generator=generator)
        x = (ratio.double() * d).float()
        x = x[x.isfinite() & (x.abs() >= TINY)]
        assert ulps(divided(header, x, d), x.double() / torch.tensor(d).float().double()) <= 1.5


@pytest.mark.parametrize("d", SPECIAL.tolist())
def test_special_divisors_and_operands(header: ctypes.CDLL, d: float) -> None:
    """Zero, subnormal, huge, infinite and nan on either side: eager's zeros, infinities, nans, signs and values."""
    x = torch.cat([SPECIAL, torch.tensor([d, -d])])
    found, wanted = divided(header, x, d), x / torch.tensor(d)
    assert torch.equal(found.isnan(), wanted.isnan()) and torch.equal(found.isinf(), wanted.isinf())
    finite = wanted.isfinite()
    assert torch.equal(found[finite].signbit(), wanted[finite].signbit())
    exact = x[finite].double() / torch.tensor(d).double()
    assert not finite.any() or ulps(found[finite], exact) <= 1.5


def test_exponentials(header: ctypes.CDLL) -> None:
    """Within one ulp down to 2^-125.5; below, 0 for what eager gives as (nearly) subnormal."""
    x = torch.linspace(-86.9, 88.72, 200_003)
    assert ulps(mapped(header, "exp", x), x.double().exp()) <= 1.0
    low = torch.cat([torch.linspace(-110, -86.9, 1001), torch.tensor([-1e30, -LARGE, -INF])])
    assert float((mapped(header, "exp", low).double() - low.double().exp()).abs().max()) <= 1.5 * TINY
    found = mapped(header, "exp", torch.tensor([0.0, -0.0, INF, NAN, LEAST, 88.8, 1e30]))
    assert found[:2].tolist() == [1, 1] and found[2] > LARGE * 0.99 and found[3].isnan() and found[4] == 1


def test_error_functions(header: ctypes.CDLL) -> None:
    x = torch.cat([torch.linspace(-6, 6, 200_003), torch.logspace(-37.9, 1, 20_001)])
    assert ulps(mapped(header, "erf", x), torch.erf(x.double())) <= 1.0
    found, wanted = mapped(header, "erf", SPECIAL), torch.erf(SPECIAL)
    assert torch.equal(found.isnan(), wanted.isnan()) and torch.equal(found.signbit(), wanted.signbit())
    torch.testing.assert_close(found, wanted, equal_nan=True, rtol=2e-7, atol=0)


@pytest.mark.parametrize("rows, cols", [(1, 1), (3, 17), (16, 16), (33, 15), (5, 1), (1, 40), (70, 31)])
def test_a_tile_is_turned(header: ctypes.CDLL, rows: int, cols: int) -> None:
    memory = torch.randn(cols, rows + 3)      # columns of the tile, each longer than its rows
    copy, out = torch.full((rows * (cols + 16) + 16,), NAN), torch.empty(rows, cols)
    header.turned_tile(at(memory), ctypes.c_int64(rows + 3), rows, cols, at(copy), at(out))
    assert torch.equal(out, memory[:, :rows].T)


@pytest.mark.parametrize("ta", [0, 1])
@pytest.mark.parametrize("tb", [0, 1])
@pytest.mark.parametrize("m, k", [(1, 1), (5, 3), (6, 128), (13, 129), (64, 260), (23, 64)])
def test_products_of_few_columns(header: ctypes.CDLL, ta: int, tb: int, m: int, k: int) -> None:
    """Every remainder of rows and of the contraction; what lies beyond is not touched. inf and nan stay where they belong."""
    for panels in (1, 2):
        n = panels * header.broad()
        a, b, c = torch.randn(m, k), torch.randn(k, n), torch.randn(m + 1, n)
        a[0, 0], b[0, n - 1] = INF, NAN
        for beta in (0.0, 1.0, 0.5):
            out = c.clone() if beta else torch.cat([torch.full((m, n), NAN), c[m:]])
            left, right = (a.T if ta else a).contiguous(), (b.T if tb else b).contiguous()
            header.product(m, n, k, at(left), ta, at(right), tb, ctypes.c_float(beta), at(out))
            wanted = a.double() @ b.double() + (beta * c[:m].double() if beta else 0)
            assert torch.equal(out[m:], c[m:])
            bound = 1e-6 * (k ** 0.5 + 1)
            torch.testing.assert_close(out[:m].double(), wanted, equal_nan=True, rtol=1e-5, atol=4 * bound)


@pytest.mark.parametrize("n", [1, 15, 16, 63, 64, 65, 128, 320])
def test_a_product_is_the_same_whoever_computes_it(header: ctypes.CDLL, n: int) -> None:
    """On one thread narrow products do not go to BLAS."""
    a, b = torch.randn(37, 70), torch.randn(70, n)
    threads = torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        out = torch.full((37, n), NAN)
        header.any_product(ctypes.byref(blas()), 37, n, 70, at(a), at(b), at(out))
        torch.testing.assert_close(out.double(), a.double() @ b.double(), rtol=1e-5, atol=1e-5)
    torch.set_num_threads(threads)
