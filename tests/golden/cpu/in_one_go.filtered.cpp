#include "fuse_rows.h"

// arguments, in order
#define UNPACK \
  const int64_t n0 = arg[0], n1 = arg[1], n2 = arg[2], n3 = arg[3], R = arg[4], C = arg[5], spread = arg[6], l0_b = arg[7]; \
  const int64_t l0_i0 = arg[8], l0_i1 = arg[9], l0_i2 = arg[10], l1_b = arg[11], l1_i0 = arg[12], l1_i1 = arg[13], l2_b = arg[14], l2_i2 = arg[15]; \
  const int64_t l2_i3 = arg[16], y0_i0 = arg[17], y0_i1 = arg[18], y1_i0 = arg[19], y1_i1 = arg[20], y2_i0 = arg[21], y2_i1 = arg[22], y3_i0 = arg[23]; \
  const int64_t y3_i1 = arg[24], y3_i2 = arg[25], y4_i2 = arg[26], y4_i3 = arg[27], y5_i0 = arg[28], y5_i1 = arg[29]; \
  const int64_t rows = n0 * n1; \
  const int64_t cols = n3; \
  (void)0

struct Shared {
  int64_t bytes;
  Shared(char* base, const int64_t* arg) {
    UNPACK;
    Arena arena{base};
    bytes = arena.used;
  }
};

