// What every generated CPU kernel includes: element types, vectorisable functions, strided walks, packing and GEMM.
// Nothing here depends on -ffast-math: reductions are written with one accumulator per lane, so that they vectorise and
// -inf, inf and nan keep their meaning.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <omp.h>
#include <type_traits>
#ifdef __linux__
#include <sys/mman.h>
#endif

#define INLINE inline __attribute__((always_inline))
#define EACH __attribute__((always_inline))
#define SHARED inline __attribute__((noinline))      // called a few times per row or tile: one copy keeps compilation short

constexpr int LANES = 16;      // accumulators per reduction: one 512-bit vector of float
constexpr int SPAN = 32;       // lanes that a walk takes at once: enough independent chains to hide latencies
constexpr int CHUNK = 1024;    // positions between two flushes of the lanes: bounds the rounding error of a sum
constexpr int BLOCK = 64;      // the same where each lane is a separate sum
constexpr int WIDE = 64;       // such sums at once: a line of memory that is read in order
constexpr int AHEAD = 8;       // lines between a prefetch and its use
constexpr int SHORT = 512;     // elements of a line that is worth asking for
constexpr float INF = INFINITY;

template <class T> INLINE T bits(int64_t i) { T f; std::memcpy(&f, &i, sizeof f); return f; }

// ---- element types -----------------------------------------------------------------------------------------------
using f16 = _Float16;
struct bf16 {
  uint16_t raw;
  bf16() = default;
  INLINE bf16(float x) {       // round to nearest even; nan stays nan
    uint32_t u;
    std::memcpy(&u, &x, 4);
    raw = x == x ? uint16_t((u + 0x7fffu + ((u >> 16) & 1u)) >> 16) : uint16_t(0x7fc0);
  }
  INLINE operator float() const {
    uint32_t u = uint32_t(raw) << 16;
    float x;
    std::memcpy(&x, &u, 4);
    return x;
  }
};

// ---- functions ---------------------------------------------------------------------------------------------------
INLINE float bits32(int32_t i) { float f; std::memcpy(&f, &i, 4); return f; }
INLINE int32_t raw32(float f) { int32_t i; std::memcpy(&i, &f, 4); return i; }

// Cephes expf: x = n ln 2 + r, a polynomial in r, scaled by 2^n. Results below 2^-125.5 are 0: subnormal ones would cost a
// hundred cycles each, and most weights of a sharp softmax are that small. Adding `shift` rounds to an integer and leaves
// n + 126 in the last bits; nan passes the first clamp and stays nan; the second is one of integers (n = 128 overflows), since
// compilers thread two of floats into branches.
INLINE float exp_(float x) {
  const float shift = 12582912.f + 126.f;
  float c = -87.33f > x ? -87.33f : x;
  float t = __builtin_fmaf(c, 1.44269504088896341f, shift);
  int32_t i = raw32(t), top = raw32(shift + 128.f);
  i = i > top ? top : i;
  float n = bits32(i) - shift;
  float r = __builtin_fmaf(n, -0.693359375f, c);
  r = __builtin_fmaf(n, 2.12194440e-4f, r);
  float p = 1.9875691500e-4f;
  p = __builtin_fmaf(p, r, 1.3981999507e-3f);
  p = __builtin_fmaf(p, r, 8.3334519073e-3f);
  p = __builtin_fmaf(p, r, 4.1665795894e-2f);
  p = __builtin_fmaf(p, r, 1.6666665459e-1f);
  p = __builtin_fmaf(p, r, 5.0000001201e-1f);
  p = __builtin_fmaf(p, r * r, r) + 1.f;
  return (p + p) * bits32(int32_t(uint32_t(i) << 23));
}
INLINE double exp_(double x) { return std::exp(x); }

