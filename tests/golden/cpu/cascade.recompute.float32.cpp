#include "fuse_cpu.h"

// arguments, in order
#define UNPACK \
  const int64_t n0 = arg[0], n1 = arg[1], n2 = arg[2], n3 = arg[3], n4 = arg[4], R = arg[5], C = arg[6], spread = arg[7]; \
  const int64_t l0_b = arg[8], l0_i0 = arg[9], l0_i1 = arg[10], l0_i2 = arg[11], l0_i3 = arg[12], l1_b = arg[13], l1_i0 = arg[14], l1_i1 = arg[15]; \
  const int64_t l1_i2 = arg[16], l1_i3 = arg[17], l2_b = arg[18], l2_i0 = arg[19], l2_i1 = arg[20], l2_i2 = arg[21], l2_i4 = arg[22], y0_i0 = arg[23]; \
  const int64_t y0_i1 = arg[24], y0_i3 = arg[25], y1_i0 = arg[26], y1_i1 = arg[27], y1_i3 = arg[28], y2_i0 = arg[29], y2_i1 = arg[30], y2_i3 = arg[31]; \
  const int64_t y2_i4 = arg[32], y3_i0 = arg[33], y3_i1 = arg[34], y3_i2 = arg[35], y3_i4 = arg[36], y4_i0 = arg[37], y4_i2 = arg[38], y4_i1 = arg[39]; \
  const int64_t rows = 1; \
  const int64_t cols = n2; \
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
  double* c0;
  double* c1;
  float* c2;
  float* t7;
  float* t9;
  float* t6;
  float* t10;
  float* m11_col_i4_copy;
  float* t15;
  float* t14_col_i3;
  float* t16;
  int64_t bytes;
  Task(char* base, const int64_t* arg) {
    UNPACK;
    Arena arena{base};
    c0 = arena.take<double>(n3);
    c1 = arena.take<double>(n3);
    c2 = arena.take<float>(n3 * n4);
    t7 = arena.take<float>(C);
    t9 = arena.take<float>(C);
    t6 = arena.take<float>(C * n3);
    t10 = arena.take<float>(C * n3);
    m11_col_i4_copy = arena.take<float>(spare(C, n4, l2_i2, l2_i4));
    t15 = arena.take<float>(C * n4);
    t14_col_i3 = arena.take<float>(C * n3);
    t16 = arena.take<float>(C);
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
  float* const y0 = (float*)buf[3];
  float* const y1 = (float*)buf[4];
  float* const y2 = (float*)buf[5];
  float* const y3 = (float*)buf[6];
  float* const y4 = (float*)buf[7];
  const Shared shared(work, arg);
  large_pages(work, fuse_workspace(arg, outer));
  large_pages(y0, n0 * n1 * n3 * int64_t(sizeof(float)));
  large_pages(y1, n0 * n1 * n3 * int64_t(sizeof(float)));
  large_pages(y2, n0 * n1 * n3 * n4 * int64_t(sizeof(float)));
  large_pages(y3, n0 * n1 * n2 * n4 * int64_t(sizeof(float)));
  large_pages(y4, n0 * n2 * n1 * int64_t(sizeof(float)));
  const int64_t tiles = (rows + R - 1) / R, groups = spread ? tiles : 1, each = spread ? 1 : tiles;
  const int64_t tasks = n0 * n1 * groups;
  share_out(tasks, outer, [&](int64_t task, int64_t thread) {
    const Task mine(work + shared.bytes + thread * Task(nullptr, arg).bytes, arg);
    double* const c0 = mine.c0;
    double* const c1 = mine.c1;
    float* const c2 = mine.c2;
    float* const t7 = mine.t7;
    float* const t9 = mine.t9;
    float* const t6 = mine.t6;
    float* const t10 = mine.t10;
    float* const m11_col_i4_copy = mine.m11_col_i4_copy;
    float* const t15 = mine.t15;
    float* const t14_col_i3 = mine.t14_col_i3;
    float* const t16 = mine.t16;
    const int64_t i0 = digit((task / groups), n1, n0);
    const int64_t i1 = digit((task / groups), 1, n1);
    const float* l0 = x0 + l0_b + i0 * l0_i0 + i1 * l0_i1;
    const Walk w0_i3 = {0, l0_i3, nullptr};
    const Walk wy0_i3 = {0, y0_i3, nullptr};
    const float* l1 = x1 + l1_b + i0 * l1_i0 + i1 * l1_i1;
    const Walk w1_i3 = {0, l1_i3, nullptr};
    const float* l2 = x2 + l2_b + i0 * l2_i0 + i1 * l2_i1;
    const Walk w2_i4 = {0, l2_i4, nullptr};
    const Walk wy1_i3 = {0, y1_i3, nullptr};
    const Walk wy2_i3 = {0, y2_i3, nullptr};
    const Walk wy2_i4 = {0, y2_i4, nullptr};
    const Walk wy3_i4 = {0, y3_i4, nullptr};
    for (int64_t tile = task % groups * each; tile < (task % groups + 1) * each && tile < tiles; ++tile) {
      const int64_t row0 = tile * R;
      const int nr = int(rows - row0 < R ? rows - row0 : R);
      {
        start(c0, n3, double(0));
        for (int64_t col0 = 0; col0 < cols; col0 += C) {
          const int nc = int(cols - col0 < C ? cols - col0 : C);
          const Walk w0_col = {col0 * l0_i2, l0_i2, nullptr};
#pragma omp parallel for num_threads(inner) if (inner > 1)
          for (int first = 0; first < n3; first += WIDE) {
            const int n = int(n3) - first < WIDE ? int(n3) - first : WIDE;
            float h_c0[WIDE]; fill(h_c0, float(0));
            double a_c0[WIDE]; fill(a_c0, double(0));
            for (int j0 = 0; j0 < nc; j0 += BLOCK) {
              for (int j = j0; j < nc && j < j0 + BLOCK; ++j) {
                ahead(l0, w0_col, j, from(w0_i3, first), n);
                float l0_copy[WIDE];
                const float* l0_line = line(l0 + w0_col(j), from(w0_i3, first), n, l0_copy);
                apart(n, [&](int c, int k) EACH {
                  const float v0 = l0_line[c];
                  const float v1 = sigmoid_(v0);
                  h_c0[k] += v1;
                });
              }
              flush(a_c0, h_c0);
            }
            for (int k = 0; k < n; ++k) {
              c0[(first + k)] += a_c0[k];
            }
          }
        }
        put(y0 + i0 * y0_i0 + i1 * y0_i1, wy0_i3, n3, c0 + 0);
      }
      {
        start(c1, n3, double(0));
        start(c2, n3 * n4, float(0));
        for (int64_t col0 = 0; col0 < cols; col0 += C) {
          const int nc = int(cols - col0 < C ? cols - col0 : C);
          const Walk w1_col = {col0 * l1_i2, l1_i2, nullptr};
          const Walk w2_col = {col0 * l2_i2, l2_i2, nullptr};
          const Walk w0_col = {col0 * l0_i2, l0_i2, nullptr};
          {
#pragma omp parallel for num_threads(inner) if (inner > 1)
            for (int j = 0; j < nc; ++j) {
              double total7 = 0;
              float total9 = float(-INF);
              for (int first = 0; first < n3; first += CHUNK) {
                const int n = int(n3) - first < CHUNK ? int(n3) - first : CHUNK;
                float h7[LANES]; fill(h7, float(0));
                float h9[LANES]; fill(h9, float(float(-INF)));
                ahead(l1, w1_col, j, from(w1_i3, first), n);
                ahead(l2, w2_col, j, w2_i4, n4);
                float l1_copy[CHUNK];
                const float* l1_line = line(l1 + w1_col(j), from(w1_i3, first), n, l1_copy);
                float* o_t6 = t6 + j * n3 + first;
                const double* q_c0 = c0 + first;
                ahead(l0, w0_col, j, from(w0_i3, first), n);
                float l0_copy[CHUNK];
                const float* l0_line = line(l0 + w0_col(j), from(w0_i3, first), n, l0_copy);
                strips(n, [&](int c, int k) EACH {
                  const float v5 = l1_line[c];
                  const float v6 = sigmoid_(v5);
                  o_t6[c] = v6;
                  const float v2 = float(q_c0[c]);
                  const float v4 = (v2 + 1e-06f);
                  const float v18 = (v6 * v4);
                  h7[k] += v18;
                  const float v0 = l0_line[c];
                  h9[k] = max_(h9[k], v0);
                });
                total7 += sum_of<double>(h7);
                total9 = max_(total9, max_of(h9));
              }
              t7[j] = total7;
              t9[j] = total9;
            }
          }
#pragma omp parallel for num_threads(inner) if (inner > 1)
          for (int j = 0; j < nc; ++j) {
            const float v9 = t9[j];
            for (int first = 0; first < n3; first += CHUNK) {
              const int n = int(n3) - first < CHUNK ? int(n3) - first : CHUNK;
              ahead(l0, w0_col, j, from(w0_i3, first), n);
              float l0_copy[CHUNK];
              const float* l0_line = line(l0 + w0_col(j), from(w0_i3, first), n, l0_copy);
              float* o_t10 = t10 + j * n3 + first;
              strips(n, [&](int c, int k) EACH {
                const float v0 = l0_line[c];
                const float v1 = sigmoid_(v0);
                const float v10 = (v1 * v9);
                o_t10[c] = v10;
              });
            }
          }
          const Walk wy4_col = {col0 * y4_i2, y4_i2, nullptr};
#pragma omp parallel for num_threads(inner) if (inner > 1)
          for (int first = 0; first < nc; first += CHUNK) {
            const int n = int(nc) - first < CHUNK ? int(nc) - first : CHUNK;
            const float* q_t7 = t7 + first;
            float y4_line[CHUNK];
            float* const y4_to = direct(y4 + i0 * y4_i0 + i1 * y4_i1, from(wy4_col, first), y4_line);
            strips(n, [&](int c, int k) EACH {
              const float v7 = q_t7[c];
              y4_to[c] = v7;
            });
            if (y4_to == y4_line) put(y4 + i0 * y4_i0 + i1 * y4_i1, from(wy4_col, first), n, y4_to);
          }
#pragma omp parallel for num_threads(inner) if (inner > 1)
          for (int first = 0; first < n3; first += WIDE) {
            const int n = int(n3) - first < WIDE ? int(n3) - first : WIDE;
            float h_c1[WIDE]; fill(h_c1, float(0));
            double a_c1[WIDE]; fill(a_c1, double(0));
            for (int j0 = 0; j0 < nc; j0 += BLOCK) {
              for (int j = j0; j < nc && j < j0 + BLOCK; ++j) {
                const float* q_t6 = t6 + j * n3 + first;
                const float v7 = t7[j];
                const auto i7 = inverse(v7);
                apart(n, [&](int c, int k) EACH {
                  const float v6 = q_t6[c];
                  const float v8 = over(v6, i7);
                  h_c1[k] += v8;
                });
              }
              flush(a_c1, h_c1);
            }
            for (int k = 0; k < n; ++k) {
              c1[(first + k)] += a_c1[k];
            }
          }
          const Mat<float> m11_col_i4 = matrix<float>(l2, w2_col, w2_i4, int64_t(nc), int64_t(n4), m11_col_i4_copy, inner);
          gemm(blas, int64_t(n3), int64_t(n4), int64_t(nc), turned(Mat<float>{t10, n3, false}), m11_col_i4, 1, c2, n4);
        }
        put(y1 + i0 * y1_i0 + i1 * y1_i1, wy1_i3, n3, c1 + 0);
#pragma omp parallel for num_threads(inner) if (inner > 1)
        for (int f3 = 0; f3 < n3; ++f3) {
          put(y2 + i0 * y2_i0 + i1 * y2_i1 + wy2_i3(f3), wy2_i4, n4, c2 + f3 * n4);
        }
      }
      {
        for (int64_t col0 = 0; col0 < cols; col0 += C) {
          const int nc = int(cols - col0 < C ? cols - col0 : C);
          const Walk w1_col = {col0 * l1_i2, l1_i2, nullptr};
          const Walk wy3_col = {col0 * y3_i2, y3_i2, nullptr};
          {
#pragma omp parallel for num_threads(inner) if (inner > 1)
            for (int j = 0; j < nc; ++j) {
              double total7 = 0;
              for (int first = 0; first < n3; first += CHUNK) {
                const int n = int(n3) - first < CHUNK ? int(n3) - first : CHUNK;
                float h7[LANES]; fill(h7, float(0));
                ahead(l1, w1_col, j, from(w1_i3, first), n);
                claim(y3 + i0 * y3_i0 + i1 * y3_i1, wy3_col, j, wy3_i4, n4);
                float l1_copy[CHUNK];
                const float* l1_line = line(l1 + w1_col(j), from(w1_i3, first), n, l1_copy);
                float* o_t6 = t6 + j * n3 + first;
                const double* q_c0 = c0 + first;
                strips(n, [&](int c, int k) EACH {
                  const float v5 = l1_line[c];
                  const float v6 = sigmoid_(v5);
                  o_t6[c] = v6;
                  const float v2 = float(q_c0[c]);
                  const float v4 = (v2 + 1e-06f);
                  const float v19 = (v6 * v4);
                  h7[k] += v19;
                });
                total7 += sum_of<double>(h7);
              }
              t7[j] = total7;
            }
          }
#pragma omp parallel for num_threads(inner) if (inner > 1)
          for (int j = 0; j < nc; ++j) {
            for (int first = 0; first < n3; first += CHUNK) {
              const int n = int(n3) - first < CHUNK ? int(n3) - first : CHUNK;
              const float* q_t6 = t6 + j * n3 + first;
              const double* q_c1 = c1 + first;
              float* o_t14_col_i3 = t14_col_i3 + j * n3 + first;
              strips(n, [&](int c, int k) EACH {
                const float v6 = q_t6[c];
                const float v12 = float(q_c1[c]);
                const float v14 = (v6 * v12);
                o_t14_col_i3[c] = v14;
              });
            }
          }
          gemm(blas, int64_t(nc), int64_t(n4), int64_t(n3), Mat<float>{t14_col_i3, n3, false}, Mat<float>{c2, n4, false}, 0, t15, n4);
#pragma omp parallel for num_threads(inner) if (inner > 1)
          for (int first = 0; first < nc; first += CHUNK) {
            const int n = int(nc) - first < CHUNK ? int(nc) - first : CHUNK;
            const float* q_t7 = t7 + first;
            float* o_t16 = t16 + first;
            strips(n, [&](int c, int k) EACH {
              const float v7 = q_t7[c];
              const float v16 = sigmoid_(v7);
              o_t16[c] = v16;
            });
          }
#pragma omp parallel for num_threads(inner) if (inner > 1)
          for (int j = 0; j < nc; ++j) {
            const float v16 = t16[j];
            for (int first = 0; first < n4; first += CHUNK) {
              const int n = int(n4) - first < CHUNK ? int(n4) - first : CHUNK;
              const float* q_t15 = t15 + j * n4 + first;
              float y3_line[CHUNK];
              float* const y3_to = direct(y3 + i0 * y3_i0 + i1 * y3_i1 + wy3_col(j), from(wy3_i4, first), y3_line);
              strips(n, [&](int c, int k) EACH {
                const float v15 = q_t15[c];
                const float v17 = (v15 * v16);
                y3_to[c] = v17;
              });
              if (y3_to == y3_line) put(y3 + i0 * y3_i0 + i1 * y3_i1 + wy3_col(j), from(wy3_i4, first), n, y3_to);
            }
          }
        }
      }
    }
  });
}
