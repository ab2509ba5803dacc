import triton
import triton.language as tl

@triton.jit
def far(position, stride):
    return tl.cast(position, tl.int64) * stride


@triton.jit
def walk0(
    row_end, col_end, span, y0, n3, x1, s1_i0, s1_i1, s1_i3, x2, s2_i0, s2_i1, s2_i2, x0, s0_i2, s0_i3, x3, s3_i0,
    s3_i1, s3_i2, x4, s4_i0, s4_i1, s4_i3, y0_i0, y0_i1, y0_i2, R: tl.constexpr, EVEN_R: tl.constexpr,
    INDEX: tl.constexpr, STAGES: tl.constexpr, F3: tl.constexpr, EVEN_F3: tl.constexpr,
):
    pid = tl.program_id(0)
    lanes = tl.cdiv(row_end, R)
    part = pid % lanes
    batch = pid // lanes
    row_0 = part * R
    r = tl.arange(0, R).to(INDEX)
    row = row_0 + r
    row_ok = (row < row_end) | EVEN_R
    f3 = tl.arange(0, F3).to(INDEX)
    f3_ok = (f3 < n3) | EVEN_F3
    t3 = tl.load(x0 + far(row_0, s0_i2) + ((r * s0_i2)[:, None] + (f3 * s0_i3)[None, :]), mask=row_ok[:, None] & f3_ok[None, :], other=0)
    t4 = -t3
    c0 = tl.full([R, F3], 0.0, tl.float32)
    for step in tl.range(0, col_end, num_stages=STAGES):
        column = step
        t1 = tl.load(x1 + far(batch, s1_i0) + far(column, s1_i1) + (f3 * s1_i3), mask=f3_ok, other=0)
        t2 = tl.load(x2 + far(batch, s2_i0) + far(column, s2_i1) + far(row_0, s2_i2) + (r * s2_i2), mask=row_ok, other=0)
        t5 = t2[:, None] * t4
        t6 = tl.exp2(t5 * 1.4426950408889634)
        t7 = tl.load(x3 + far(batch, s3_i0) + far(column, s3_i1) + far(row_0, s3_i2) + (r * s3_i2), mask=row_ok, other=0)
        t8 = tl.load(x4 + far(batch, s4_i0) + far(column, s4_i1) + (f3 * s4_i3), mask=f3_ok, other=0)
        t9 = t7[:, None] * t8[None, :]
        t10 = t2[:, None] * t9
        h10 = t6 * c0 + t10
        c0 = h10
        t11 = t1[None, :] * h10
        t12 = tl.sum(tl.where(f3_ok[None, :], t11, 0.0), 1)
        tl.store(y0 + far(batch, y0_i0) + far(column, y0_i1) + far(row_0, y0_i2) + (r * y0_i2), t12, mask=row_ok)
