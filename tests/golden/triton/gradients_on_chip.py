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
    row_begin, row_end, col_begin, col_end, span, splits, n2, x0, s0_i0, s0_i1, s0_i2, n1, x5, s5_i3, s5_i2, x1, s1_i0,
    s1_i1, x2, s2_i0, s2_i1, n3, x3, s3_i0, s3_i1, b3, x4, s4_i0, s4_i1, o_c0, o_c0_split, o_c0_i0, o_c0_i1, o_c0_i2,
    R: tl.constexpr, C: tl.constexpr, GROUP: tl.constexpr, EVEN_R: tl.constexpr, EVEN_C: tl.constexpr,
    INDEX: tl.constexpr, F2: tl.constexpr, EVEN_F2: tl.constexpr, WIDEN: tl.constexpr,
):
    pid = tl.program_id(0)
    tiles = tl.cdiv(row_end - row_begin, R)
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
    f2 = tl.arange(0, F2).to(INDEX)
    f2_ok = (f2 < n2) | EVEN_F2
    i0 = row // n1
    i0_0 = row_0 // n1
    i0_d = i0 - i0_0
    i1 = row % n1
    i1_0 = row_0 % n1
    i1_d = i1 - i1_0
    t1 = tl.load(x0 + far(i0_0, s0_i0) + far(i1_0, s0_i1) + ((i0_d * s0_i0 + i1_d * s0_i1)[:, None] + (f2 * s0_i2)[None, :]), mask=row_ok[:, None] & f2_ok[None, :], other=0)
    t5 = tl.load(x1 + far(i0_0, s1_i0) + far(i1_0, s1_i1) + (i0_d * s1_i0 + i1_d * s1_i1), mask=row_ok, other=0)
    t8 = tl.load(x2 + far(i0_0, s2_i0) + far(i1_0, s2_i1) + (i0_d * s2_i0 + i1_d * s2_i1), mask=row_ok, other=0)
    t9 = 1.0 / t8
    t11 = tl.load(x3 + b3 + far(i0_0, s3_i0) + far(i1_0, s3_i1) + (i0_d * s3_i0 + i1_d * s3_i1), mask=row_ok, other=0)
    t12 = tl.minimum(tl.maximum(t11, -1), n3).to(INDEX)
    t16 = tl.load(x4 + far(i0_0, s4_i0) + far(i1_0, s4_i1) + (i0_d * s4_i0 + i1_d * s4_i1), mask=row_ok, other=0)
    c0 = tl.full([R, F2], 0.0, tl.float32)
    for column in range(begin, end, C):
        col = column + c
        col_ok = (col < end) | EVEN_C
        t2 = tl.load(x5 + far(column, s5_i3) + ((c * s5_i3)[:, None] + (f2 * s5_i2)[None, :]), mask=col_ok[:, None] & f2_ok[None, :], other=0)
        t3 = tl.trans(t2)
        t4 = dot(t1, t3, tl.zeros([R, C], tl.float32), "ieee", WIDEN)
        t6 = t4 - t5[:, None]
        t7 = tl.exp2(t6 * 1.4426950408889634)
        t10 = t7 * t9[:, None]
        t13 = col[None, :] == t12[:, None]
        t14 = tl.where(t13, 1.0, 0.0)
        t15 = t10 - t14
        t17 = t15 * t16[:, None]
        c0 = dot(tl.where(col_ok[None, :], t17, 0.0).to(tl.bfloat16), t2, c0, "ieee", WIDEN)
    tl.store(o_c0 + far(split, o_c0_split) + far(i0_0, o_c0_i0) + far(i1_0, o_c0_i1) + ((i0_d * o_c0_i0 + i1_d * o_c0_i1)[:, None] + (f2 * o_c0_i2)[None, :]), c0, mask=row_ok[:, None] & f2_ok[None, :])