// Cephes logf: x = 2^e m with m in [sqrt(1/2), sqrt 2).
INLINE float log_(float x) {
  bool tiny = x < 1.17549435e-38f;
  int32_t i = raw32(tiny ? x * 8388608.f : x);
  int32_t e = ((i - 0x3f3504f3) >> 23);
  float m = bits32(i - (e << 23)) - 1.f;
  float n = float(e - (tiny ? 23 : 0)), z = m * m;
  float p = 7.0376836292e-2f;
  p = __builtin_fmaf(p, m, -1.1514610310e-1f);
  p = __builtin_fmaf(p, m, 1.1676998740e-1f);
  p = __builtin_fmaf(p, m, -1.2420140846e-1f);
  p = __builtin_fmaf(p, m, 1.4249322787e-1f);
  p = __builtin_fmaf(p, m, -1.6668057665e-1f);
  p = __builtin_fmaf(p, m, 2.0000714765e-1f);
  p = __builtin_fmaf(p, m, -2.4999993993e-1f);
  p = __builtin_fmaf(p, m, 3.3333331174e-1f);
  float y = __builtin_fmaf(n, -2.12194440e-4f, p * z * m);
  y = __builtin_fmaf(-0.5f, z, y);
  y = __builtin_fmaf(n, 0.693359375f, m + y);
  y = x == INF ? INF : y;
  y = x == 0.f ? -INF : y;
  return x >= 0.f ? y : __builtin_nanf("");
}
INLINE double log_(double x) { return std::log(x); }

// Cephes tanhf: a polynomial near zero, 1 - 2 / (e^2x + 1) elsewhere.
INLINE float tanh_(float x) {
  float a = __builtin_fabsf(x), z = x * x;
  float p = -5.70498872745e-3f;
  p = __builtin_fmaf(p, z, 2.06390887954e-2f);
  p = __builtin_fmaf(p, z, -5.37397155531e-2f);
  p = __builtin_fmaf(p, z, 1.33314422036e-1f);
  p = __builtin_fmaf(p, z, -3.33332819422e-1f);
  float near = __builtin_fmaf(p * z, x, x);
  float far = __builtin_copysignf(1.f - 2.f / (exp_(a + a) + 1.f), x);
  far = x == x ? far : x;
  return a < 0.625f ? near : far;
}
INLINE double tanh_(double x) { return std::tanh(x); }

// An odd polynomial near zero, 1 - exp of a polynomial elsewhere; both are within one ulp.
INLINE float erf_(float x) {
  float a = __builtin_fabsf(x), z = x * x;
  float p = -5.96761703e-4f;
  p = __builtin_fmaf(p, z, 4.99119423e-3f);
  p = __builtin_fmaf(p, z, -2.67681349e-2f);
  p = __builtin_fmaf(p, z, 1.12819925e-1f);
  p = __builtin_fmaf(p, z, -3.76125336e-1f);
  p = __builtin_fmaf(p, z, 1.28379166e-1f);
  float near = __builtin_fmaf(p, x, x);
  float q = __builtin_fmaf(-1.72853470e-5f, a, 3.83197126e-4f);
  q = __builtin_fmaf(q, z, __builtin_fmaf(-3.88396438e-3f, a, 2.42546219e-2f));
  q = __builtin_fmaf(q, a, -1.06777877e-1f);
  q = __builtin_fmaf(q, a, -6.34846687e-1f);
  q = __builtin_fmaf(q, a, -1.28717512e-1f);
  q = __builtin_fmaf(q, a, -a);
  float far = __builtin_copysignf(1.f - exp_(q), x);
  return a > 0.927734375f ? far : near;
}
INLINE double erf_(double x) { return std::erf(x); }

// log(1 + x) = log(u) x / (u - 1) with u = fl(1 + x) (Kahan); expm1 likewise by (u - 1) x / log u.
INLINE float log1p_(float x) {
  float u = 1.f + x, d = u - 1.f;
  float y = log_(u) * (x / (d == 0.f ? 1.f : d));
  return d == 0.f ? x : (u == INF ? INF : y);
}
INLINE double log1p_(double x) { return std::log1p(x); }
INLINE float expm1_(float x) {
  float u = exp_(x), d = u - 1.f;
  float y = d * (x / log_(u));
  y = (d == -1.f || u == INF) ? d : y;
  return d == 0.f ? x : y;
}
INLINE double expm1_(double x) { return std::expm1(x); }

