import triton
import triton.language as tl

@triton.jit
def far(position, stride):
    return tl.cast(position, tl.int64) * stride


@triton.jit
def walk0(
    row_end, col_end, span, y3, n3, x5, s5_i0, s5_i1, s5_i3, x2, s2_i0, s2_i1, s2_i2, x3, s3_i0, s3_i1, s3_i3, y3_i0,
    y3_i1, y3_i2, y4, x1, s1_i0, s1_i1, s1_i2, x0, s0_i2, s0_i3, h_c2, y4_i0, y4_i1, y4_i2, y0, y0_i0, y0_i2, y0_i3,
    x4, s4_i0, s4_i1, s4_i2, y1, y1_part, y1_i0, y1_i1, y1_i3, y2, y2_part, y2_i0, y2_i1, y2_i3, e_c2, w_c0, w_p5,
    w_c1, R: tl.constexpr, EVEN_R: tl.constexpr, INDEX: tl.constexpr, STAGES: tl.constexpr, F3: tl.constexpr,
    EVEN_F3: tl.constexpr,
):
    pid = tl.program_id(0)
    lanes = tl.cdiv(row_end, R)
    part = pid % lanes
    batch = pid // lanes
    row_0 = part * R
    r = tl.arange(0, R).to(INDEX)
    row = row_0 + r
    row_ok = (row < row_end) | EVEN_R
    spans = tl.cdiv(col_end, span)
    f3 = tl.arange(0, F3).to(INDEX)
    f3_ok = (f3 < n3) | EVEN_F3
    t8 = tl.load(x0 + far(row_0, s0_i2) + ((r * s0_i2)[:, None] + (f3 * s0_i3)[None, :]), mask=row_ok[:, None] & f3_ok[None, :], other=0)
    t9 = -t8
    c2_ahead = tl.full([R, F3], 0.0, tl.float32)
    for step in range(0, spans):
        tile = step
        first = tile * span
        end = tl.minimum(first + span, col_end)
        tl.store(e_c2 + (far(pid, spans) + tile) * R * F3 + (r[:, None] * F3 + f3[None, :]), c2_ahead)
        for step in tl.range(first, end, num_stages=STAGES):
            column = step
            t30 = tl.load(x1 + far(batch, s1_i0) + far(column, s1_i1) + far(row_0, s1_i2) + (r * s1_i2), mask=row_ok, other=0)
            t31 = t30[:, None] * t9
            t32 = tl.exp2(t31 * 1.4426950408889634)
            t33 = tl.load(x4 + far(batch, s4_i0) + far(column, s4_i1) + far(row_0, s4_i2) + (r * s4_i2), mask=row_ok, other=0)
            t34 = tl.load(x5 + far(batch, s5_i0) + far(column, s5_i1) + (f3 * s5_i3), mask=f3_ok, other=0)
            t35 = t33[:, None] * t34[None, :]
            t36 = t35 * t30[:, None]
            h15 = t32 * c2_ahead + t36
            c2_ahead = h15
    tl.store(w_c0 + far(pid, 1) * R * F3 + (r[:, None] * F3 + f3[None, :]), tl.full([R, F3], 0.0, tl.float32))
    tl.store(w_p5 + far(pid, 1) * R * F3 + (r[:, None] * F3 + f3[None, :]), tl.full([R, F3], 0.0, tl.float32))
    tl.store(w_c1 + far(pid, 1) * R * F3 + (r[:, None] * F3 + f3[None, :]), tl.full([R, F3], 0.0, tl.float32))
    tl.debug_barrier()
    for step in range(0, spans):
        tile = spans - 1 - step
        first = tile * span
        end = tl.minimum(first + span, col_end)
        c2_again = tl.load(e_c2 + (far(pid, spans) + tile) * R * F3 + (r[:, None] * F3 + f3[None, :]))
        tl.store(h_c2 + (far(pid, span + 1)) * R * F3 + (r[:, None] * F3 + f3[None, :]), c2_again)
        for step in tl.range(first, end, num_stages=STAGES):
            column = step
            t23 = tl.load(x1 + far(batch, s1_i0) + far(column, s1_i1) + far(row_0, s1_i2) + (r * s1_i2), mask=row_ok, other=0)
            t24 = t23[:, None] * t9
            t25 = tl.exp2(t24 * 1.4426950408889634)
            t26 = tl.load(x4 + far(batch, s4_i0) + far(column, s4_i1) + far(row_0, s4_i2) + (r * s4_i2), mask=row_ok, other=0)
            t27 = tl.load(x5 + far(batch, s5_i0) + far(column, s5_i1) + (f3 * s5_i3), mask=f3_ok, other=0)
            t28 = t26[:, None] * t27[None, :]
            t29 = t28 * t23[:, None]
            h15 = t25 * c2_again + t29
            c2_again = h15
            tl.store(h_c2 + (far(pid, span + 1) + column - first + 1) * R * F3 + (r[:, None] * F3 + f3[None, :]), h15)
        tl.debug_barrier()
        c0 = tl.load(w_c0 + far(pid, 1) * R * F3 + (r[:, None] * F3 + f3[None, :]))
        p5 = tl.load(w_p5 + far(pid, 1) * R * F3 + (r[:, None] * F3 + f3[None, :]))
        c1 = tl.load(w_c1 + far(pid, 1) * R * F3 + (r[:, None] * F3 + f3[None, :]))
        for step in tl.range(first, end, num_stages=STAGES):
            column = first + end - 1 - step
            t1 = tl.load(x5 + far(batch, s5_i0) + far(column, s5_i1) + (f3 * s5_i3), mask=f3_ok, other=0)
            t2 = tl.load(x2 + far(batch, s2_i0) + far(column, s2_i1) + far(row_0, s2_i2) + (r * s2_i2), mask=row_ok, other=0)
            t3 = tl.load(x3 + far(batch, s3_i0) + far(column, s3_i1) + (f3 * s3_i3), mask=f3_ok, other=0)
            t4 = t2[:, None] * t3[None, :]
            h9 = p5 * c1 + t4
            c1 = h9
            t5 = t1[None, :] * h9
            t6 = tl.sum(tl.where(f3_ok[None, :], t5, 0.0), 1)
            tl.store(y3 + far(batch, y3_i0) + far(column, y3_i1) + far(row_0, y3_i2) + (r * y3_i2), t6, mask=row_ok)
            t7 = tl.load(x1 + far(batch, s1_i0) + far(column, s1_i1) + far(row_0, s1_i2) + (r * s1_i2), mask=row_ok, other=0)
            t10 = t7[:, None] * t9
            t11 = tl.exp2(t10 * 1.4426950408889634)
            t12 = t11 * h9
            t13 = tl.load(h_c2 + (far(pid, span + 1) + column - first) * R * F3 + (r[:, None] * F3 + f3[None, :]))
            t14 = t12 * t13
            t15 = t14 * t8
            t16 = tl.sum(tl.where(f3_ok[None, :], t15, 0.0), 1)
            tl.store(y4 + far(batch, y4_i0) + far(column, y4_i1) + far(row_0, y4_i2) + (r * y4_i2), t16, mask=row_ok)
            t17 = t14 * t7[:, None]
            c0 += t17
            t18 = tl.load(x4 + far(batch, s4_i0) + far(column, s4_i1) + far(row_0, s4_i2) + (r * s4_i2), mask=row_ok, other=0)
            t19 = t18[:, None] * h9
            t20 = t19 * t7[:, None]
            tl.store(y1 + far(part, y1_part) + far(batch, y1_i0) + far(column, y1_i1) + (f3 * y1_i3), tl.sum(tl.where(row_ok[:, None], t20, 0.0), 0), mask=f3_ok)
            t21 = tl.load(h_c2 + (far(pid, span + 1) + column - first + 1) * R * F3 + (r[:, None] * F3 + f3[None, :]))
            t22 = t2[:, None] * t21
            tl.store(y2 + far(part, y2_part) + far(batch, y2_i0) + far(column, y2_i1) + (f3 * y2_i3), tl.sum(tl.where(row_ok[:, None], t22, 0.0), 0), mask=f3_ok)
            p5 = t11
        tl.debug_barrier()
        tl.store(w_c0 + far(pid, 1) * R * F3 + (r[:, None] * F3 + f3[None, :]), c0)
        tl.store(w_p5 + far(pid, 1) * R * F3 + (r[:, None] * F3 + f3[None, :]), p5)
        tl.store(w_c1 + far(pid, 1) * R * F3 + (r[:, None] * F3 + f3[None, :]), c1)
    tl.debug_barrier()
    c0 = tl.load(w_c0 + far(pid, 1) * R * F3 + (r[:, None] * F3 + f3[None, :]))
    c1 = tl.load(w_c1 + far(pid, 1) * R * F3 + (r[:, None] * F3 + f3[None, :]))
    tl.store(y0 + far(batch, y0_i0) + far(row_0, y0_i2) + ((r * y0_i2)[:, None] + (f3 * y0_i3)[None, :]), c0, mask=row_ok[:, None] & f3_ok[None, :])
