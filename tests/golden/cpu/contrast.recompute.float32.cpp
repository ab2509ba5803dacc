#include "fuse_cpu.h"

// arguments, in order
#define UNPACK \
  const int64_t n0 = arg[0], n1 = arg[1], n2 = arg[2], R = arg[3], C = arg[4], spread = arg[5], l0_b = arg[6], l0_i0 = arg[7]; \
  const int64_t l0_i1 = arg[8], l1_b = arg[9], l1_i1 = arg[10], l1_i2 = arg[11], y0_i0 = arg[12], y1_i0 = arg[13], y2_i2 = arg[14], y3_i2 = arg[15]; \
  const int64_t y4_i2 = arg[16], y5_i2 = arg[17], y6_i2 = arg[18], y6_i1 = arg[19], y7_i2 = arg[20], y8_i2 = arg[21]; \
  const int64_t rows = n0; \
  const int64_t cols = n2; \
  (void)0

struct Shared {
  float* c1_m;
  float* c1_o;
  double* c1_l;
  double* c2;
  double* c3;
  double* c7;
  float* c5_v;
  int64_t* c5;
  float* c6;
  int64_t bytes;
  Shared(char* base, const int64_t* arg) {
    UNPACK;
    Arena arena{base};
    c1_m = arena.take<float>(n2);
    c1_o = arena.take<float>(n2);
    c1_l = arena.take<double>(n2);
    c2 = arena.take<double>(n2);
    c3 = arena.take<double>(n2);
    c7 = arena.take<double>(n2);
    c5_v = arena.take<float>(n2);
    c5 = arena.take<int64_t>(n2);
    c6 = arena.take<float>(n2);
    bytes = arena.used;
  }
};

