#include "fuse_rows.h"

// arguments, in order
#define UNPACK \
  const int64_t n0 = arg[0], n1 = arg[1], n2 = arg[2], n3 = arg[3], R = arg[4], C = arg[5], spread = arg[6], l0_b = arg[7]; \
  const int64_t l0_i0 = arg[8], l0_i1 = arg[9], l0_i2 = arg[10], l1_b = arg[11], l1_i0 = arg[12], l1_i1 = arg[13], l2_b = arg[14], l2_i0 = arg[15]; \
  const int64_t l2_i1 = arg[16], l3_b = arg[17], l3_i0 = arg[18], l3_i1 = arg[19], l4_b = arg[20], l4_i0 = arg[21], l4_i1 = arg[22], l5_b = arg[23]; \
  const int64_t l5_i2 = arg[24], l5_i3 = arg[25], y0_i0 = arg[26], y0_i1 = arg[27], y0_i2 = arg[28], y1_i3 = arg[29], y1_i2 = arg[30], y2_i3 = arg[31]; \
  const int64_t rows = n0 * n1; \
  const int64_t cols = n3; \
  (void)0

struct Shared {
  double* c2;
  double* c3;
  int64_t bytes;
  Shared(char* base, const int64_t* arg) {
    UNPACK;
    Arena arena{base};
    c2 = arena.take<double>(n3);
    c3 = arena.take<double>(1);
    bytes = arena.used;
  }
};

struct Task {
  float* c0;
  float* t10;
  int64_t* w0_row_t;
  float* m0_row_i2_copy;
  float* m9_col_i2_copy;
  float* t18;
  int64_t* w1_row_t;
  int64_t* w2_row_t;
  int64_t* w3_row_t;
  int64_t* w4_row_t;
  float* t8;
  int64_t* which18;
  int64_t* kept18;
  float* some_v18_copy;
  float* part_c0;
  float* some_c1_copy;
  int64_t* wy0_row_t;
  int64_t bytes;
  Task(char* base, const int64_t* arg) {
    UNPACK;
    Arena arena{base};
    c0 = arena.take<float>(R * n2);
    t10 = arena.take<float>(R * C);
    w0_row_t = arena.take<int64_t>(R);
    m0_row_i2_copy = arena.take<float>(R * n2);
    m9_col_i2_copy = arena.take<float>(spare(C, n2, l5_i3, l5_i2));
    t18 = arena.take<float>(R * C);
    w1_row_t = arena.take<int64_t>(R);
    w2_row_t = arena.take<int64_t>(R);
    w3_row_t = arena.take<int64_t>(R);
    w4_row_t = arena.take<int64_t>(R);
    t8 = arena.take<float>(1);
    which18 = arena.take<int64_t>(strips_of(C) * R);
    kept18 = arena.take<int64_t>(strips_of(C));
    some_v18_copy = arena.take<float>(R * STRIP);
    part_c0 = arena.take<float>(R * n2);
    some_c1_copy = arena.take<float>(R * n2);
    wy0_row_t = arena.take<int64_t>(R);
    bytes = arena.used;
  }
};

extern "C" int64_t fuse_workspace(const int64_t* arg, int outer) {
  return Shared(nullptr, arg).bytes + outer * Task(nullptr, arg).bytes;
}

