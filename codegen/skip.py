"""Which tiles add nothing: index-only predicates (causal masks, windows) as bounds on column tiles.

`where(j <= i, s, -inf)` leaves a tile without effect if j > i throughout. For each comparison of positions in a level this
assumes that it fails (or holds) all over the tile, follows the consequences (exp(-inf) = 0, 0 * x = 0, -inf + x = -inf),
and keeps it if every update of the level turns out to add nothing. x is taken to be finite: where eager would multiply
a masked weight of 0 by inf or nan, the skipped product is 0.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping

from fuse.codegen.tile import Affine, Const, Dot, Level, Point, Reduce, Skip, Statement, Update, Value
from fuse.ir.program import Kind

Known = dict[int, float | bool]
INF = float("inf")


def skips(level: Level, compared: Mapping[int, Affine]) -> tuple[Skip, ...]:
    """`level.before` holds every statement below it, in order. `compared`: id of a comparison `x <= y` or `x < y` between
    positions -> x - y as a linear form."""
    if level.stores or level.stage or not level.updates:
        return ()
    comparisons = [(s, compared[s.out.id]) for s in level.before if isinstance(s, Point) and s.out.id in compared]
    found: dict[Skip, None] = {}
    for s, form in comparisons:
        if "col" not in s.out.dims:
            continue
        for holds in (False, True):
            assumed = condition(s, form, holds)
            known = follow(level.before, implied(assumed, comparisons))
            if all(adds_nothing(u, known) for u in level.updates):
                found[assumed] = None
    return tuple(found)


def implied(assumed: Skip, comparisons: Iterable[tuple[Point, Affine]]) -> Known:
    """What f >= bound throughout says of every comparison of f or -f, plus a constant, with 0."""
    known: Known = {}
    for s, form in comparisons:
        strict = s.op == "lt"
        for sign, f in ((1, assumed.form), (-1, negated(assumed.form))):
            gap = (form.offset - f.offset).constant
            if gap is None or dict(form.terms) != dict(f.terms):
                continue
            if sign > 0 and assumed.bound + gap >= (0 if strict else 1):
                known[s.out.id] = False
            if sign < 0 and gap - assumed.bound <= (-1 if strict else 0):
                known[s.out.id] = True
    return known


def condition(s: Point, form: Affine, holds: bool) -> Skip:
    """x <= y fails throughout if min(x - y) >= 1 and holds if min(y - x) >= 0; likewise for <."""
    strict = s.op == "lt"
    form = Affine(tuple(sorted(form.terms, key=lambda term: term[0])), form.offset)
    if holds:
        return Skip(negated(form), 1 if strict else 0)
    return Skip(form, 0 if strict else 1)


def negated(form: Affine) -> Affine:
    return Affine(tuple((axis, -c) for axis, c in form.terms), -form.offset)


def follow(order: Iterable[Statement], known: Known) -> Known:
    """What is known of each value, given what is known of some."""
    for s in order:
        if s.out.id not in known:
            value = consequence(s, known)
            if value is not None:
                known[s.out.id] = value
    return known


def consequence(s: Statement, known: Known) -> float | bool | None:
    match s:
        case Const():
            return s.value
        case Dot():
            return 0.0 if 0.0 in (known.get(s.a.id), known.get(s.b.id)) else None
        case Reduce():
            return 0.0 if s.op == "sum" and known.get(s.x.id) == 0 else None
        case Point():
            return point(s.op, [known.get(a.id) for a in s.args])
    return None


def point(op: str, args: list[float | bool | None]) -> float | bool | None:
    a, b = args[0], args[1] if len(args) > 1 else None
    match op:
        case "where":
            return None if a is None else args[1] if a else args[2]
        case "and":
            return False if a is False or b is False else True if a and b else None
        case "or":
            return True if a is True or b is True else False if a is False and b is False else None
        case "not":
            return None if a is None else not a
        case "cast":
            return a
        case "neg":
            return None if a is None else -a
        case "exp":
            return 0.0 if a == -INF else None
        case "mul":
            return product(a, b)
        case "div":
            return 0.0 if a == 0 and a is not False else a if a in (INF, -INF) and b is not None and 0 < b < INF else None
        case "add":
            return total(a, b)
        case "sub":
            return total(a, None if b is None else -b)
    return None


def product(a: float | None, b: float | None) -> float | None:
    for x, y in ((a, b), (b, a)):
        if x == 0:
            return None if y in (INF, -INF) else 0.0
        if x in (INF, -INF) and y is not None and y > 0:
            return x
    return None


def total(a: float | None, b: float | None) -> float | None:
    infinite = [x for x in (a, b) if x in (INF, -INF)]
    if infinite:
        return infinite[0] if len(set(infinite)) == 1 else None
    return None if a is None or b is None else a + b


def adds_nothing(u: Update, known: Known) -> bool:
    def of(v: Value | None) -> float | bool | None:
        return None if v is None else known.get(v.id)
    if u.kind is not Kind.SUM:
        return of(u.value) == -INF
    if u.relative is not None and of(u.operand) == -INF and u.moment == 0 and u.exponent > 0:
        return True
    return u.moment == 0 and 0 in (of(u.value), of(u.wide))
