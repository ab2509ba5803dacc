// What a kernel includes that leaves rows of a tile out: which ones, and products of the others.
//
// A tile is judged strip by strip: in a wide one every row has an entry that counts. A strip whose `kept` is m has all rows.
#pragma once
#include "fuse_cpu.h"

constexpr int STRIP = 512;              // columns: fewer leave out more, and make smaller products
constexpr int TOPS = 256;
constexpr int64_t FEW = 1 << 18;        // elements that one thread copies before others have woken up
INLINE int64_t strips_of(int64_t n) { return (n + STRIP - 1) / STRIP; }

// The matrix that begins at row i and column j.
template <class T> INLINE Mat<T> from(Mat<T> a, int64_t i, int64_t j) {
  return {a.p + (a.t ? j * a.ld + i : i * a.ld + j), a.ld, a.t};
}
// Magnitudes that compare as what they are made from: those of bfloat16 are integers, of which a vector holds more.
template <class T> struct Magnitude {
  using type = T;
  static INLINE type of(T x) { return abs_(x); }
  static INLINE T value(type m) { return m; }
};
template <> struct Magnitude<bf16> {
  using type = uint16_t;
  static INLINE type of(bf16 x) { return x.raw & 0x7fff; }
  static INLINE float value(type m) { return float(bits<bf16>(m)); }
};
// The largest magnitudes of rows first .. last - 1 (TOPS at most, so that lines of a turned matrix are read in runs); nan
// is the largest.
template <class T, class M> INLINE void tops(const Mat<T>& x, int64_t first, int64_t last, int64_t n, M* top) {
  if (x.t) {
    start(top, last - first, M(0));
    for (int64_t j = 0; j < n; ++j) {
      const T* line = x.p + j * x.ld + first;
      strips(int(last - first), [&](int c, int) EACH { top[c] = max_(Magnitude<T>::of(line[c]), top[c]); });
    }
    return;
  }
  for (int64_t i = first; i < last; ++i) {
    M lane[LANES];
    fill(lane, M(0));
    const T* row = x.p + i * x.ld;
    strips(int(n), [&](int c, int k) EACH { lane[k] = max_(Magnitude<T>::of(row[c]), lane[k]); });
    top[i - first] = max_of(lane);
  }
}
// which[s * m ...], kept[s]: the rows of strip s of an m x n matrix that do not count as 0, being neither all below their
// limit (step 0: one for all rows) nor all 0. Whether some strip lacks so many rows that packing the others is worth it.
template <class T, class S>
SHARED bool significant(const Mat<T>& x, int64_t m, int64_t n, const S* limit, int64_t step, int64_t* which, int64_t* kept,
                        int threads) {
  bool worth = false;
#pragma omp parallel for num_threads(threads) reduction(|| : worth) if (threads > 1)
  for (int64_t s = 0; s < strips_of(n); ++s) {
    const Mat<T> strip = from(x, 0, s * STRIP);
    const int64_t wide = n - s * STRIP < STRIP ? n - s * STRIP : STRIP;
    int64_t count = 0;
    for (int64_t first = 0; first < m; first += TOPS) {
      const int64_t last = first + TOPS < m ? first + TOPS : m;
      typename Magnitude<T>::type top[TOPS];
      tops(strip, first, last, wide, top);
      for (int64_t i = first; i < last; ++i)
        if (!(Magnitude<T>::value(top[i - first]) < limit[i * step] || top[i - first] == 0)) which[s * m + count++] = i;
    }
    kept[s] = count > m * 3 / 4 ? m : count;
    worth = worth || kept[s] < m;
  }
  return worth;
}
// Those rows of a matrix with n columns, packed.
template <class T>
SHARED Mat<T> rows_of(const Mat<T>& x, const int64_t* which, int64_t kept, int64_t m, int64_t n, T* copy, int threads) {
  if (kept == m) return x;
  const int64_t lines = x.t ? n : kept, width = x.t ? kept : n;
#pragma omp parallel for num_threads(threads) if (threads > 1 && kept * n > FEW)
  for (int64_t r = 0; r < lines; ++r) {
    const T* __restrict row = x.p + (x.t ? r : which[r]) * x.ld;
    T* __restrict to = copy + r * width;
    if (x.t) for (int64_t c = 0; c < width; ++c) to[c] = row[which[c]];
    else std::memcpy(to, row, width * sizeof(T));
  }
  return {copy, width, x.t};
}
// Row which[i] of c (m x n) += row i of a b, after c *= beta, which is 0 or 1; `part` holds kept x n.
template <class T, class S>
SHARED void gemm_rows(const Blas& f, const int64_t* which, int64_t kept, int64_t m, int64_t n, int64_t k, Mat<S> a, Mat<S> b,
                      T beta, T* c, int64_t ldc, T* part, int threads) {
  if (kept == m) return gemm(f, m, n, k, a, b, beta, c, ldc);
  if (beta == T(0)) for (int64_t i = 0; i < m; ++i) start(c + i * ldc, n, T(0));
  gemm(f, kept, n, k, a, b, T(0), part, n);
#pragma omp parallel for num_threads(threads) if (threads > 1 && kept * n > FEW)
  for (int64_t i = 0; i < kept; ++i) {
    T* __restrict to = c + which[i] * ldc;
    for (int64_t j = 0; j < n; ++j) to[j] += part[i * n + j];
  }
}
