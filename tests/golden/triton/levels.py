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
    row_begin, row_end, col_begin, col_end, span, splits, n2, x0, s0_i0, s0_i1, s0_i2, n1, x1, s1_i3, s1_i2, o_c0_m,
    o_c0_m_split, o_c0_m_i0, o_c0_m_i1, o_c0_l, o_c0_l_split, o_c0_l_i0, o_c0_l_i1, R: tl.constexpr, C: tl.constexpr,
    GROUP: tl.constexpr, EVEN_R: tl.constexpr, EVEN_C: tl.constexpr, INDEX: tl.constexpr, K2: tl.constexpr,
    EVEN_K2: tl.constexpr, WIDEN: tl.constexpr,
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
    c0_m = tl.full([R], float("-inf"), tl.float32)
    c0_l = tl.full([R], 0.0, tl.float32)
    column = begin
    col = column + c
    col_ok = (col < end) | EVEN_C
    s5 = tl.zeros([R, C], tl.float32)
    for k2_1_0 in range(0, n2, K2):
        k2_1 = k2_1_0 + d2
        k2_1_ok = (k2_1 < n2) | EVEN_K2
        t2 = tl.load(x0 + far(i0_0, s0_i0) + far(i1_0, s0_i1) + far(k2_1_0, s0_i2) + ((i0_d * s0_i0 + i1_d * s0_i1)[:, None] + (d2 * s0_i2)[None, :]), mask=row_ok[:, None] & k2_1_ok[None, :], other=0)
        t3 = tl.load(x1 + far(column, s1_i3) + far(k2_1_0, s1_i2) + ((c * s1_i3)[:, None] + (d2 * s1_i2)[None, :]), mask=col_ok[:, None] & k2_1_ok[None, :], other=0)
        t4 = tl.trans(t3)
        s5 = dot(t2, t4, s5, "ieee", WIDEN)
    c0_s = tl.where(col_ok[None, :], s5, float("-inf"))
    c0_n = tl.maximum(c0_m, tl.max(c0_s, 1))
    c0_g = tl.where(c0_n == float("-inf"), 0.0, c0_n)
    c0_x = c0_s - c0_g[:, None]
    c0_r = tl.exp2((c0_m - c0_g) * 1.4426950408889634)
    c0_e = tl.exp2(c0_x * 1.4426950408889634)
    c0_l = c0_l * c0_r + tl.sum(c0_e, 1)
    c0_m = c0_n
    tl.store(o_c0_m + far(split, o_c0_m_split) + far(i0_0, o_c0_m_i0) + far(i1_0, o_c0_m_i1) + (i0_d * o_c0_m_i0 + i1_d * o_c0_m_i1), c0_m, mask=row_ok)
    tl.store(o_c0_l + far(split, o_c0_l_split) + far(i0_0, o_c0_l_i0) + far(i1_0, o_c0_l_i1) + (i0_d * o_c0_l_i0 + i1_d * o_c0_l_i1), c0_l, mask=row_ok)


@triton.jit
def sweep1(
    row_begin, row_end, col_begin, col_end, span, splits, slab0, n2, x0, s0_i0, s0_i1, s0_i2, n1, x4, s4_i3, s4_i2, x1,
    s1_i0, s1_i1, x2, s2_i0, s2_i1, n3, x3, s3_i0, s3_i1, b3, slab0_row, R: tl.constexpr, C: tl.constexpr,
    GROUP: tl.constexpr, EVEN_R: tl.constexpr, EVEN_C: tl.constexpr, INDEX: tl.constexpr, K2: tl.constexpr,
    EVEN_K2: tl.constexpr, WIDEN: tl.constexpr,
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
    column = begin
    col = column + c
    col_ok = (col < end) | EVEN_C
    s5 = tl.zeros([R, C], tl.float32)
    for k2_1_0 in range(0, n2, K2):
        k2_1 = k2_1_0 + d2
        k2_1_ok = (k2_1 < n2) | EVEN_K2
        t2 = tl.load(x0 + far(i0_0, s0_i0) + far(i1_0, s0_i1) + far(k2_1_0, s0_i2) + ((i0_d * s0_i0 + i1_d * s0_i1)[:, None] + (d2 * s0_i2)[None, :]), mask=row_ok[:, None] & k2_1_ok[None, :], other=0)
        t3 = tl.load(x4 + far(column, s4_i3) + far(k2_1_0, s4_i2) + ((c * s4_i3)[:, None] + (d2 * s4_i2)[None, :]), mask=col_ok[:, None] & k2_1_ok[None, :], other=0)
        t4 = tl.trans(t3)
        s5 = dot(t2, t4, s5, "ieee", WIDEN)
    t7 = s5 - t6[:, None]
    t8 = tl.exp2(t7 * 1.4426950408889634)
    t11 = t8 * t10[:, None]
    t14 = col[None, :] == t13[:, None]
    t15 = tl.where(t14, 1.0, 0.0)
    t16 = t11 - t15
    tl.store(slab0 + far(row_0 - row_begin, slab0_row) + (column - col_begin) + ((r * slab0_row)[:, None] + c[None, :]), t16.to(tl.bfloat16), mask=row_ok[:, None] & col_ok[None, :])
