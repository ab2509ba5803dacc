// What a kernel includes that leaves rows of a tile out: which ones, and products of the others.
#pragma once
#include "fuse_cpu.h"

// Which rows of an m x n matrix do not count as 0: those not all below their limit (step 0: one limit), nor all 0. nan counts.
template <class T>
SHARED int64_t significant(const Mat<T>& x, int64_t m, int64_t n, const T* limit, int64_t step, T* top, int64_t* which, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t first = 0; first < m; first += LANES) {
    const int64_t last = first + LANES < m ? first + LANES : m;
    T best[LANES];
    fill(best, T(0));
    if (x.t) {
      for (int64_t j = 0; j < n; ++j)
        for (int64_t i = first; i < last; ++i) best[i - first] = max_(abs_(x.p[j * x.ld + i]), best[i - first]);
    } else {
      for (int64_t i = first; i < last; ++i) {
        T lane[LANES];
        fill(lane, T(0));
        const T* from = x.p + i * x.ld;
        strips(int(n), [&](int c, int k) EACH { lane[k] = max_(abs_(from[c]), lane[k]); });
        best[i - first] = max_of(lane);
      }
    }
    for (int64_t i = first; i < last; ++i) top[i] = best[i - first];
  }
  int64_t kept = 0;
  for (int64_t i = 0; i < m; ++i)
    if (!(top[i] < limit[i * step] || top[i] == T(0))) which[kept++] = i;
  return kept;
}
// Those rows of a matrix with n columns, packed.
template <class T> SHARED Mat<T> rows_of(const Mat<T>& x, const int64_t* which, int64_t kept, int64_t n, T* copy, int threads) {
  const int64_t lines = x.t ? n : kept, width = x.t ? kept : n;
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t r = 0; r < lines; ++r) {
    const T* __restrict from = x.p + (x.t ? r : which[r]) * x.ld;
    T* __restrict to = copy + r * width;
    if (x.t) for (int64_t c = 0; c < width; ++c) to[c] = from[which[c]];
    else std::memcpy(to, from, width * sizeof(T));
  }
  return {copy, width, x.t};
}
// Row which[i] of c (m x n) += row i of a b, after c *= beta; beta is 0 or 1, `part` holds kept x n.
template <class T, class S>
SHARED void gemm_rows(const Blas& f, const int64_t* which, int64_t m, int64_t kept, int64_t n, int64_t k, Mat<S> a, Mat<S> b,
                      T beta, T* c, int64_t ldc, T* part, int threads) {
  if (beta == T(0)) for (int64_t i = 0; i < m; ++i) start(c + i * ldc, n, T(0));
  gemm(f, kept, n, k, a, b, T(0), part, n);
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t i = 0; i < kept; ++i) {
    T* __restrict to = c + which[i] * ldc;
    for (int64_t j = 0; j < n; ++j) to[j] += part[i * n + j];
  }
}