struct Task {
  float* c0_m;
  float* c0_o;
  double* c0_l;
  float* t3;
  float* m0_row_i1_copy;
  float* m2_col_i1_copy;
  float* w_c4;
  int64_t bytes;
  Task(char* base, const int64_t* arg) {
    UNPACK;
    Arena arena{base};
    c0_m = arena.take<float>(R);
    c0_o = arena.take<float>(R);
    c0_l = arena.take<double>(R);
    t3 = arena.take<float>(R * C);
    m0_row_i1_copy = arena.take<float>(spare(R, n1, l0_i0, l0_i1));
    m2_col_i1_copy = arena.take<float>(spare(C, n1, l1_i2, l1_i1));
    w_c4 = arena.take<float>(R * C);
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
  float* const y0 = (float*)buf[2];
  float* const y1 = (float*)buf[3];
  float* const y2 = (float*)buf[4];
  float* const y3 = (float*)buf[5];
  float* const y4 = (float*)buf[6];
  float* const y5 = (float*)buf[7];
  float* const y6 = (float*)buf[8];
  int64_t* const y7 = (int64_t*)buf[9];
  float* const y8 = (float*)buf[10];
  const Shared shared(work, arg);
  float* const c1_m = shared.c1_m;
  float* const c1_o = shared.c1_o;
  double* const c1_l = shared.c1_l;
  double* const c2 = shared.c2;
  double* const c3 = shared.c3;
  double* const c7 = shared.c7;
  float* const c5_v = shared.c5_v;
  int64_t* const c5 = shared.c5;
  float* const c6 = shared.c6;
  large_pages(work, fuse_workspace(arg, outer));
  large_pages(y0, n0 * int64_t(sizeof(float)));
  large_pages(y1, n0 * int64_t(sizeof(float)));
  large_pages(y2, n2 * int64_t(sizeof(float)));
  large_pages(y3, n2 * int64_t(sizeof(float)));
  large_pages(y4, n2 * int64_t(sizeof(float)));
  large_pages(y5, n2 * int64_t(sizeof(float)));
  large_pages(y6, n2 * n1 * int64_t(sizeof(float)));
  large_pages(y7, n2 * int64_t(sizeof(int64_t)));
  large_pages(y8, n2 * int64_t(sizeof(float)));
  start(c1_m, n2, float(-INF));
  start(c1_o, n2, float(-INF));
  start(c1_l, n2, double(0));
  start(c2, n2, double(0));
  start(c3, n2, double(0));
  start(c7, n2, double(0));
  start(y6, n2 * n1, float(0));
  start(c5_v, n2, float(-INF));
  start(c5, n2, int64_t(0));
  start(c6, n2, float(-INF));
  const int64_t tiles = (rows + R - 1) / R, groups = spread ? tiles : 1, each = spread ? 1 : tiles;
  const int64_t tasks = 1 * groups;
  share_out(tasks, outer, [&](int64_t task, int64_t thread) {
    const Task mine(work + shared.bytes + thread * Task(nullptr, arg).bytes, arg);
    float* const c0_m = mine.c0_m;
    float* const c0_o = mine.c0_o;
    double* const c0_l = mine.c0_l;
    float* const t3 = mine.t3;
    float* const m0_row_i1_copy = mine.m0_row_i1_copy;
    float* const m2_col_i1_copy = mine.m2_col_i1_copy;
    float* const w_c4 = mine.w_c4;
    const float* l0 = x0 + l0_b;
    const Walk w0_i1 = {0, l0_i1, nullptr};
    const float* l1 = x1 + l1_b;
    const Walk w1_i1 = {0, l1_i1, nullptr};
    for (int64_t tile = task % groups * each; tile < (task % groups + 1) * each && tile < tiles; ++tile) {
      const int64_t row0 = tile * R;
      const int nr = int(rows - row0 < R ? rows - row0 : R);
      const Walk w0_row = {row0 * l0_i0, l0_i0, nullptr};
      const Mat<float> m0_row_i1 = matrix<float>(l0, w0_row, w0_i1, int64_t(nr), int64_t(n1), m0_row_i1_copy, inner);
      const Walk wy0_row = {row0 * y0_i0, y0_i0, nullptr};
      const Walk wy1_row = {row0 * y1_i0, y1_i0, nullptr};
      {
        start(c0_m, R, float(-INF));
        start(c0_o, R, float(-INF));
        start(c0_l, R, double(0));
        for (int64_t col0 = 0; col0 < cols; col0 += C) {
          const int nc = int(cols - col0 < C ? cols - col0 : C);
          const Walk w1_col = {col0 * l1_i2, l1_i2, nullptr};
          const Mat<float> m2_col_i1 = matrix<float>(l1, w1_col, w1_i1, int64_t(nc), int64_t(n1), m2_col_i1_copy, inner);
          gemm(blas, int64_t(nr), int64_t(nc), int64_t(n1), m0_row_i1, turned(m2_col_i1), 0, t3, C);
#pragma omp parallel for num_threads(inner) if (inner > 1)
          for (int r = 0; r < nr; ++r) {
            for (int first = 0; first < nc; first += CHUNK) {
              const int n = int(nc) - first < CHUNK ? int(nc) - first : CHUNK;
              float h_c0[LANES]; fill(h_c0, float(-INF));
              const float* q_t3 = t3 + r * C + first;
              strips(n, [&](int c, int k) EACH {
                const float v3 = q_t3[c];
                const float v4 = (v3 * 2.0f);
                h_c0[k] = v4 > h_c0[k] ? v4 : h_c0[k];
              });
              const float o_c0 = c0_m[r], x_c0 = top_of(h_c0);
              const float y_c0 = x_c0 > o_c0 ? x_c0 : o_c0;
              const float m_c0 = origin(y_c0);
              const float delta_c0 = drop(o_c0, y_c0);
              c0_m[r] = y_c0;
              float g_c0[LANES]; fill(g_c0, float(0));
              strips(n, [&](int c, int k) EACH {
                const float v3 = q_t3[c];
                const float v4 = (v3 * 2.0f);
                const float z_c0 = v4 - m_c0;
                const float e_c0 = exp_(z_c0);
                g_c0[k] += e_c0;
              });
              c0_l[r] = exp_(delta_c0) * c0_l[r] + sum_of<double>(g_c0);
            }
          }
#pragma omp parallel for num_threads(inner) if (inner > 1)
          for (int first = 0; first < nc; first += WIDE) {
            const int n = int(nc) - first < WIDE ? int(nc) - first : WIDE;
            float h_c1[WIDE]; fill(h_c1, float(-INF));
            float h_c5[WIDE]; fill(h_c5, float(-INF));
            int w_c5[WIDE]; fill(w_c5, 0);
            float h_c6[WIDE]; fill(h_c6, float(-INF));
            for (int r0 = 0; r0 < nr; r0 += BLOCK) {
              for (int r = r0; r < nr && r < r0 + BLOCK; ++r) {
                const float* q_t3 = t3 + r * C + first;
                apart(n, [&](int c, int k) EACH {
                  const float v3 = q_t3[c];
                  const float v4 = (v3 * 2.0f);
                  h_c1[k] = v4 > h_c1[k] ? v4 : h_c1[k];
                  const bool b_c5 = beats(v4, h_c5[k]);
                  h_c5[k] = b_c5 ? v4 : h_c5[k];
                  w_c5[k] = b_c5 ? r : w_c5[k];
                  h_c6[k] = max_(h_c6[k], v4);
                });
              }
            }
            for (int k = 0; k < n; ++k) {
              if (beats(h_c5[k], c5_v[col0 + (first + k)])) { c5_v[col0 + (first + k)] = h_c5[k]; c5[col0 + (first + k)] = row0 + w_c5[k]; }
            }
            for (int k = 0; k < n; ++k) {
              c6[col0 + (first + k)] = max_(c6[col0 + (first + k)], h_c6[k]);
            }
            float m_c1[WIDE], delta_c1[WIDE];
            fill(m_c1, float(0));
            for (int k = 0; k < n; ++k) {
              const float old = c1_m[col0 + (first + k)], top = h_c1[k] > old ? h_c1[k] : old;
              m_c1[k] = origin(top);
              delta_c1[k] = drop(old, top);
              c1_m[col0 + (first + k)] = top;
              c1_o[col0 + (first + k)] = old;
            }
            float g_c1[WIDE]; fill(g_c1, float(0));
            double a_c1[WIDE]; fill(a_c1, double(0));
            float g_c3[WIDE]; fill(g_c3, float(0));
            double a_c3[WIDE]; fill(a_c3, double(0));
            float g_c7[WIDE]; fill(g_c7, float(0));
            double a_c7[WIDE]; fill(a_c7, double(0));
            float g_c2[WIDE]; fill(g_c2, float(0));
            double a_c2[WIDE]; fill(a_c2, double(0));
            for (int r0 = 0; r0 < nr; r0 += BLOCK) {
              for (int r = r0; r < nr && r < r0 + BLOCK; ++r) {
                const float* q_t3 = t3 + r * C + first;
                float* o_w_c4 = w_c4 + r * C + first;
                apart(n, [&](int c, int k) EACH {
                  const float v3 = q_t3[c];
                  const float v4 = (v3 * 2.0f);
                  const float z_c1 = v4 - m_c1[k];
                  const float e_c1 = exp_(z_c1);
                  g_c1[k] += e_c1;
                  g_c3[k] += e_c1 * z_c1 * z_c1;
                  g_c7[k] += e_c1 * z_c1;
                  g_c2[k] += e_c1 * v4;
                  o_w_c4[c] = e_c1;
                });
              }
              flush(a_c1, g_c1);
              flush(a_c3, g_c3);
              flush(a_c7, g_c7);
              flush(a_c2, g_c2);
            }
            for (int k = 0; k < n; ++k) {
              c3[col0 + (first + k)] = exp_(delta_c1[k]) * (c3[col0 + (first + k)] + 1 * delta_c1[k] * delta_c1[k] * c1_l[col0 + (first + k)] + 2 * delta_c1[k] * c7[col0 + (first + k)]) + a_c3[k];
              c7[col0 + (first + k)] = exp_(delta_c1[k]) * (c7[col0 + (first + k)] + 1 * delta_c1[k] * c1_l[col0 + (first + k)]) + a_c7[k];
              c2[col0 + (first + k)] = exp_(delta_c1[k]) * (c2[col0 + (first + k)]) + a_c2[k];
              c1_l[col0 + (first + k)] = exp_(delta_c1[k]) * c1_l[col0 + (first + k)] + a_c1[k];
            }
          }
#pragma omp parallel for num_threads(inner) if (inner > 1)
          for (int j = 0; j < nc; ++j) {
            {
              const float delta = drop(c1_o[col0 + j], c1_m[col0 + j]), rho = exp_(delta);
              for (int f1 = 0; f1 < n1; ++f1) {
                y6[col0 * n1 + j * n1 + f1] = rho * (y6[col0 * n1 + j * n1 + f1]);
              }
            }
          }
          gemm(blas, int64_t(nc), int64_t(n1), int64_t(nr), Mat<float>{w_c4, C, true}, m0_row_i1, 1, y6 + col0 * n1, n1);
        }
        put(y0, wy0_row, nr, c0_m + 0);
        put(y1, wy1_row, nr, c0_l + 0);
      }
    }
  });
  put(y2, Walk{0, 1, nullptr}, n2, c1_m);
  put(y3, Walk{0, 1, nullptr}, n2, c1_l);
  put(y4, Walk{0, 1, nullptr}, n2, c2);
  put(y5, Walk{0, 1, nullptr}, n2, c3);
  put(y7, Walk{0, 1, nullptr}, n2, c5);
  put(y8, Walk{0, 1, nullptr}, n2, c6);
}
