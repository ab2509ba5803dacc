#include "fuse_cpu.h"

// arguments, in order
#define UNPACK \
  const int64_t n0 = arg[0], n1 = arg[1], n2 = arg[2], n3 = arg[3], R = arg[4], C = arg[5], spread = arg[6], l0_b = arg[7]; \
  const int64_t l0_i0 = arg[8], l0_i1 = arg[9], l0_i2 = arg[10], l1_b = arg[11], l1_i0 = arg[12], l1_i1 = arg[13], l2_b = arg[14], l2_i2 = arg[15]; \
  const int64_t l2_i3 = arg[16], y0_i0 = arg[17], y0_i1 = arg[18], y1_i0 = arg[19], y1_i1 = arg[20], y2_i0 = arg[21], y2_i1 = arg[22], y3_i0 = arg[23]; \
  const int64_t y3_i1 = arg[24], y4_i0 = arg[25], y4_i1 = arg[26], y5_i0 = arg[27], y5_i1 = arg[28], y6_i0 = arg[29], y6_i1 = arg[30]; \
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
  float* c0_m;
  float* c0_o;
  double* c0_l;
  double* c1;
  float* c2;
  float* c3_v;
  int64_t* c3;
  double* c4;
  double* c5;
  float* t4;
  int64_t* w0_row_t;
  float* m0_row_i2_copy;
  float* m3_col_i2_copy;
  int64_t* w1_row_t;
  int64_t* wy0_row_t;
  int64_t* wy1_row_t;
  int64_t* wy2_row_t;
  int64_t* wy3_row_t;
  int64_t* wy4_row_t;
  int64_t* wy5_row_t;
  int64_t* wy6_row_t;
  int64_t bytes;
  Task(char* base, const int64_t* arg) {
    UNPACK;
    Arena arena{base};
    c0_m = arena.take<float>(R);
    c0_o = arena.take<float>(R);
    c0_l = arena.take<double>(R);
    c1 = arena.take<double>(R);
    c2 = arena.take<float>(R);
    c3_v = arena.take<float>(R);
    c3 = arena.take<int64_t>(R);
    c4 = arena.take<double>(R);
    c5 = arena.take<double>(R);
    t4 = arena.take<float>(R * C);
    w0_row_t = arena.take<int64_t>(R);
    m0_row_i2_copy = arena.take<float>(R * n2);
    m3_col_i2_copy = arena.take<float>(spare(C, n2, l2_i3, l2_i2));
    w1_row_t = arena.take<int64_t>(R);
    wy0_row_t = arena.take<int64_t>(R);
    wy1_row_t = arena.take<int64_t>(R);
    wy2_row_t = arena.take<int64_t>(R);
    wy3_row_t = arena.take<int64_t>(R);
    wy4_row_t = arena.take<int64_t>(R);
    wy5_row_t = arena.take<int64_t>(R);
    wy6_row_t = arena.take<int64_t>(R);
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
  int64_t* const y4 = (int64_t*)buf[7];
  float* const y5 = (float*)buf[8];
  float* const y6 = (float*)buf[9];
  const Shared shared(work, arg);
  large_pages(work, fuse_workspace(arg, outer));
  large_pages(y0, n0 * n1 * int64_t(sizeof(float)));
  large_pages(y1, n0 * n1 * int64_t(sizeof(float)));
  large_pages(y2, n0 * n1 * int64_t(sizeof(float)));
  large_pages(y3, n0 * n1 * int64_t(sizeof(float)));
  large_pages(y4, n0 * n1 * int64_t(sizeof(int64_t)));
  large_pages(y5, n0 * n1 * int64_t(sizeof(float)));
  large_pages(y6, n0 * n1 * int64_t(sizeof(float)));
  const int64_t tiles = (rows + R - 1) / R, groups = spread ? tiles : 1, each = spread ? 1 : tiles;
  const int64_t tasks = 1 * groups;
  share_out(tasks, outer, [&](int64_t task, int64_t thread) {
    const Task mine(work + shared.bytes + thread * Task(nullptr, arg).bytes, arg);
    float* const c0_m = mine.c0_m;
    float* const c0_o = mine.c0_o;
    double* const c0_l = mine.c0_l;
    double* const c1 = mine.c1;
    float* const c2 = mine.c2;
    float* const c3_v = mine.c3_v;
    int64_t* const c3 = mine.c3;
    double* const c4 = mine.c4;
    double* const c5 = mine.c5;
    float* const t4 = mine.t4;
    int64_t* const w0_row_t = mine.w0_row_t;
    float* const m0_row_i2_copy = mine.m0_row_i2_copy;
    float* const m3_col_i2_copy = mine.m3_col_i2_copy;
    int64_t* const w1_row_t = mine.w1_row_t;
    int64_t* const wy0_row_t = mine.wy0_row_t;
    int64_t* const wy1_row_t = mine.wy1_row_t;
    int64_t* const wy2_row_t = mine.wy2_row_t;
    int64_t* const wy3_row_t = mine.wy3_row_t;
    int64_t* const wy4_row_t = mine.wy4_row_t;
    int64_t* const wy5_row_t = mine.wy5_row_t;
    int64_t* const wy6_row_t = mine.wy6_row_t;
    const float* l0 = x0 + l0_b;
    const Walk w0_i2 = {0, l0_i2, nullptr};
    const float* l2 = x2 + l2_b;
    const Walk w2_i2 = {0, l2_i2, nullptr};
    const int64_t* l1 = x1 + l1_b;
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
      const int64_t wy3_row_n[] = {n0, n1}, wy3_row_s[] = {y3_i0, y3_i1};
      const Walk wy3_row = walk(row0, nr, 2, wy3_row_n, wy3_row_s, wy3_row_t);
      const int64_t wy4_row_n[] = {n0, n1}, wy4_row_s[] = {y4_i0, y4_i1};
      const Walk wy4_row = walk(row0, nr, 2, wy4_row_n, wy4_row_s, wy4_row_t);
      const int64_t wy5_row_n[] = {n0, n1}, wy5_row_s[] = {y5_i0, y5_i1};
      const Walk wy5_row = walk(row0, nr, 2, wy5_row_n, wy5_row_s, wy5_row_t);
      const int64_t wy6_row_n[] = {n0, n1}, wy6_row_s[] = {y6_i0, y6_i1};
      const Walk wy6_row = walk(row0, nr, 2, wy6_row_n, wy6_row_s, wy6_row_t);
      {
        start(c0_m, R, float(-INF));
        start(c0_o, R, float(-INF));
        start(c0_l, R, double(0));
        start(c1, R, double(0));
        start(c2, R, float(-INF));
        start(c3_v, R, float(-INF));
        start(c3, R, int64_t(0));
        start(c4, R, double(0));
        start(c5, R, double(0));
        for (int64_t col0 = 0; col0 < cols; col0 += C) {
          const int nc = int(cols - col0 < C ? cols - col0 : C);
          const Walk w2_col = {col0 * l2_i3, l2_i3, nullptr};
          const Mat<float> m3_col_i2 = matrix<float>(l2, w2_col, w2_i2, int64_t(nc), int64_t(n2), m3_col_i2_copy, inner);
          gemm(blas, int64_t(nr), int64_t(nc), int64_t(n2), m0_row_i2, turned(m3_col_i2), 0, t4, C);
#pragma omp parallel for num_threads(inner) if (inner > 1)
          for (int r = 0; r < nr; ++r) {
            const int64_t v1 = l1[w1_row(r)];
            for (int first = 0; first < nc; first += CHUNK) {
              const int n = int(nc) - first < CHUNK ? int(nc) - first : CHUNK;
              float h_c0[LANES]; fill(h_c0, float(-INF));
              float h_c1[LANES]; fill(h_c1, float(0));
              float h_c2[LANES]; fill(h_c2, float(-INF));
              float h_c3[LANES]; fill(h_c3, float(-INF));
              int w_c3[LANES]; fill(w_c3, 0);
              float h_c4[LANES]; fill(h_c4, float(0));
              const float* q_t4 = t4 + r * C + first;
              const int32_t d1 = near_(v1 - (col0 + first));
              strips(n, [&](int c, int k) EACH {
                const float v4 = q_t4[c];
                h_c0[k] = v4 > h_c0[k] ? v4 : h_c0[k];
                const bool v6 = (c == d1);
                const float v7 = select_(v6, v4, 0.0f);
                h_c1[k] += v7;
                h_c2[k] = max_(h_c2[k], v4);
                const bool b_c3 = beats(v4, h_c3[k]);
                h_c3[k] = b_c3 ? v4 : h_c3[k];
                w_c3[k] = b_c3 ? c : w_c3[k];
                h_c4[k] += v4;
              });
              c1[r] += sum_of<double>(h_c1);
              c2[r] = max_(c2[r], max_of(h_c2));
              take_first(h_c3, w_c3, col0 + first, c3_v[r], c3[r]);
              c4[r] += sum_of<double>(h_c4);
              const float o_c0 = c0_m[r], x_c0 = top_of(h_c0);
              const float y_c0 = x_c0 > o_c0 ? x_c0 : o_c0;
              const float m_c0 = origin(y_c0);
              const float delta_c0 = drop(o_c0, y_c0);
              c0_m[r] = y_c0;
              float g_c0[LANES]; fill(g_c0, float(0));
              float g_c5[LANES]; fill(g_c5, float(0));
              strips(n, [&](int c, int k) EACH {
                const float v4 = q_t4[c];
                const float z_c0 = v4 - m_c0;
                const float e_c0 = exp_(z_c0);
                g_c0[k] += e_c0;
                g_c5[k] += e_c0 * z_c0;
              });
              c5[r] = exp_(delta_c0) * (c5[r] + 1 * delta_c0 * c0_l[r]) + sum_of<double>(g_c5);
              c0_l[r] = exp_(delta_c0) * c0_l[r] + sum_of<double>(g_c0);
            }
          }
        }
        put(y0, wy0_row, nr, c0_m + 0);
        put(y1, wy1_row, nr, c0_l + 0);
        put(y2, wy2_row, nr, c1 + 0);
        put(y3, wy3_row, nr, c2 + 0);
        put(y4, wy4_row, nr, c3 + 0);
        put(y5, wy5_row, nr, c4 + 0);
        put(y6, wy6_row, nr, c5 + 0);
      }
    }
  });
}