template <class T> INLINE T sigmoid_(T x) { return T(1) / (T(1) + exp_(-x)); }
template <class T> INLINE T sign_(T x) { return x != x ? x : T(x > T(0)) - T(x < T(0)); }
template <class T> INLINE T abs_(T x) { return x < T(0) ? -x : x == T(0) ? T(0) : x; }
template <class T> INLINE T max_(T a, T b) { return (a > b || a != a) ? a : b; }       // nan wins
template <class T> INLINE T min_(T a, T b) { return (a < b || a != a) ? a : b; }
template <class T> INLINE T floordiv_(T a, T b) { T q = a / b; return q - T((a % b != 0) && ((a < 0) != (b < 0))); }
template <class T> INLINE T mod_(T a, T b) { T r = a % b; return r + ((r != 0 && (r < 0) != (b < 0)) ? b : T(0)); }
// c ? a : b by masks: written as a branch, compilers thread it through later comparisons and give up on vectors.
template <class T> INLINE T select_(bool c, T a, T b) { return c ? a : b; }
INLINE float select_(bool c, float a, float b) {
  int32_t mask = -int32_t(c);
  return bits32((raw32(a) & mask) | (raw32(b) & ~mask));
}
// x / d for many x: (x * r) * s, where s is a power of two that keeps r in range, so that 0 / d is 0 for the smallest d too.
template <class T> struct Inverse {
  T r, s;
};
template <class T> INLINE Inverse<T> inverse(T d) {
  const T small = sizeof(T) == 4 ? T(0x1p-100) : T(0x1p-900), up = sizeof(T) == 4 ? T(0x1p64) : T(0x1p512);
  const T s = abs_(d) < small ? up : abs_(d) > 1 / small ? 1 / up : T(1);
  return {T(1) / (d * s), s};
}
template <class T> INLINE T over(T x, const Inverse<T>& d) { return x * d.r * d.s; }
INLINE int32_t near_(int64_t x) {      // a position relative to the tile, kept in 32 bits: far ones stay outside the tile
  return int32_t(x < -2 ? -2 : x > 0x7ffffff0 ? 0x7ffffff0 : x);
}

// ---- lanes -------------------------------------------------------------------------------------------------------
// f(position, lane) for position = 0 .. n - 1; the body is vectorised over the lanes.
template <class F> INLINE void strips(int n, F&& f) {
  int c = 0;
  for (; c + LANES <= n; c += LANES) {
#pragma omp simd
    for (int k = 0; k < LANES; ++k) f(c + k, k);
  }
  for (int k = 0; c + k < n; ++k) f(c + k, k);
}
// f(position, position): each position is a lane of its own.
template <class F> INLINE void apart(int n, F&& f) {
  int c = 0;
  for (; c + LANES <= n; c += LANES) {
#pragma omp simd
    for (int k = 0; k < LANES; ++k) f(c + k, c + k);
  }
  for (; c < n; ++c) f(c, c);
}
// f(first, n) for blocks of n = SPAN positions, a constant that lets what a block holds stay in registers, and for what is left.
template <class F> INLINE void blocks(int n, F&& f) {
  int first = 0;
  for (; first + SPAN <= n; first += SPAN) f(first, std::integral_constant<int, SPAN>{});
  if (first < n) f(first, n - first);
}
// f(position) for position = 0 .. n - 1.
template <class N, class F> INLINE void lanes(N n, F&& f) {
#pragma omp simd
  for (int c = 0; c < n; ++c) f(c);
}
template <class A, class T, int N> INLINE void flush(A (&total)[N], T (&lane)[N]) {
  for (int k = 0; k < N; ++k) { total[k] += A(lane[k]); lane[k] = T(0); }
}
template <class T, int N> INLINE void fill(T (&lane)[N], T x) { for (int k = 0; k < N; ++k) lane[k] = x; }
template <class A, class T> INLINE A sum_of(const T* lane) {
  A half[LANES / 2];
  for (int k = 0; k < LANES / 2; ++k) half[k] = A(lane[k]) + A(lane[k + LANES / 2]);
  for (int n = LANES / 4; n; n /= 2) for (int k = 0; k < n; ++k) half[k] += half[k + n];
  return half[0];
}
// The sum of N lanes: LANES at a time, which then stay in registers while they are halved.
template <class T, int N> struct Side { typedef T type __attribute__((vector_size(N * sizeof(T)), aligned(alignof(T)), may_alias)); };
template <class T> INLINE T halved(const typename Side<T, LANES>::type& x) {
#if defined(__clang__) || __GNUC__ >= 12
  const auto a = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7) + __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
  const auto b = __builtin_shufflevector(a, a, 0, 1, 2, 3) + __builtin_shufflevector(a, a, 4, 5, 6, 7);
  return (b[0] + b[2]) + (b[1] + b[3]);
