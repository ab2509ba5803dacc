import triton
import triton.language as tl

@triton.jit
def far(position, stride):
    return tl.cast(position, tl.int64) * stride


@triton.jit
def sweep0(
    row_begin, row_end, col_begin, col_end, span, splits, n2, x0, s0_i0, s0_i1, s0_i2, o_c0, o_c0_split, o_c0_i0,
    o_c0_i2, y1, y1_i0, y1_i1, R: tl.constexpr, C: tl.constexpr, GROUP: tl.constexpr, EVEN_R: tl.constexpr,
    EVEN_C: tl.constexpr, INDEX: tl.constexpr, F2: tl.constexpr, EVEN_F2: tl.constexpr,
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
    c0 = tl.full([R, C, F2], 0.0, tl.float32)
    for column in tl.range(begin, end, C, num_stages=3):
        col = column + c
        col_ok = (col < end) | EVEN_C
        t1 = tl.load(x0 + far(row_0, s0_i0) + far(column, s0_i1) + ((r * s0_i0)[:, None, None] + (c * s0_i1)[None, :, None] + (f2 * s0_i2)[None, None, :]), mask=row_ok[:, None, None] & col_ok[None, :, None] & f2_ok[None, None, :], other=0)
        t2 = 1.0 / (1.0 + tl.exp2(t1 * -1.4426950408889634))
        c0 += tl.where(col_ok[None, :, None], t2, 0.0)
        t4 = tl.sum(tl.where(f2_ok[None, None, :], t2, 0.0), 2)
        tl.store(y1 + far(row_0, y1_i0) + far(column, y1_i1) + ((r * y1_i0)[:, None] + (c * y1_i1)[None, :]), t4, mask=row_ok[:, None] & col_ok[None, :])
    c0 = tl.sum(c0, 1)
    tl.store(o_c0 + far(split, o_c0_split) + far(row_0, o_c0_i0) + ((r * o_c0_i0)[:, None] + (f2 * o_c0_i2)[None, :]), c0, mask=row_ok[:, None] & f2_ok[None, :])
