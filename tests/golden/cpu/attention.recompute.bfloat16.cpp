#include "fuse_cpu.h"

// arguments, in order
#define UNPACK \
  const int64_t n0 = arg[0], n1 = arg[1], n2 = arg[2], n3 = arg[3], n4 = arg[4], n5 = arg[5], p0 = arg[6], R = arg[7]; \
  const int64_t C = arg[8], spread = arg[9], l0_b = arg[10], l0_i1 = arg[11], l0_i2 = arg[12], l0_i3 = arg[13], l0_i4 = arg[14], l1_b = arg[15]; \
  const int64_t l1_i0 = arg[16], l1_i2 = arg[17], l2_b = arg[18], l2_i0 = arg[19], l2_i2 = arg[20], l2_i4 = arg[21], l2_d0 = arg[22], l3_b = arg[23]; \
  const int64_t l3_i0 = arg[24], l3_i1 = arg[25], l3_i3 = arg[26], l4_b = arg[27], l4_i0 = arg[28], l5_b = arg[29], l5_i0 = arg[30], l5_i2 = arg[31]; \
  const int64_t l5_i3 = arg[32], l5_i5 = arg[33], y0_i2 = arg[34], y0_i3 = arg[35], y0_i1 = arg[36], y1_i2 = arg[37], y1_i3 = arg[38], y1_i1 = arg[39]; \
  const int64_t y2_i2 = arg[40], y2_i3 = arg[41], y2_i1 = arg[42], y2_i5 = arg[43], y3_i2 = arg[44], y3_i3 = arg[45], y3_i1 = arg[46], y3_i5 = arg[47]; \
  const int64_t rows = n1; \
  const int64_t cols = n0; \
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
  float* c1;
  float* c2;
  float* c3;
  float* t18;
  float* m2_row_i4_copy;
  float* m17_col_i4_copy;
  float* w_c2;
  float* w_c1;
  float* w_c3;
  bool* l1_copy;
  bf16* l3_tile_copy;
  bf16* l4_copy;
  float* m27_col_i5_copy;
  int64_t bytes;
  Task(char* base, const int64_t* arg) {
    UNPACK;
    Arena arena{base};
    c0_m = arena.take<float>(R);
    c0_o = arena.take<float>(R);
    c0_l = arena.take<double>(R);
    c1 = arena.take<float>(R * n5);
    c2 = arena.take<float>(R * n5);
    c3 = arena.take<float>(R * n5);
    t18 = arena.take<float>(R * C);
    m2_row_i4_copy = arena.take<float>(R * n4);
    m17_col_i4_copy = arena.take<float>(C * n4);
    w_c2 = arena.take<float>(R * C);
    w_c1 = arena.take<float>(R * C);
    w_c3 = arena.take<float>(R * C);
    l1_copy = arena.take<bool>(C);
    l3_tile_copy = arena.take<bf16>((l3_i0 == 1 ? 0 : R * (C + 16)));
    l4_copy = arena.take<bf16>(C);
    m27_col_i5_copy = arena.take<float>(C * n5);
    bytes = arena.used;
  }
};

extern "C" int64_t fuse_workspace(const int64_t* arg, int outer) {
  return Shared(nullptr, arg).bytes + outer * Task(nullptr, arg).bytes;
}

