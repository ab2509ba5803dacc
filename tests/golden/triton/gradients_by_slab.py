import triton
import triton.language as tl

@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    if WIDEN:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def sweep0(
    row_begin, row_end, col_begin, col_end, span, splits, slab0, n2, n1, s0_i0, s0_i1, s0_i2, x0, s5_i3, s5_i2, x5,
    s1_i0, s1_i1, x1, s2_i0, s2_i1, x2, n3, s3_i0, s3_i1, x3, b3, s4_i0, s4_i1, x4, slab0_row, R: tl.constexpr,
    C: tl.constexpr, GROUP: tl.constexpr, EVEN_R: tl.constexpr, EVEN_C: tl.constexpr, INDEX: tl.constexpr,
    K2: tl.constexpr, EVEN_K2: tl.constexpr, WIDEN: tl.constexpr,
):
    pid = tl.program_id(0)
    tiles = tl.cdiv(row_end - row_begin, R)
    group = pid // (GROUP * splits)
    height = tl.minimum(tiles - group * GROUP, GROUP)
    inside = pid % (GROUP * splits)
    split = inside // height
    row = (row_begin + (group * GROUP + inside % height) * R + tl.arange(0, R)).to(INDEX)
    row_ok = (row < row_end) | EVEN_R
    begin = col_begin + split * span
    end = tl.minimum(begin + span, col_end)
    i0 = row // n1
    i1 = row % n1
    t6 = tl.load(x1 + i0 * s1_i0 + i1 * s1_i1, mask=row_ok, other=0)
    t9 = tl.load(x2 + i0 * s2_i0 + i1 * s2_i1, mask=row_ok, other=0)
    t10 = 1.0 / t9
    t12 = tl.load(x3 + b3 + i0 * s3_i0 + i1 * s3_i1, mask=row_ok, other=0)
    t13 = tl.minimum(tl.maximum(t12, -1), n3).to(INDEX)
    t17 = tl.load(x4 + i0 * s4_i0 + i1 * s4_i1, mask=row_ok, other=0)
    column = begin
    col = (column + tl.arange(0, C)).to(INDEX)
    col_ok = (col < end) | EVEN_C
    s5 = tl.zeros([R, C], tl.float32)
    for k2_1_0 in range(0, n2, K2):
        k2_1 = (k2_1_0 + tl.arange(0, K2)).to(INDEX)
        k2_1_ok = (k2_1 < n2) | EVEN_K2
        t2 = tl.load(x0 + (i0 * s0_i0 + i1 * s0_i1)[:, None] + (k2_1 * s0_i2)[None, :], mask=row_ok[:, None] & k2_1_ok[None, :], other=0)
        t3 = tl.load(x5 + (col * s5_i3)[:, None] + (k2_1 * s5_i2)[None, :], mask=col_ok[:, None] & k2_1_ok[None, :], other=0)
        t4 = tl.trans(t3)
        s5 = dot(t2, t4, s5, "ieee", WIDEN)
    t7 = s5 - t6[:, None]
    t8 = tl.exp2(t7 * 1.4426950408889634)
    t11 = t8 * t10[:, None]
    t14 = col[None, :] == t13[:, None]
    t15 = tl.where(t14, 1.0, 0.0)
    t16 = t11 - t15
    t18 = t16 * t17[:, None]
    tl.store(slab0 + ((row - row_begin) * slab0_row)[:, None] + (col - col_begin)[None, :], t18.to(tl.bfloat16), mask=row_ok[:, None] & col_ok[None, :])