#else
  T lane[LANES];
  std::memcpy(lane, &x, sizeof lane);
  return sum_of<T>(lane);
#endif
}
template <class A, class T, int N> INLINE A total_of(const T (&lane)[N]) {
  if constexpr (N < LANES || std::is_integral_v<T>) {
    A total(0);
    for (int k = 0; k < N; ++k) total += A(lane[k]);
    return total;
  } else {
    using Line = typename Side<T, LANES>::type;
    Line all = *reinterpret_cast<const Line*>(lane);
    for (int k = LANES; k < N; k += LANES) all += *reinterpret_cast<const Line*>(lane + k);
    return A(halved<T>(all));
  }
}
template <class T> SHARED T top_of(const T* lane) {      // ignores nan
  T m = lane[0];
  for (int k = 1; k < LANES; ++k) m = lane[k] > m ? lane[k] : m;
  return m;
}
template <class T> SHARED T max_of(const T* lane) {      // nan wins
  T m = lane[0];
  for (int k = 1; k < LANES; ++k) m = max_(m, lane[k]);
  return m;
}
template <class T> INLINE bool beats(T x, T best) { return (x > best) | ((x != x) & (best == best)); }
template <class T> SHARED void take_first(const T* lane, const int* where, int64_t first, T& best, int64_t& at) {
  int w = 0;
  for (int k = 1; k < LANES; ++k) {
    bool same = lane[k] == lane[w] || (lane[k] != lane[k] && lane[w] != lane[w]);
    if (beats(lane[k], lane[w]) || (same && where[k] < where[w])) w = k;
  }
  if (beats(lane[w], best)) { best = lane[w]; at = first + where[w]; }
}
// A maximum that is still -inf counts as 0, so that exp(-inf - m) is 0 and nothing is rescaled.
template <class T> INLINE T origin(T m) { return m == T(-INF) ? T(0) : m; }
template <class T> INLINE T drop(T old, T now) { return old == T(-INF) ? T(0) : old - origin(now); }

// ---- strided walks -----------------------------------------------------------------------------------------------
// Element offsets along one flattened dim of a tile: base + (table ? table[i] : i * stride).
struct Walk {
  int64_t base, stride;
  const int64_t* table;
  INLINE int64_t operator()(int64_t i) const { return base + (table ? table[i] : i * stride); }
};
// Positions first .. first + n - 1 of the row-major product of `axes` extents; the table is used only if they do not nest.
SHARED Walk walk(int64_t first, int64_t n, int axes, const int64_t* extent, const int64_t* stride, int64_t* table) {
  bool nests = true;
  for (int a = 0; a + 1 < axes; ++a) nests = nests && (extent[a] == 1 || stride[a] == stride[a + 1] * extent[a + 1]);
  if (nests && axes) {
    int64_t tail = stride[axes - 1];
    return {first * tail, tail, nullptr};
  }
  for (int64_t i = 0; i < n; ++i) {
    int64_t flat = first + i, at = 0;
    for (int a = axes - 1; a >= 0; --a) { at += flat % extent[a] * stride[a]; flat /= extent[a]; }
    table[i] = at;
  }
  return {0, 0, table};
}
INLINE Walk from(const Walk& w, int64_t i) {
  return w.table ? Walk{w.base, 0, w.table + i} : Walk{w.base + i * w.stride, w.stride, nullptr};
}
INLINE int64_t digit(int64_t flat, int64_t later, int64_t extent) { return flat / later % extent; }