struct Task {
  float* t6;
  float* c0_m;
  float* c0_o;
  double* c0_l;
  double* c1;
  int64_t* w0_row_t;
  float* m0_row_i2_copy;
  float* m5_col_i2_copy;
  int64_t* w1_row_t;
  int64_t* wy0_row_t;
  int64_t* wy1_row_t;
  int64_t* wy2_row_t;
  float* c2;
  double* c4;
  float* t30;
  float* t18;
  int64_t* which30;
  int64_t* kept30;
  float* some_v30_copy;
  float* part_c2;
  int64_t* wy3_row_t;
  int64_t* wy5_row_t;
  int64_t bytes;
  Task(char* base, const int64_t* arg) {
    UNPACK;
    Arena arena{base};
    t6 = arena.take<float>(R * cols);
    c0_m = arena.take<float>(R);
    c0_o = arena.take<float>(R);
    c0_l = arena.take<double>(R);
    c1 = arena.take<double>(R);
    w0_row_t = arena.take<int64_t>(R);
    m0_row_i2_copy = arena.take<float>(R * n2);
    m5_col_i2_copy = arena.take<float>(spare(C, n2, l2_i3, l2_i2));
    w1_row_t = arena.take<int64_t>(R);
    wy0_row_t = arena.take<int64_t>(R);
    wy1_row_t = arena.take<int64_t>(R);
    wy2_row_t = arena.take<int64_t>(R);
    c2 = arena.take<float>(R * n2);
    c4 = arena.take<double>(R);
    t30 = arena.take<float>(R * C);
    t18 = arena.take<float>(1);
    which30 = arena.take<int64_t>(strips_of(C) * R);
    kept30 = arena.take<int64_t>(strips_of(C));
    some_v30_copy = arena.take<float>(R * STRIP);
    part_c2 = arena.take<float>(R * n2);
    wy3_row_t = arena.take<int64_t>(R);
    wy5_row_t = arena.take<int64_t>(R);
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
  const int64_t* const x1 = (const int64_t*)buf[1];
  const float* const x2 = (const float*)buf[2];
  float* const y0 = (float*)buf[3];
  float* const y1 = (float*)buf[4];
  float* const y2 = (float*)buf[5];
  float* const y3 = (float*)buf[6];
  float* const y4 = (float*)buf[7];
  float* const y5 = (float*)buf[8];
  const Shared shared(work, arg);
  large_pages(work, fuse_workspace(arg, outer));
  large_pages(y0, n0 * n1 * int64_t(sizeof(float)));
  large_pages(y1, n0 * n1 * int64_t(sizeof(float)));
  large_pages(y2, n0 * n1 * int64_t(sizeof(float)));
  large_pages(y3, n0 * n1 * n2 * int64_t(sizeof(float)));
  large_pages(y4, n2 * n3 * int64_t(sizeof(float)));
  large_pages(y5, n0 * n1 * int64_t(sizeof(float)));
  if (rows * cols == 0) start(y4, n2 * n3, float(0));
  const int64_t tiles = (rows + R - 1) / R, groups = spread ? tiles : 1, each = spread ? 1 : tiles;
  const int64_t tasks = 1 * groups;
  const float v18 = (1.0f * 0.000244140625f);
  share_out(tasks, outer, [&](int64_t task, int64_t thread) {
    const Task mine(work + shared.bytes + thread * Task(nullptr, arg).bytes, arg);
    float* const t6 = mine.t6;
    float* const c0_m = mine.c0_m;
    float* const c0_o = mine.c0_o;
    double* const c0_l = mine.c0_l;
    double* const c1 = mine.c1;
    int64_t* const w0_row_t = mine.w0_row_t;
    float* const m0_row_i2_copy = mine.m0_row_i2_copy;
    float* const m5_col_i2_copy = mine.m5_col_i2_copy;
    int64_t* const w1_row_t = mine.w1_row_t;
    int64_t* const wy0_row_t = mine.wy0_row_t;
    int64_t* const wy1_row_t = mine.wy1_row_t;
    int64_t* const wy2_row_t = mine.wy2_row_t;
    float* const c2 = mine.c2;
    double* const c4 = mine.c4;
    float* const t30 = mine.t30;
    float* const t18 = mine.t18;
    int64_t* const which30 = mine.which30;
    int64_t* const kept30 = mine.kept30;
    float* const some_v30_copy = mine.some_v30_copy;
    float* const part_c2 = mine.part_c2;
    int64_t* const wy3_row_t = mine.wy3_row_t;
    int64_t* const wy5_row_t = mine.wy5_row_t;
    const float* l0 = x0 + l0_b;
    const Walk w0_i2 = {0, l0_i2, nullptr};
    const float* l2 = x2 + l2_b;
    const Walk w2_i2 = {0, l2_i2, nullptr};
    const int64_t* l1 = x1 + l1_b;
    t18[0] = v18;
    const Walk wy3_i2 = {0, y3_i2, nullptr};
    for (int64_t tile = task % groups * each; tile < (task % groups + 1) * each && tile < tiles; ++tile) {
      const int64_t row0 = tile * R;
      const int nr = int(rows - row0 < R ? rows - row0 : R);
      const int64_t w0_row_n[] = {n0, n1}, w0_row_s[] = {l0_i0, l0_i1};
      const Walk w0_row = walk(row0, nr, 2, w0_row_n, w0_row_s, w0_row_t);
      const Mat<float> m0_row_i2 = matrix<float>(l0, w0_row, w0_i2, int64_t(nr), int64_t(n2), m0_row_i2_copy, inner);
      const int64_t w1_row_n[] = {n0, n1}, w1_row_s[] = {l1_i0, l1_i1};
      const Walk w1_row = walk(row0, nr, 2, w1_row_n, w1_row_s, w1_row_t);
      const int64_t wy0_row_n[] = {n0, n1}, wy0_row_s[] = {y0_i0, y0_i1};
      const Walk wy0_row = walk(row0, nr, 2, wy0_row_n, wy0_row_s, wy0_row_t);
      const int64_t wy1_row_n[] = {n0, n1}, wy1_row_s[] = {y1_i0, y1_i1};
      const Walk wy1_row = walk(row0, nr, 2, wy1_row_n, wy1_row_s, wy1_row_t);
      const int64_t wy2_row_n[] = {n0, n1}, wy2_row_s[] = {y2_i0, y2_i1};
      const Walk wy2_row = walk(row0, nr, 2, wy2_row_n, wy2_row_s, wy2_row_t);
      {
        start(c0_m, R, float(-INF));
        start(c0_o, R, float(-INF));
        start(c0_l, R, double(0));
        start(c1, R, double(0));
        for (int64_t col0 = 0; col0 < cols; col0 += C) {
          const int nc = int(cols - col0 < C ? cols - col0 : C);
          const Walk w2_col = {col0 * l2_i3, l2_i3, nullptr};
          const Mat<float> m5_col_i2 = matrix<float>(l2, w2_col, w2_i2, int64_t(nc), int64_t(n2), m5_col_i2_copy, inner);
          gemm(blas, int64_t(nr), int64_t(nc), int64_t(n2), m0_row_i2, turned(m5_col_i2), 0, t6 + col0, cols);
#pragma omp parallel for num_threads(inner) if (inner > 1)
          for (int r = 0; r < nr; ++r) {
            const int64_t v3 = l1[w1_row(r)];
            for (int first = 0; first < nc; first += CHUNK) {
              const int n = int(nc) - first < CHUNK ? int(nc) - first : CHUNK;
              float h_c0[LANES]; fill(h_c0, float(-INF));
              float h_c1[LANES]; fill(h_c1, float(0));
              const float* q_t6 = t6 + col0 + r * cols + first;
              float s9[CHUNK];
              const int32_t d3 = near_(v3 - (col0 + first));
              strips(n, [&](int c, int k) EACH {
                const float v6 = q_t6[c];
                const float v7 = (v6 * 0.5f);
                const float v8 = tanh_(v7);
                const float v9 = (v8 * 2.0f);
                h_c0[k] = v9 > h_c0[k] ? v9 : h_c0[k];
                s9[c] = v9;
                const bool v11 = (c == d3);
                const float v12 = select_(v11, v9, 0.0f);
                h_c1[k] += v12;
              });
              c1[r] += sum_of<double>(h_c1);
              const float o_c0 = c0_m[r], x_c0 = top_of(h_c0);
              const float y_c0 = x_c0 > o_c0 ? x_c0 : o_c0;
              const float m_c0 = origin(y_c0);
              const float delta_c0 = drop(o_c0, y_c0);
              c0_m[r] = y_c0;
              float g_c0[LANES]; fill(g_c0, float(0));
              strips(n, [&](int c, int k) EACH {
                const float z_c0 = s9[c] - m_c0;
                const float e_c0 = exp_(z_c0);
                g_c0[k] += e_c0;
              });
              c0_l[r] = exp_(delta_c0) * c0_l[r] + sum_of<double>(g_c0);
            }
          }
        }
        put(y0, wy0_row, nr, c0_m + 0);
        put(y1, wy1_row, nr, c0_l + 0);
        put(y2, wy2_row, nr, c1 + 0);
      }
      const int64_t wy3_row_n[] = {n0, n1}, wy3_row_s[] = {y3_i0, y3_i1};
      const Walk wy3_row = walk(row0, nr, 2, wy3_row_n, wy3_row_s, wy3_row_t);
      const int64_t wy5_row_n[] = {n0, n1}, wy5_row_s[] = {y5_i0, y5_i1};
      const Walk wy5_row = walk(row0, nr, 2, wy5_row_n, wy5_row_s, wy5_row_t);
      {
        start(c2, R * n2, float(0));
        start(c4, R, double(0));
        for (int64_t col0 = 0; col0 < cols; col0 += C) {
          const int nc = int(cols - col0 < C ? cols - col0 : C);
#pragma omp parallel for num_threads(inner) if (inner > 1)
          for (int r = 0; r < nr; ++r) {
            const float v13 = c0_m[r];
            const bool v20 = (v13 == float(-INF));
            const float v21 = select_(v20, 0.0f, v13);
            const float v14 = float(c0_l[r]);
            const auto i14 = inverse(v14);
            const int64_t v3 = l1[w1_row(r)];
            for (int first = 0; first < nc; first += CHUNK) {
              const int n = int(nc) - first < CHUNK ? int(nc) - first : CHUNK;
              float h_c4[LANES]; fill(h_c4, float(0));
              const float* q_t6 = t6 + col0 + r * cols + first;
              const int32_t d3 = near_(v3 - (col0 + first));
              float* o_t30 = t30 + r * C + first;
              strips(n, [&](int c, int k) EACH {
                const float v6 = q_t6[c];
                const float v7 = (v6 * 0.5f);
                const float v8 = tanh_(v7);
                const float v9 = (v8 * 2.0f);
                const float v31 = (v9 - v21);
                const float v32 = (v31 * 2.0f);
                const float v33 = exp_(v32);
                const float v34 = (v9 * v33);
                const float v35 = (v34 * v31);
                h_c4[k] += v35;
                const float v22 = (v9 - v13);
                const float v23 = exp_(v22);
                const float v24 = over(v23, i14);
                const bool v11 = (c == d3);
                const float v25 = select_(v11, 1.0f, 0.0f);
                const float v26 = (v24 - v25);
                const float v27 = (v9 * v9);
                const float v28 = (v27 * 0.25f);
                const float v29 = (1.0f - v28);
                const float v30 = (v26 * v29);
                o_t30[c] = v30;
              });
              c4[r] += sum_of<double>(h_c4);
            }
          }
          gemm(blas, int64_t(n2), int64_t(nc), int64_t(nr), turned(m0_row_i2), Mat<float>{t30, C, false}, row0 == 0 ? 0 : 1, y4 + col0, cols);
          const Walk w2_col = {col0 * l2_i3, l2_i3, nullptr};
          const Mat<float> m5_col_i2 = matrix<float>(l2, w2_col, w2_i2, int64_t(nc), int64_t(n2), m5_col_i2_copy, inner);
          if (significant(Mat<float>{t30, C, false}, int64_t(nr), int64_t(nc), t18, 0, which30, kept30, inner)) {
            for (int64_t first = 0, s = 0; first < int64_t(nc); first += STRIP, ++s) {
              const int64_t wide = int64_t(nc) - first < STRIP ? int64_t(nc) - first : STRIP, kept = kept30[s];
              const int64_t* const which = which30 + s * int64_t(nr);
              const Mat<float> some_v30 = rows_of(from(Mat<float>{t30, C, false}, 0, first), which, kept, int64_t(nr), wide, some_v30_copy, inner);
              gemm_rows(blas, which, kept, int64_t(nr), int64_t(n2), wide, some_v30, from(m5_col_i2, first, 0), float(1), c2, n2, part_c2, inner);
            }
          }
          else {
            gemm(blas, int64_t(nr), int64_t(n2), int64_t(nc), Mat<float>{t30, C, false}, m5_col_i2, 1, c2, n2);
          }
        }
#pragma omp parallel for num_threads(inner) if (inner > 1)
        for (int r = 0; r < nr; ++r) {
          put(y3 + wy3_row(r), wy3_i2, n2, c2 + r * n2);
        }
        put(y5, wy5_row, nr, c4 + 0);
      }
    }
  });
}
