import triton
import triton.language as tl

@triton.jit
def far(position, stride):
    return tl.cast(position, tl.int64) * stride

@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    if WIDEN:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def sweep0(
    row_begin, row_end, col_begin, col_end, span, splits, x1, s1_i0, s1_i1, n3, n4, x0, s0_i0, s0_i2, s0_i3, s0_i4, x2,
    s2_i0, s2_i1, s2_i3, s2_i4, n5, x3, s3_i0, s3_i1, s3_i3, s3_i5, o_c0_m, o_c0_m_split, o_c0_m_i0, o_c0_m_i3,
    o_c0_m_i2, o_c0_l, o_c0_l_split, o_c0_l_i0, o_c0_l_i3, o_c0_l_i2, o_c1, o_c1_split, o_c1_i0, o_c1_i3, o_c1_i2,
    o_c1_i5, R: tl.constexpr, C: tl.constexpr, GROUP: tl.constexpr, EVEN_R: tl.constexpr, EVEN_C: tl.constexpr,
    INDEX: tl.constexpr, F4: tl.constexpr, EVEN_F4: tl.constexpr, WIDEN: tl.constexpr, F5: tl.constexpr,
    EVEN_F5: tl.constexpr,
):
    pid = tl.program_id(0)
    tiles = tl.cdiv(row_end - row_begin, R)
    batch = pid // (tiles * splits)
    pid = pid % (tiles * splits)
    group = pid // (GROUP * splits)
    height = tl.minimum(tiles - group * GROUP, GROUP)
    inside = pid % (GROUP * splits)
    split = inside // height
    row_0 = row_begin + (group * GROUP + inside % height) * R
    r = tl.arange(0, R).to(INDEX)
    row = row_0 + r
    row_ok = (row < row_end) | EVEN_R
    begin = col_begin + split * span
    end = tl.minimum(begin + span, col_end)
    c = tl.arange(0, C).to(INDEX)
    least1 = tl.min(tl.where(row_ok, far(row, -1), 4611686018427387904), 0)
    stop = tl.maximum(tl.minimum(1 - least1, end), begin).to(end.dtype)
    i0 = batch // n3
    f4 = tl.arange(0, F4).to(INDEX)
    f4_ok = (f4 < n4) | EVEN_F4
    i3 = batch % n3
    t5 = tl.load(x0 + far(i0, s0_i0) + far(row_0, s0_i2) + far(i3, s0_i3) + ((r * s0_i2)[:, None] + (f4 * s0_i4)[None, :]), mask=row_ok[:, None] & f4_ok[None, :], other=0)
    f5 = tl.arange(0, F5).to(INDEX)
    f5_ok = (f5 < n5) | EVEN_F5
    c0_m = tl.full([R], float("-inf"), tl.float32)
    c0_l = tl.full([R], 0.0, tl.float32)
    c1 = tl.full([R, F5], 0.0, tl.float32)
    for column in range(begin, stop, C):
        col = column + c
        col_ok = (col < end) | EVEN_C
        t2 = tl.load(x1 + far(i0, s1_i0) + far(column, s1_i1) + (c * s1_i1), mask=col_ok, other=0)
        t3 = col[None, :] <= row[:, None]
        t4 = t2[None, :] & t3
        t6 = tl.load(x2 + far(i0, s2_i0) + far(column, s2_i1) + far(i3, s2_i3) + ((c * s2_i1)[:, None] + (f4 * s2_i4)[None, :]), mask=col_ok[:, None] & f4_ok[None, :], other=0)
        t7 = tl.trans(t6)
        t8 = dot(t5, t7, tl.zeros([R, C], tl.float32), "ieee", WIDEN)
        t9 = t8 * 0.3
        t10 = tl.where(t4, t9, float("-inf"))
        c0_s = tl.where(col_ok[None, :], t10, float("-inf"))
        c0_n = tl.maximum(c0_m, tl.max(c0_s, 1))
        c0_g = tl.where(c0_n == float("-inf"), 0.0, c0_n)
        c0_x = c0_s - c0_g[:, None]
        c0_r = tl.exp2((c0_m - c0_g) * 1.4426950408889634)
        c0_e = tl.exp2(c0_x * 1.4426950408889634)
        t11 = tl.load(x3 + far(i0, s3_i0) + far(column, s3_i1) + far(i3, s3_i3) + ((c * s3_i1)[:, None] + (f5 * s3_i5)[None, :]), mask=col_ok[:, None] & f5_ok[None, :], other=0)
        c1 = dot(c0_e.to(tl.bfloat16), t11, c1 * c0_r[:, None], "ieee", WIDEN)
        c0_l = c0_l * c0_r + tl.sum(c0_e, 1)
        c0_m = c0_n
    tl.store(o_c0_m + far(split, o_c0_m_split) + far(i0, o_c0_m_i0) + far(i3, o_c0_m_i3) + far(row_0, o_c0_m_i2) + (r * o_c0_m_i2), c0_m, mask=row_ok)
    tl.store(o_c0_l + far(split, o_c0_l_split) + far(i0, o_c0_l_i0) + far(i3, o_c0_l_i3) + far(row_0, o_c0_l_i2) + (r * o_c0_l_i2), c0_l, mask=row_ok)
    tl.store(o_c1 + far(split, o_c1_split) + far(i0, o_c1_i0) + far(i3, o_c1_i3) + far(row_0, o_c1_i2) + ((r * o_c1_i2)[:, None] + (f5 * o_c1_i5)[None, :]), c1, mask=row_ok[:, None] & f5_ok[None, :])
