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
    row_begin, row_end, col_begin, col_end, span, splits, slab0, n2, x0, s0_i0, s0_i1, s0_i2, n1, x5, s5_i3, s5_i2, x1,
    s1_i0, s1_i1, x2, s2_i0, s2_i1, n3, x3, s3_i0, s3_i1, b3, x4, s4_i0, s4_i1, slab0_row, R: tl.constexpr,
    C: tl.constexpr, GROUP: tl.constexpr, EVEN_R: tl.constexpr, EVEN_C: tl.constexpr, INDEX: tl.constexpr,
    K2: tl.constexpr, EVEN_K2: tl.constexpr, WIDEN: tl.constexpr,
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
    d2 = tl.arange(0, K2).to(INDEX)
    i0 = row // n1
    i0_0 = row_0 // n1
    i0_d = i0 - i0_0
    i1 = row % n1
    i1_0 = row_0 % n1
    i1_d = i1 - i1_0
    t6 = tl.load(x1 + far(i0_0, s1_i0) + far(i1_0, s1_i1) + (i0_d * s1_i0 + i1_d * s1_i1), mask=row_ok, other=0)
    t9 = tl.load(x2 + far(i0_0, s2_i0) + far(i1_0, s2_i1) + (i0_d * s2_i0 + i1_d * s2_i1), mask=row_ok, other=0)
    t10 = 1.0 / t9
    t12 = tl.load(x3 + b3 + far(i0_0, s3_i0) + far(i1_0, s3_i1) + (i0_d * s3_i0 + i1_d * s3_i1), mask=row_ok, other=0)
    t13 = tl.minimum(tl.maximum(t12, -1), n3).to(INDEX)
    t17 = tl.load(x4 + far(i0_0, s4_i0) + far(i1_0, s4_i1) + (i0_d * s4_i0 + i1_d * s4_i1), mask=row_ok, other=0)
    column = begin
    col = column + c
    col_ok = (col < end) | EVEN_C
    s5 = tl.zeros([R, C], tl.float32)
    for k2_1_0 in range(0, n2, K2):
        k2_1 = k2_1_0 + d2
        k2_1_ok = (k2_1 < n2) | EVEN_K2
        t2 = tl.load(x0 + far(i0_0, s0_i0) + far(i1_0, s0_i1) + far(k2_1_0, s0_i2) + ((i0_d * s0_i0 + i1_d * s0_i1)[:, None] + (d2 * s0_i2)[None, :]), mask=row_ok[:, None] & k2_1_ok[None, :], other=0)
        t3 = tl.load(x5 + far(column, s5_i3) + far(k2_1_0, s5_i2) + ((c * s5_i3)[:, None] + (d2 * s5_i2)[None, :]), mask=col_ok[:, None] & k2_1_ok[None, :], other=0)
        t4 = tl.trans(t3)
        s5 = dot(t2, t4, s5, "ieee", WIDEN)
    t7 = s5 - t6[:, None]
    t8 = tl.exp2(t7 * 1.4426950408889634)
    t11 = t8 * t10[:, None]
    t14 = col[None, :] == t13[:, None]
    t15 = tl.where(t14, 1.0, 0.0)
    t16 = t11 - t15
    t18 = t16 * t17[:, None]
    tl.store(slab0 + far(row_0 - row_begin, slab0_row) + (column - col_begin) + ((r * slab0_row)[:, None] + c[None, :]), t18.to(tl.bfloat16), mask=row_ok[:, None] & col_ok[None, :])