extern "C" void fuse_kernel(void* const* buf, const int64_t* arg, const Blas& blas, char* work, int outer,
                            int inner) {
  UNPACK;
  const bf16* const x0 = (const bf16*)buf[0];
  const bool* const x1 = (const bool*)buf[1];
  const bf16* const x2 = (const bf16*)buf[2];
  const bf16* const x3 = (const bf16*)buf[3];
  const bf16* const x4 = (const bf16*)buf[4];
  const bf16* const x5 = (const bf16*)buf[5];
  float* const y0 = (float*)buf[6];
  float* const y1 = (float*)buf[7];
  float* const y2 = (float*)buf[8];
  float* const y3 = (float*)buf[9];
  const Shared shared(work, arg);
  large_pages(work, fuse_workspace(arg, outer));
  large_pages(y0, n2 * n3 * n1 * int64_t(sizeof(float)));
  large_pages(y1, n2 * n3 * n1 * int64_t(sizeof(float)));
  large_pages(y2, n2 * n3 * n1 * n5 * int64_t(sizeof(float)));
  large_pages(y3, n2 * n3 * n1 * n5 * int64_t(sizeof(float)));
  const int64_t tiles = (rows + R - 1) / R, groups = spread ? tiles : 1, each = spread ? 1 : tiles;
  const int64_t tasks = n2 * n3 * groups;
  share_out(tasks, outer, [&](int64_t task, int64_t thread) {
    const Task mine(work + shared.bytes + thread * Task(nullptr, arg).bytes, arg);
    float* const c0_m = mine.c0_m;
    float* const c0_o = mine.c0_o;
    double* const c0_l = mine.c0_l;
    float* const c1 = mine.c1;
    float* const c2 = mine.c2;
    float* const c3 = mine.c3;
    float* const t18 = mine.t18;
    float* const m2_row_i4_copy = mine.m2_row_i4_copy;
    float* const m17_col_i4_copy = mine.m17_col_i4_copy;
    float* const w_c2 = mine.w_c2;
    float* const w_c1 = mine.w_c1;
    float* const w_c3 = mine.w_c3;
    bool* const l1_copy = mine.l1_copy;
    bf16* const l3_tile_copy = mine.l3_tile_copy;
    bf16* const l4_copy = mine.l4_copy;
    float* const m27_col_i5_copy = mine.m27_col_i5_copy;
    const int64_t i2 = digit((task / groups), n3, n2);
    const int64_t i3 = digit((task / groups), 1, n3);
    const bf16* l0 = x0 + l0_b + i2 * l0_i2 + i3 * l0_i3;
    const Walk w0_i4 = {0, l0_i4, nullptr};
    const int64_t v3 = i3;
    const int64_t v5 = floordiv_(v3, int64_t(2));
    const int64_t v7 = min_(v5, p0);
    const int64_t v9 = max_(v7, int64_t(0));
    const bf16* l2 = x2 + l2_b + i2 * l2_i2 + v9 * l2_d0;
    const Walk w2_i4 = {0, l2_i4, nullptr};
    const bool* l1 = x1 + l1_b + i2 * l1_i2;
    const bf16* l3 = x3 + l3_b + i3 * l3_i3;
    const bf16* l4 = x4 + l4_b;
    const bf16* l5 = x5 + l5_b + i2 * l5_i2 + i3 * l5_i3;
    const Walk w5_i5 = {0, l5_i5, nullptr};
    const Walk wy2_i5 = {0, y2_i5, nullptr};
    const Walk wy3_i5 = {0, y3_i5, nullptr};
    for (int64_t tile = task % groups * each; tile < (task % groups + 1) * each && tile < tiles; ++tile) {
      const int64_t row0 = tile * R;
      const int nr = int(rows - row0 < R ? rows - row0 : R);
      const Walk w0_row = {row0 * l0_i1, l0_i1, nullptr};
      const Mat<float> m2_row_i4 = matrix<float>(l0, w0_row, w0_i4, int64_t(nr), int64_t(n4), m2_row_i4_copy, inner);
      const Walk w3_row = {row0 * l3_i1, l3_i1, nullptr};
      const Walk wy0_row = {row0 * y0_i1, y0_i1, nullptr};
      const Walk wy1_row = {row0 * y1_i1, y1_i1, nullptr};
      const Walk wy2_row = {row0 * y2_i1, y2_i1, nullptr};
      const Walk wy3_row = {row0 * y3_i1, y3_i1, nullptr};
      {
        start(c0_m, R, float(-INF));
        start(c0_o, R, float(-INF));
        start(c0_l, R, double(0));
        start(c1, R * n5, float(0));
        start(c2, R * n5, float(0));
        start(c3, R * n5, float(0));
        for (int64_t col0 = 0; col0 < cols; col0 += C) {
          const int nc = int(cols - col0 < C ? cols - col0 : C);
          const Walk w2_col = {col0 * l2_i0, l2_i0, nullptr};
          const Mat<float> m17_col_i4 = matrix<float>(l2, w2_col, w2_i4, int64_t(nc), int64_t(n4), m17_col_i4_copy, inner);
          gemm(blas, int64_t(nr), int64_t(nc), int64_t(n4), m2_row_i4, turned(m17_col_i4), 0, t18, C);
          const Walk w1_col = {col0 * l1_i0, l1_i0, nullptr};
          const bool* l1_line = line(l1, w1_col, nc, l1_copy);
          const Walk w3_col = {col0 * l3_i0, l3_i0, nullptr};
          const auto l3_tile = upright(l3, w3_row, w3_col, nr, nc, l3_tile_copy, inner);
          const Walk w4_col = {col0 * l4_i0, l4_i0, nullptr};
          const bf16* l4_line = line(l4, w4_col, nc, l4_copy);
#pragma omp parallel for num_threads(inner) if (inner > 1)
          for (int r = 0; r < nr; ++r) {
            float top_c0 = float(-INF);
            const int64_t v0 = int64_t(row0 + r);
            for (int first = 0; first < nc; first += CHUNK) {
              const int n = int(nc) - first < CHUNK ? int(nc) - first : CHUNK;
              float h_c0[LANES]; fill(h_c0, float(-INF));
              const int32_t d0 = near_(v0 - (col0 + first));
              const float* q_t18 = t18 + r * C + first;
              ahead(l3_tile.p, l3_tile.row, r, from(l3_tile.col, first), n);
              bf16 l3_copy[CHUNK];
              const bf16* l3_line = line(l3_tile.p + l3_tile.row(r), from(l3_tile.col, first), n, l3_copy);
              strips(n, [&](int c, int k) EACH {
                const bool v13 = (c <= d0);
                const bool v14 = l1_line[first + c];
                const bool v15 = (v13 & v14);
                const float v18 = q_t18[c];
                const float v19 = (v18 * 0.3f);
                const bf16 v20 = l3_line[c];
                const float v21 = float(v20);
                const float v22 = (v19 + v21);
                const float v23 = select_(v15, v22, float(-INF));
                h_c0[k] = v23 > h_c0[k] ? v23 : h_c0[k];
              });
              const auto t_c0 = top_of(h_c0);
              top_c0 = t_c0 > top_c0 ? t_c0 : top_c0;
            }
            const float o_c0 = c0_m[r], x_c0 = top_c0;
            const float y_c0 = x_c0 > o_c0 ? x_c0 : o_c0;
            const float m_c0 = origin(y_c0);
            const float delta_c0 = drop(o_c0, y_c0);
            c0_m[r] = y_c0;
            c0_o[r] = o_c0;
            double total_c0 = 0;
            for (int first = 0; first < nc; first += CHUNK) {
              const int n = int(nc) - first < CHUNK ? int(nc) - first : CHUNK;
              float g_c0[LANES]; fill(g_c0, float(0));
              const int32_t d0 = near_(v0 - (col0 + first));
              const float* q_t18 = t18 + r * C + first;
              ahead(l3_tile.p, l3_tile.row, r, from(l3_tile.col, first), n);
              bf16 l3_copy[CHUNK];
              const bf16* l3_line = line(l3_tile.p + l3_tile.row(r), from(l3_tile.col, first), n, l3_copy);
              float* o_w_c2 = w_c2 + r * C + first;
              float* o_w_c1 = w_c1 + r * C + first;
              float* o_w_c3 = w_c3 + r * C + first;
              strips(n, [&](int c, int k) EACH {
                const bool v13 = (c <= d0);
                const bool v14 = l1_line[first + c];
                const bool v15 = (v13 & v14);
                const float v18 = q_t18[c];
                const float v19 = (v18 * 0.3f);
                const bf16 v20 = l3_line[c];
                const float v21 = float(v20);
                const float v22 = (v19 + v21);
                const float v23 = select_(v15, v22, float(-INF));
                const float z_c0 = v23 - m_c0;
                const float e_c0 = exp_(z_c0);
                g_c0[k] += e_c0;
                const bf16 v24 = l4_line[first + c];
                const float v25 = float(v24);
                o_w_c2[c] = e_c0 * z_c0 * v25;
                o_w_c1[c] = e_c0;
                o_w_c3[c] = e_c0 * v25;
              });
              total_c0 += sum_of<double>(g_c0);
            }
            c0_l[r] = exp_(delta_c0) * c0_l[r] + total_c0;
          }
#pragma omp parallel for num_threads(inner) if (inner > 1)
          for (int r = 0; r < nr; ++r) {
            {
              const float delta = drop(c0_o[r], c0_m[r]), rho = exp_(delta);
              for (int f5 = 0; f5 < n5; ++f5) {
                c2[r * n5 + f5] = rho * (c2[r * n5 + f5] + 1 * delta * c3[r * n5 + f5]);
              }
            }
          }
          const Walk w5_col = {col0 * l5_i0, l5_i0, nullptr};
          const Mat<float> m27_col_i5 = matrix<float>(l5, w5_col, w5_i5, int64_t(nc), int64_t(n5), m27_col_i5_copy, inner);
          gemm(blas, int64_t(nr), int64_t(n5), int64_t(nc), Mat<float>{w_c2, C, false}, m27_col_i5, 1, c2, n5);
#pragma omp parallel for num_threads(inner) if (inner > 1)
          for (int r = 0; r < nr; ++r) {
            {
              const float delta = drop(c0_o[r], c0_m[r]), rho = exp_(delta);
              for (int f5 = 0; f5 < n5; ++f5) {
                c1[r * n5 + f5] = rho * (c1[r * n5 + f5]);
              }
            }
          }
          gemm(blas, int64_t(nr), int64_t(n5), int64_t(nc), Mat<float>{w_c1, C, false}, m27_col_i5, 1, c1, n5);
#pragma omp parallel for num_threads(inner) if (inner > 1)
          for (int r = 0; r < nr; ++r) {
            {
              const float delta = drop(c0_o[r], c0_m[r]), rho = exp_(delta);
              for (int f5 = 0; f5 < n5; ++f5) {
                c3[r * n5 + f5] = rho * (c3[r * n5 + f5]);
              }
            }
          }
          gemm(blas, int64_t(nr), int64_t(n5), int64_t(nc), Mat<float>{w_c3, C, false}, m27_col_i5, 1, c3, n5);
        }
        put(y0 + i2 * y0_i2 + i3 * y0_i3, wy0_row, nr, c0_m + 0);
        put(y1 + i2 * y1_i2 + i3 * y1_i3, wy1_row, nr, c0_l + 0);
#pragma omp parallel for num_threads(inner) if (inner > 1)
        for (int r = 0; r < nr; ++r) {
          put(y2 + i2 * y2_i2 + i3 * y2_i3 + wy2_row(r), wy2_i5, n5, c1 + r * n5);
        }
#pragma omp parallel for num_threads(inner) if (inner > 1)
        for (int r = 0; r < nr; ++r) {
          put(y3 + i2 * y3_i2 + i3 * y3_i3 + wy3_row(r), wy3_i5, n5, c2 + r * n5);
        }
      }
    }
  });
}