@triton.jit
def sweep1(
    row_begin, row_end, col_begin, col_end, span, splits, n2, x0, s0_i3, s0_i2, x1, s1_i0, s1_i1, s1_i2, n1, x2, s2_i0,
    s2_i1, x3, s3_i0, s3_i1, n3, x4, s4_i0, s4_i1, b4, x5, s5_i0, s5_i1, o_c0, o_c0_split, o_c0_i3, o_c0_i2, o_c1,
    o_c1_split, o_c1_i3, R: tl.constexpr, C: tl.constexpr, GROUP: tl.constexpr, EVEN_R: tl.constexpr,
    EVEN_C: tl.constexpr, INDEX: tl.constexpr, F2: tl.constexpr, EVEN_F2: tl.constexpr, WIDEN: tl.constexpr,
):
    pid = tl.program_id(0)
    tiles = tl.cdiv(row_end - row_begin, R)
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
    f2 = tl.arange(0, F2).to(INDEX)
    f2_ok = (f2 < n2) | EVEN_F2
    t1 = tl.load(x0 + far(row_0, s0_i3) + ((r * s0_i3)[:, None] + (f2 * s0_i2)[None, :]), mask=row_ok[:, None] & f2_ok[None, :], other=0)
    c0 = tl.full([R, F2], 0.0, tl.float32)
    c1 = tl.full([R], 0.0, tl.float32)
    for column in range(begin, end, C):
        col = column + c
        col_ok = (col < end) | EVEN_C
        i0 = col // n1
        i0_0 = column // n1
        i0_d = i0 - i0_0
        i1 = col % n1
        i1_0 = column % n1
        i1_d = i1 - i1_0
        t2 = tl.load(x1 + far(i0_0, s1_i0) + far(i1_0, s1_i1) + ((i0_d * s1_i0 + i1_d * s1_i1)[:, None] + (f2 * s1_i2)[None, :]), mask=col_ok[:, None] & f2_ok[None, :], other=0)
        t3 = tl.trans(t2)
        t4 = dot(t1, t3, tl.zeros([R, C], tl.float32), "ieee", WIDEN)
        t5 = tl.load(x2 + far(i0_0, s2_i0) + far(i1_0, s2_i1) + (i0_d * s2_i0 + i1_d * s2_i1), mask=col_ok, other=0)
        t6 = t4 - t5[None, :]
        t7 = tl.exp2(t6 * 1.4426950408889634)
        t8 = tl.load(x3 + far(i0_0, s3_i0) + far(i1_0, s3_i1) + (i0_d * s3_i0 + i1_d * s3_i1), mask=col_ok, other=0)
        t9 = 1.0 / t8
        t10 = t7 * t9[None, :]
        t11 = tl.load(x4 + b4 + far(i0_0, s4_i0) + far(i1_0, s4_i1) + (i0_d * s4_i0 + i1_d * s4_i1), mask=col_ok, other=0)
        t12 = tl.minimum(tl.maximum(t11, -1), n3).to(INDEX)
        t13 = row[:, None] == t12[None, :]
        t14 = tl.where(t13, 1.0, 0.0)
        t15 = t10 - t14
        t16 = tl.load(x5 + far(i0_0, s5_i0) + far(i1_0, s5_i1) + (i0_d * s5_i0 + i1_d * s5_i1), mask=col_ok, other=0)
        t17 = t15 * t16[None, :]
        c0 = dot(tl.where(col_ok[None, :], t17, 0.0).to(tl.bfloat16), t2, c0, "ieee", WIDEN)
        c1 += tl.sum(tl.where(col_ok[None, :], t17, 0.0), 1)
    tl.store(o_c0 + far(split, o_c0_split) + far(row_0, o_c0_i3) + ((r * o_c0_i3)[:, None] + (f2 * o_c0_i2)[None, :]), c0, mask=row_ok[:, None] & f2_ok[None, :])
    tl.store(o_c1 + far(split, o_c1_split) + far(row_0, o_c1_i3) + (r * o_c1_i3), c1, mask=row_ok)
