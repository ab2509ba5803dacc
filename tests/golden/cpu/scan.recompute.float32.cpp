#include "fuse_cpu.h"

// arguments, in order
#define UNPACK \
  const int64_t n0 = arg[0], n1 = arg[1], n2 = arg[2], n3 = arg[3], R = arg[4], C = arg[5], spread = arg[6], l0_b = arg[7]; \
  const int64_t l0_i2 = arg[8], l0_i3 = arg[9], l1_b = arg[10], l1_i0 = arg[11], l1_i1 = arg[12], l1_i3 = arg[13], l2_b = arg[14], l2_i0 = arg[15]; \
  const int64_t l2_i1 = arg[16], l2_i2 = arg[17], l3_b = arg[18], l3_i0 = arg[19], l3_i1 = arg[20], l3_i2 = arg[21], l4_b = arg[22], l4_i0 = arg[23]; \
  const int64_t l4_i1 = arg[24], l4_i3 = arg[25], y0_i0 = arg[26], y0_i1 = arg[27], y0_i2 = arg[28]; \
  const int64_t rows = 1; \
  const int64_t cols = n1; \
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
  float* c0;
  float* t12;
  int64_t bytes;
  Task(char* base, const int64_t* arg) {
    UNPACK;
    Arena arena{base};
    c0 = arena.take<float>(n3);
    t12 = arena.take<float>(C);
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
  const float* const x3 = (const float*)buf[3];
  const float* const x4 = (const float*)buf[4];
  float* const y0 = (float*)buf[5];
  const Shared shared(work, arg);
  large_pages(work, fuse_workspace(arg, outer));
  large_pages(y0, n0 * n1 * n2 * int64_t(sizeof(float)));
  const int64_t tiles = (rows + R - 1) / R, groups = spread ? tiles : 1, each = spread ? 1 : tiles;
  const int64_t tasks = n0 * n2 * groups;
  share_out(tasks, outer, [&](int64_t task, int64_t thread) {
    const Task mine(work + shared.bytes + thread * Task(nullptr, arg).bytes, arg);
    float* const c0 = mine.c0;
    float* const t12 = mine.t12;
    const int64_t i0 = digit((task / groups), n2, n0);
    const int64_t i2 = digit((task / groups), 1, n2);
    const float* l0 = x0 + l0_b + i2 * l0_i2;
    const Walk w0_i3 = {0, l0_i3, nullptr};
    const float* l2 = x2 + l2_b + i0 * l2_i0 + i2 * l2_i2;
    const float* l3 = x3 + l3_b + i0 * l3_i0 + i2 * l3_i2;
    const float* l4 = x4 + l4_b + i0 * l4_i0;
    const Walk w4_i3 = {0, l4_i3, nullptr};
    const float* l1 = x1 + l1_b + i0 * l1_i0;
    const Walk w1_i3 = {0, l1_i3, nullptr};
    for (int64_t tile = task % groups * each; tile < (task % groups + 1) * each && tile < tiles; ++tile) {
      const int64_t row0 = tile * R;
      const int nr = int(rows - row0 < R ? rows - row0 : R);
      {
        start(c0, n3, float(0));
        for (int64_t col0 = 0; col0 < cols; col0 += C) {
          const int nc = int(cols - col0 < C ? cols - col0 : C);
          start(t12 + 0, C, float(0));
          const Walk w2_col = {col0 * l2_i1, l2_i1, nullptr};
          const Walk w3_col = {col0 * l3_i1, l3_i1, nullptr};
          const Walk w4_col = {col0 * l4_i1, l4_i1, nullptr};
          const Walk w1_col = {col0 * l1_i1, l1_i1, nullptr};
          blocks(int(n3), [&](int first, auto n) EACH {
            {
              float h_c0[SPAN];
              float* o_c0 = c0 + first;
              lanes(n, [&](int c) EACH {
                h_c0[c] = o_c0[c];
              });
              float b1[SPAN];
              float l0_copy[SPAN];
              const float* l0_line = line(l0, from(w0_i3, first), n, l0_copy);
              lanes(n, [&](int c) EACH {
                const float v0 = l0_line[c];
                const float v1 = (-v0);
                b1[c] = v1;
              });
              for (int j = 0; j < nc; ++j) {
                float r_12[SPAN]; fill(r_12, float(0));
                const float v3 = l2[w2_col(j)];
                const float v6 = l3[w3_col(j)];
                ahead(l4, w4_col, j, from(w4_i3, first), n);
                float l4_copy[SPAN];
                const float* l4_line = line(l4 + w4_col(j), from(w4_i3, first), n, l4_copy);
                ahead(l1, w1_col, j, from(w1_i3, first), n);
                float l1_copy[SPAN];
                const float* l1_line = line(l1 + w1_col(j), from(w1_i3, first), n, l1_copy);
                lanes(n, [&](int c) EACH {
                  const float v4 = (v3 * b1[c]);
                  const float v5 = exp_(v4);
                  const float v7 = l4_line[c];
                  const float v8 = (v6 * v7);
                  const float v9 = (v3 * v8);
                  const float h10 = v5 * h_c0[c] + v9;
                  h_c0[c] = h10;
                  const float v2 = l1_line[c];
                  const float v11 = (v2 * h10);
                  r_12[c] += v11;
                });
                t12[j] += total_of<float>(r_12);
              }
              lanes(n, [&](int c) EACH {
                o_c0[c] = h_c0[c];
              });
            }
          });
          const Walk wy0_col = {col0 * y0_i1, y0_i1, nullptr};
#pragma omp parallel for num_threads(inner) if (inner > 1)
          for (int first = 0; first < nc; first += CHUNK) {
            const int n = int(nc) - first < CHUNK ? int(nc) - first : CHUNK;
            const float* q_t12 = t12 + first;
            float y0_line[CHUNK];
            float* const y0_to = direct(y0 + i0 * y0_i0 + i2 * y0_i2, from(wy0_col, first), y0_line);
            strips(n, [&](int c, int k) EACH {
              const float v12 = q_t12[c];
              y0_to[c] = v12;
            });
            if (y0_to == y0_line) put(y0 + i0 * y0_i0 + i2 * y0_i2, from(wy0_col, first), n, y0_to);
          }
        }
      }
    }
  });
}