extern "C" void fuse_kernel(void* const* buf, const int64_t* arg, const Blas& blas, char* work, int outer,
                            int inner) {
  UNPACK;
  const float* const x0 = (const float*)buf[0];
  const float* const x1 = (const float*)buf[1];
  const float* const x2 = (const float*)buf[2];
  const int64_t* const x3 = (const int64_t*)buf[3];
  const float* const x4 = (const float*)buf[4];
  const float* const x5 = (const float*)buf[5];
  float* const y0 = (float*)buf[6];
  float* const y1 = (float*)buf[7];
  float* const y2 = (float*)buf[8];
  float* const y3 = (float*)buf[9];
  const Shared shared(work, arg);
  double* const c2 = shared.c2;
  double* const c3 = shared.c3;
  large_pages(work, fuse_workspace(arg, outer));
  large_pages(y0, n0 * n1 * n2 * int64_t(sizeof(float)));
  large_pages(y1, n3 * n2 * int64_t(sizeof(float)));
  large_pages(y2, n3 * int64_t(sizeof(float)));
  large_pages(y3, int64_t(sizeof(float)));
  if (rows * cols == 0) start(y1, n3 * n2, float(0));
  start(c2, n3, double(0));
  start(c3, 1, double(0));
  const int64_t tiles = (rows + R - 1) / R, groups = spread ? tiles : 1, each = spread ? 1 : tiles;
  const int64_t tasks = 1 * groups;
  const float v8 = (1.0f * 0.000244140625f);
  share_out(tasks, outer, [&](int64_t task, int64_t thread) {
    const Task mine(work + shared.bytes + thread * Task(nullptr, arg).bytes, arg);
    float* const c0 = mine.c0;
    float* const t10 = mine.t10;
    int64_t* const w0_row_t = mine.w0_row_t;
    float* const m0_row_i2_copy = mine.m0_row_i2_copy;
    float* const m9_col_i2_copy = mine.m9_col_i2_copy;
    float* const t18 = mine.t18;
    int64_t* const w1_row_t = mine.w1_row_t;
    int64_t* const w2_row_t = mine.w2_row_t;
    int64_t* const w3_row_t = mine.w3_row_t;
    int64_t* const w4_row_t = mine.w4_row_t;
    float* const t8 = mine.t8;
    int64_t* const which18 = mine.which18;
    int64_t* const kept18 = mine.kept18;
    float* const some_v18_copy = mine.some_v18_copy;
    float* const part_c0 = mine.part_c0;
    float* const some_c1_copy = mine.some_c1_copy;
    int64_t* const wy0_row_t = mine.wy0_row_t;
    const float* l0 = x0 + l0_b;
    const Walk w0_i2 = {0, l0_i2, nullptr};
    const float* l5 = x5 + l5_b;
    const Walk w5_i2 = {0, l5_i2, nullptr};
    const float* l1 = x1 + l1_b;
    const float* l2 = x2 + l2_b;
    const int64_t* l3 = x3 + l3_b;
    const float* l4 = x4 + l4_b;
    t8[0] = v8;
    const Walk wy0_i2 = {0, y0_i2, nullptr};
    for (int64_t tile = task % groups * each; tile < (task % groups + 1) * each && tile < tiles; ++tile) {
      const int64_t row0 = tile * R;
      const int nr = int(rows - row0 < R ? rows - row0 : R);
      const int64_t w0_row_n[] = {n0, n1}, w0_row_s[] = {l0_i0, l0_i1};
      const Walk w0_row = walk(row0, nr, 2, w0_row_n, w0_row_s, w0_row_t);
      const Mat<float> m0_row_i2 = matrix<float>(l0, w0_row, w0_i2, int64_t(nr), int64_t(n2), m0_row_i2_copy, inner);
      const int64_t w1_row_n[] = {n0, n1}, w1_row_s[] = {l1_i0, l1_i1};
      const Walk w1_row = walk(row0, nr, 2, w1_row_n, w1_row_s, w1_row_t);
      const int64_t w2_row_n[] = {n0, n1}, w2_row_s[] = {l2_i0, l2_i1};
      const Walk w2_row = walk(row0, nr, 2, w2_row_n, w2_row_s, w2_row_t);
      const int64_t w3_row_n[] = {n0, n1}, w3_row_s[] = {l3_i0, l3_i1};
      const Walk w3_row = walk(row0, nr, 2, w3_row_n, w3_row_s, w3_row_t);
      const int64_t w4_row_n[] = {n0, n1}, w4_row_s[] = {l4_i0, l4_i1};
      const Walk w4_row = walk(row0, nr, 2, w4_row_n, w4_row_s, w4_row_t);
      const int64_t wy0_row_n[] = {n0, n1}, wy0_row_s[] = {y0_i0, y0_i1};
      const Walk wy0_row = walk(row0, nr, 2, wy0_row_n, wy0_row_s, wy0_row_t);
      {
        start(c0, R * n2, float(0));
        for (int64_t col0 = 0; col0 < cols; col0 += C) {
          const int nc = int(cols - col0 < C ? cols - col0 : C);
          const Walk w5_col = {col0 * l5_i3, l5_i3, nullptr};
          const Mat<float> m9_col_i2 = matrix<float>(l5, w5_col, w5_i2, int64_t(nc), int64_t(n2), m9_col_i2_copy, inner);
          gemm(blas, int64_t(nr), int64_t(nc), int64_t(n2), m0_row_i2, turned(m9_col_i2), 0, t10, C);
#pragma omp parallel for num_threads(inner) if (inner > 1)
          for (int r = 0; r < nr; ++r) {
            const float v1 = l1[w1_row(r)];
            const float v2 = l2[w2_row(r)];
            const int64_t v3 = l3[w3_row(r)];
            const float v6 = l4[w4_row(r)];
            for (int first = 0; first < nc; first += CHUNK) {
              const int n = int(nc) - first < CHUNK ? int(nc) - first : CHUNK;
              const float* q_t10 = t10 + r * C + first;
              const int32_t d3 = near_(v3 - (col0 + first));
              float* o_t18 = t18 + r * C + first;
              strips(n, [&](int c, int k) EACH {
                const float v10 = q_t10[c];
                const float v11 = (v10 - v1);
                const float v12 = exp_(v11);
                const float v13 = (v12 * v2);
                const bool v15 = (c == d3);
                const float v16 = select_(v15, 1.0f, 0.0f);
                const float v17 = (v13 - v16);
                const float v18 = (v17 * v6);
                o_t18[c] = v18;
              });
            }
          }
#pragma omp parallel for num_threads(inner) if (inner > 1)
          for (int first = 0; first < nc; first += WIDE) {
            const int n = int(nc) - first < WIDE ? int(nc) - first : WIDE;
            float h_c2[WIDE]; fill(h_c2, float(0));
            double a_c2[WIDE]; fill(a_c2, double(0));
            for (int r0 = 0; r0 < nr; r0 += BLOCK) {
              for (int r = r0; r < nr && r < r0 + BLOCK; ++r) {
                const float* q_t18 = t18 + r * C + first;
                apart(n, [&](int c, int k) EACH {
                  const float v18 = q_t18[c];
                  h_c2[k] += v18;
                });
              }
              flush(a_c2, h_c2);
            }
            for (int k = 0; k < n; ++k) {
              c2[col0 + (first + k)] += a_c2[k];
            }
          }
          for (int r = 0; r < nr; ++r) {
            for (int first = 0; first < nc; first += CHUNK) {
              const int n = int(nc) - first < CHUNK ? int(nc) - first : CHUNK;
              float h_c3[LANES]; fill(h_c3, float(0));
              const float* q_t18 = t18 + r * C + first;
              strips(n, [&](int c, int k) EACH {
                const float v18 = q_t18[c];
                const float v19 = (v18 * v18);
                h_c3[k] += v19;
              });
              c3[0] += sum_of<double>(h_c3);
            }
          }
          if (significant(Mat<float>{t18, C, false}, int64_t(nr), int64_t(nc), t8, 0, which18, kept18, inner)) {
            for (int64_t first = 0, s = 0; first < int64_t(nc); first += STRIP, ++s) {
              const int64_t wide = int64_t(nc) - first < STRIP ? int64_t(nc) - first : STRIP, kept = kept18[s];
              const int64_t* const which = which18 + s * int64_t(nr);
              const Mat<float> some_v18 = rows_of(from(Mat<float>{t18, C, false}, 0, first), which, kept, int64_t(nr), wide, some_v18_copy, inner);
              gemm_rows(blas, which, kept, int64_t(nr), int64_t(n2), wide, some_v18, from(m9_col_i2, first, 0), float(1), c0, n2, part_c0, inner);
              const Mat<float> some_c1 = rows_of(m0_row_i2, which, kept, int64_t(nr), int64_t(n2), some_c1_copy, inner);
              gemm(blas, wide, int64_t(n2), kept, turned(some_v18), some_c1, row0 == 0 ? 0 : 1, y1 + col0 * n2 + first * n2, n2);
            }
          }
          else {
            gemm(blas, int64_t(nr), int64_t(n2), int64_t(nc), Mat<float>{t18, C, false}, m9_col_i2, 1, c0, n2);
            gemm(blas, int64_t(nc), int64_t(n2), int64_t(nr), turned(Mat<float>{t18, C, false}), m0_row_i2, row0 == 0 ? 0 : 1, y1 + col0 * n2, n2);
          }
        }
#pragma omp parallel for num_threads(inner) if (inner > 1)
        for (int r = 0; r < nr; ++r) {
          put(y0 + wy0_row(r), wy0_i2, n2, c0 + r * n2);
        }
      }
    }
  });
  put(y2, Walk{0, 1, nullptr}, n3, c2);
  put(y3, Walk{0, 1, nullptr}, 1, c3);
}
