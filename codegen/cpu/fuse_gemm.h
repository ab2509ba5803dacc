// Products of matrices: BLAS as torch carries it, and what is faster without it. Included by fuse_cpu.h.
#pragma once

// BLAS as libtorch exports it (Fortran: column-major, 32-bit integers).
using sgemm_t = void (*)(const char*, const char*, const int*, const int*, const int*, const float*, const float*, const int*,
                         const float*, const int*, const float*, float*, const int*);
using dgemm_t = void (*)(const char*, const char*, const int*, const int*, const int*, const double*, const double*,
                         const int*, const double*, const int*, const double*, double*, const int*);
using bgemm_t = void (*)(int, int, int, int, int, int, float, const uint16_t*, int, const uint16_t*, int, float, float*, int);
struct Blas {
  sgemm_t sgemm;
  dgemm_t dgemm;
  bgemm_t bgemm;      // cblas_gemm_bf16bf16f32
};
template <class T> INLINE int leading(const Mat<T>& a, int64_t rows, int64_t cols) {
  int64_t least = a.t ? rows : cols;
  return int(a.ld > least ? a.ld : least > 1 ? least : 1);
}
// The product where libtorch exports no GEMM.
template <class S, class T> SHARED void plain(int64_t m, int64_t n, int64_t k, Mat<S> a, Mat<S> b, T beta, T* c, int64_t ldc) {
  for (int64_t i = 0; i < m; ++i) {
    T* __restrict to = c + i * ldc;
    for (int64_t j = 0; j < n; ++j) to[j] = beta == T(0) ? T(0) : beta * to[j];
    for (int64_t l = 0; l < k; ++l) {
      const T x = a.p[a.t ? l * a.ld + i : i * a.ld + l];
      if (b.t) for (int64_t j = 0; j < n; ++j) to[j] += x * b.p[j * b.ld + l];
      else for (int64_t j = 0; j < n; ++j) to[j] += x * b.p[l * b.ld + j];
    }
  }
}
// ---- products of few columns ---------------------------------------------------------------------------------------
// BLAS packs both operands for every call. Here a block of HIGH rows and BROAD columns of the result stays in registers
// while the contraction runs, and what is multiplied is read where it lies.
#if defined(__AVX512F__)
constexpr int VECTOR = 64, ACROSS = 4, HIGH = 6;      // bytes; vectors and rows of a block: 24 of 32 registers
#elif defined(__AVX__)
constexpr int VECTOR = 32, ACROSS = 2, HIGH = 6;      // 12 of 16
#elif defined(__aarch64__)
constexpr int VECTOR = 16, ACROSS = 4, HIGH = 6;      // 24 of 32
#else
constexpr int VECTOR = 16, ACROSS = 2, HIGH = 4;      // 8 of 16
#endif
constexpr int DEEP = 128;                             // of the contraction at a time: a panel of b stays in the nearest cache
constexpr int PANELS = 4;                             // of columns: for more of them BLAS is as fast

template <class T> struct Vector { typedef T type __attribute__((vector_size(VECTOR), aligned(sizeof(T)), may_alias)); };
template <class T> constexpr int BROAD = ACROSS * VECTOR / int(sizeof(T));