// Bounds of one digit of the positions first .. first + n - 1: exact within one period, else the whole range.
INLINE bool one_period(int64_t first, int64_t n, int64_t later, int64_t extent) {
  return first / (later * extent) == (first + n - 1) / (later * extent);
}
INLINE int64_t lowest(int64_t first, int64_t n, int64_t later, int64_t extent) {
  return one_period(first, n, later, extent) ? digit(first, later, extent) : 0;
}
INLINE int64_t highest(int64_t first, int64_t n, int64_t later, int64_t extent) {
  return one_period(first, n, later, extent) ? digit(first + n - 1, later, extent) : extent - 1;
}
INLINE int64_t least(int64_t c, int64_t low, int64_t high) { return c * (c < 0 ? high : low); }

// n elements as a contiguous line: the memory itself if it is one, else a copy.
template <class T> INLINE const T* line(const T* p, const Walk& w, int n, T* copy) {
  if (!w.table && (w.stride == 1 || n == 1)) return p + w.base;
  for (int i = 0; i < n; ++i) copy[i] = p[w(i)];
  return copy;
}

// A tile by rows and columns, read along the columns: the memory itself, or a copy if only its rows are contiguous. Blocks of
// 16 columns x 64 rows stay in the first cache on either side; lines of the copy are of odd length, so that they do not share
// cache sets.
template <class T> struct Tile {
  const T* p;
  Walk row, col;
};
template <class T>
SHARED Tile<T> upright(const T* p, const Walk& row, const Walk& col, int nr, int nc, T* copy, int threads) {
  if (row.table || col.table || row.stride != 1 || col.stride == 1) return {p, row, col};
  const int64_t ld = nc + 16;
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int j0 = 0; j0 < nc; j0 += 16)
    for (int r0 = 0; r0 < nr; r0 += 64)
      for (int r = r0; r < nr && r < r0 + 64; ++r) {
        const T* __restrict from = p + row.base + r;
        T* __restrict to = copy + r * ld;
        for (int j = j0; j < nc && j < j0 + 16; ++j) to[j] = from[col(j)];
      }
  return {copy, {0, ld, nullptr}, {0, 1, nullptr}};
}