// c[H, BROAD] = a[H, k] b[k, BROAD] + beta c, where element (i, l) of a lies at a[i * di + l * dl].
template <int H, class T>
INLINE void block(int64_t k, const T* a, int64_t di, int64_t dl, const T* b, T beta, T* c, int64_t ldc) {
  using V = typename Vector<T>::type;
  constexpr int W = VECTOR / int(sizeof(T));
  V sum[H][ACROSS];
#pragma GCC unroll 8
  for (int i = 0; i < H; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < ACROSS; ++v) sum[i][v] = V{};
  for (int64_t l = 0; l < k; ++l, a += dl, b += BROAD<T>) {
    V line[ACROSS];
#pragma GCC unroll 4
    for (int v = 0; v < ACROSS; ++v) line[v] = *reinterpret_cast<const V*>(b + v * W);
#pragma GCC unroll 8
    for (int i = 0; i < H; ++i) {
      const T x = a[i * di];
#pragma GCC unroll 4
      for (int v = 0; v < ACROSS; ++v) sum[i][v] += x * line[v];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < H; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < ACROSS; ++v) {
      V* const to = reinterpret_cast<V*>(c + i * ldc + v * W);
      *to = beta == T(0) ? sum[i][v] : sum[i][v] + beta * *to;
    }
}
// Asks for H rows of k elements that a block to come will read: they may still be in memory.
template <int H, class T> INLINE void soon(int64_t k, const T* a, int64_t di) {
  for (int i = 0; i < H; ++i)
    for (int64_t l = 0; l < k; l += 64 / int(sizeof(T))) __builtin_prefetch(a + i * di + l);
}
template <class T>
SHARED void narrow(int64_t m, int64_t n, int64_t k, Mat<T> a, Mat<T> b, T beta, T* c, int64_t ldc) {
  constexpr int N = BROAD<T>;
  const int64_t di = a.t ? 1 : a.ld, dl = a.t ? a.ld : 1, dj = b.t ? b.ld : 1, dk = b.t ? 1 : b.ld;
  alignas(64) T panel[DEEP * N];
  for (int64_t j = 0; j < n; j += N)
    for (int64_t l = 0; l < k; l += DEEP) {
      const int64_t depth = k - l < DEEP ? k - l : DEEP;
      const T* from = b.p + l * dk + j * dj;
      if (b.t || dk != N) {
        for (int64_t p = 0; p < depth; ++p)
          for (int q = 0; q < N; ++q) panel[p * N + q] = from[p * dk + q * dj];
        from = panel;
      }
      const T* left = a.p + l * dl;
      T* to = c + j;
      const T keep = l ? T(1) : beta;
      int64_t i = 0;
      for (; i + HIGH <= m; i += HIGH) {
        if (!a.t && i + 3 * HIGH <= m) soon<HIGH>(depth, left + (i + 2 * HIGH) * di, di);
        block<HIGH>(depth, left + i * di, di, dl, from, keep, to + i * ldc, ldc);
      }
      if (i + 4 <= m) { block<4>(depth, left + i * di, di, dl, from, keep, to + i * ldc, ldc); i += 4; }
      if (i + 2 <= m) { block<2>(depth, left + i * di, di, dl, from, keep, to + i * ldc, ldc); i += 2; }
      if (i < m) block<1>(depth, left + i * di, di, dl, from, keep, to + i * ldc, ldc);
    }
}
// Whether `narrow` is the faster one: whole panels, few of them, on one thread; turning b costs as much as 60 rows of a product.
template <class T> INLINE bool few(int64_t m, int64_t n, int64_t k, const Mat<T>& b) {
  return k > 0 && n % BROAD<T> == 0 && n <= PANELS * BROAD<T> && m >= (b.t ? 8 * BROAD<T> : 2 * HIGH)
      && (omp_in_parallel() || omp_get_max_threads() == 1);
}

// c[m, n] (row-major, leading dimension ldc) = a[m, k] b[k, n] + beta c
template <class T, class F>
SHARED void gemm_(F* f, int64_t m, int64_t n, int64_t k, Mat<T> a, Mat<T> b, T beta, T* c, int64_t ldc) {
  if (m <= 0 || n <= 0) return;
  if (few(m, n, k, b)) return narrow(m, n, k, a, b, beta, c, ldc);
  if (!f) return plain(m, n, k, a, b, beta, c, ldc);
  const int M = int(m), N = int(n), K = int(k), la = leading(a, m, k), lb = leading(b, k, n), lc = int(ldc > 1 ? ldc : 1);
  const T one = 1;
  f(b.t ? "T" : "N", a.t ? "T" : "N", &N, &M, &K, &one, b.p, &lb, a.p, &la, &beta, c, &lc);
}
SHARED void gemm(const Blas& f, int64_t m, int64_t n, int64_t k, Mat<float> a, Mat<float> b, float beta, float* c, int64_t ldc) {
  gemm_(f.sgemm, m, n, k, a, b, beta, c, ldc);
}
SHARED void gemm(const Blas& f, int64_t m, int64_t n, int64_t k, Mat<double> a, Mat<double> b, double beta, double* c, int64_t ldc) {
  gemm_(f.dgemm, m, n, k, a, b, beta, c, ldc);
}
SHARED void gemm(const Blas& f, int64_t m, int64_t n, int64_t k, Mat<bf16> a, Mat<bf16> b, float beta, float* c, int64_t ldc) {
  if (m <= 0 || n <= 0) return;
  if (!f.bgemm || k == 0) return plain(m, n, k, a, b, beta, c, ldc);
  const int row_major = 101, plain_ = 111, turned_ = 112, lc = int(ldc > n ? ldc : n);
  f.bgemm(row_major, a.t ? turned_ : plain_, b.t ? turned_ : plain_, int(m), int(n), int(k), 1.f, reinterpret_cast<const uint16_t*>(a.p),
          leading(a, m, k), reinterpret_cast<const uint16_t*>(b.p), leading(b, k, n), beta, c, lc);
}