// Columns j and rows r of memory as to[j * ld + r], and back. Where the columns are contiguous, squares of 16 x 16 in
// registers, else whole lines of a few rows at a time: rows a power of two apart share a cache set.
template <class F> INLINE void by_lines(const Walk& col, int nc, int nr, F&& f) {
  if (col.table || col.stride != 1) {
    for (int j = 0; j < nc; ++j)
      for (int r = 0; r < nr; ++r) f(j, r);
    return;
  }
  for (int r0 = 0; r0 < nr; r0 += 8)
    for (int j0 = 0; j0 < nc; j0 += 16)
      for (int j = j0; j < nc && j < j0 + 16; ++j)
        for (int r = r0; r < nr && r < r0 + 8; ++r) f(j, r);
}
#if defined(__AVX512F__) && (defined(__clang__) || __GNUC__ >= 12)
constexpr bool SQUARES = true;
// to[j * to_ld + r] = from[r * from_ld + j] for 16 x 16: four rounds of interleaving lines i and i + 8.
SHARED void square(const float* from, int64_t from_ld, float* to, int64_t to_ld) {
  using Line = Side<float, 16>::type;
  Line a[16], b[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) a[i] = *reinterpret_cast<const Line*>(from + i * from_ld);
#pragma GCC unroll 4
  for (int round = 0; round < 4; ++round) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      b[2 * i] = __builtin_shufflevector(a[i], a[i + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
      b[2 * i + 1] = __builtin_shufflevector(a[i], a[i + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) a[i] = b[i];
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) *reinterpret_cast<Line*>(to + i * to_ld) = a[i];
}
#else
constexpr bool SQUARES = false;
SHARED void square(const float*, int64_t, float*, int64_t) {}
#endif
INLINE bool lines(const Walk& col, const Walk& row) { return SQUARES && !col.table && !row.table && col.stride == 1; }
template <class T> SHARED void lay_out(const T* p, const Walk& col, const Walk& row, int nc, int nr, T* to, int64_t ld) {
  int j0 = 0;
  if constexpr (std::is_same_v<T, float>)
    for (; lines(col, row) && j0 + 16 <= nc && nr >= 16; j0 += 16) {
      int r = 0;
      for (; r + 16 <= nr; r += 16) square(p + col(j0) + row(r), row.stride, to + j0 * ld + r, ld);
      for (; r < nr; ++r) for (int j = j0; j < j0 + 16; ++j) to[j * ld + r] = p[col(j) + row(r)];
    }
  by_lines(from(col, j0), nc - j0, nr, [&](int j, int r) EACH { to[(j0 + j) * ld + r] = p[col(j0 + j) + row(r)]; });
}
template <class T, class S> SHARED void lay_back(T* p, const Walk& col, const Walk& row, int nc, int nr, const S* from, int64_t ld) {
  int j0 = 0;
  if constexpr (std::is_same_v<T, float> && std::is_same_v<S, float>)
    for (; lines(col, row) && j0 + 16 <= nc && nr >= 16; j0 += 16) {
      int r = 0;
      for (; r + 16 <= nr; r += 16) square(from + j0 * ld + r, ld, p + col(j0) + row(r), row.stride);
      for (; r < nr; ++r) for (int j = j0; j < j0 + 16; ++j) p[col(j) + row(r)] = T(from[j * ld + r]);
    }
  by_lines(::from(col, j0), nc - j0, nr, [&](int j, int r) EACH { p[col(j0 + j) + row(r)] = T(from[(j0 + j) * ld + r]); });
}

// Asks for a line that a loop over `outer` will read some positions later: short lines are read faster than hardware
// foresees them.
template <class T> INLINE void ahead(const T* p, const Walk& outer, int64_t i, const Walk& w, int n) {
  if (outer.table || w.table || w.stride != 1 || n > SHORT) return;
  const T* later = p + outer(i + AHEAD) + w.base;
  for (int c = 0; c < n; c += 64 / int(sizeof(T))) __builtin_prefetch(later + c);
}
// The same for a line that is going to be written.
template <class T> INLINE void claim(T* p, const Walk& outer, int64_t i, const Walk& w, int64_t n) {
  if (outer.table || w.table || w.stride != 1 || n > SHORT) return;
  T* later = p + outer(i + AHEAD) + w.base;
  for (int64_t c = 0; c < n; c += 64 / int(sizeof(T))) __builtin_prefetch(later + c, 1);
}

// Where n values may be written: the memory itself if it is a line, else `line`, to be put there later.
template <class T> INLINE T* direct(T* p, const Walk& w, T* line) { return !w.table && w.stride == 1 ? p + w.base : line; }

// The other way: n values to strided memory, converted to its type.
template <class T, class S> SHARED void put(T* p, const Walk& w, int64_t n, const S* from) {
  if (!w.table && w.stride == 1) {
    T* to = p + w.base;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) to[i] = T(from[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) p[w(i)] = T(from[i]);
  }
}

// ---- matrices ----------------------------------------------------------------------------------------------------
// Element (i, j) at p[i * ld + j], or at p[j * ld + i] if `t`.
template <class T> struct Mat {
  const T* p;
  int64_t ld;
  bool t;
};
template <class T> INLINE Mat<T> in_place(const T* p, const Walk& i, const Walk& j, int64_t m, int64_t n, bool& ok) {
  int64_t di = m == 1 ? n : i.stride, dj = n == 1 ? 1 : j.stride;
  ok = !i.table && !j.table;
  if (ok && dj == 1 && di >= n) return {p + i.base + j.base, di, false};
  if (n == 1) dj = m;
  if (m == 1) di = 1;
  if (ok && di == 1 && dj >= m) return {p + i.base + j.base, dj, true};
  ok = false;
  return {p, 0, false};
}
// Elements that a copy of an m x n matrix may take: none where `in_place` will find its strides readable.
INLINE int64_t spare(int64_t m, int64_t n, int64_t di, int64_t dj) {
  return (dj == 1 && di >= n) || (di == 1 && dj >= m) ? 0 : m * n;
}
// body(task, thread) for every task. One thread needs no parallel region: it would count as one all the same, and the
// threads of regions inside a region are started anew each time.
template <class Body>
INLINE void share_out(int64_t tasks, int threads, const Body& body) {
  if (threads > 1) {
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t task = 0; task < tasks; ++task) body(task, omp_get_thread_num());
  } else {
    for (int64_t task = 0; task < tasks; ++task) body(task, 0);
  }
}
// A view of type T on strided elements of type S: the memory itself where BLAS can read it, else a packed copy.
template <class T, class S>
SHARED Mat<T> matrix(const S* p, const Walk& i, const Walk& j, int64_t m, int64_t n, T* copy, int threads) {
  bool ok = false;
  if constexpr (sizeof(S) == sizeof(T)) {
    Mat<T> view = in_place(reinterpret_cast<const T*>(p), i, j, m, n, ok);
    if (ok) return view;
  }
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t r = 0; r < m; ++r) {
    const S* __restrict from = p + i(r) + j.base;
    T* __restrict to = copy + r * n;
    if (!j.table && j.stride == 1) {
#pragma omp simd
      for (int64_t c = 0; c < n; ++c) to[c] = T(from[c]);
    } else if (!j.table) {
      for (int64_t c = 0; c < n; ++c) to[c] = T(from[c * j.stride]);
    } else {
      for (int64_t c = 0; c < n; ++c) to[c] = T(from[j.table[c]]);
    }
  }
  return {copy, n, false};
}

#include "fuse_gemm.h"

SHARED Mat<bf16> rounded(const Mat<float>& x, int64_t m, int64_t n, bf16* copy, int threads) {
  const Walk i{0, x.t ? 1 : x.ld, nullptr}, j{0, x.t ? x.ld : 1, nullptr};
  return matrix<bf16>(x.p, i, j, m, n, copy, threads);
}
template <class T> INLINE Mat<T> turned(Mat<T> a) { return {a.p, a.ld, !a.t}; }

template <class T, class A> SHARED void add_to(const T* p, int64_t n, A* total) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) total[i] += A(p[i]);
}
// The first of `parts` blocks of n becomes the sum of all, in order.
template <class T> SHARED void add_up(T* p, int64_t n, int64_t parts) {
  for (int64_t k = 1; k < parts; ++k) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) p[i] += p[k * n + i];
  }
}
template <class T> INLINE void copy_to(const T* from, int64_t n, T* to) { std::memcpy(to, from, n * sizeof(T)); }
template <class S, class T> SHARED void copy_to(const S* from, int64_t n, T* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = T(from[i]);
}
// Column `entry` of a tile with n elements a column: zero in the first tile of a walk, then column `last` of the tile before.
template <class T> SHARED void enter(T* p, int64_t n, bool first, int64_t entry, int64_t last) {
  if (first) std::memset(p + entry * n, 0, n * sizeof(T));
  else copy_to(p + last * n, n, p + entry * n);
}
template <class T> SHARED void start(T* p, int64_t n, T x) {
  for (int64_t i = 0; i < n; ++i) p[i] = x;
}

// Fresh memory in large pages where the system offers them: faulting in 4 KiB at a time costs as much as filling it.
SHARED void large_pages(void* p, int64_t bytes) {
#ifdef __linux__
  const uintptr_t page = 4096, first = uintptr_t(p) / page * page, last = (uintptr_t(p) + bytes + page - 1) / page * page;
  if (bytes >= int64_t(1) << 21) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

// ---- workspace ---------------------------------------------------------------------------------------------------
// Hands out aligned pieces; with a null base it only counts.
struct Arena {
  char* base;
  int64_t used = 0;
  template <class T> T* take(int64_t n) {
    T* p = base ? reinterpret_cast<T*>(base + used) : nullptr;
    used += (n * int64_t(sizeof(T)) + 127) / 64 * 64;
    return p;
  }
};
