"""separate: can a sum join the sweep that computes the statistics it reads?

    sum_v f(s_v, m, l, ...)  =  sum_i c_i(m, l, ...) * sum_v w_i(v) * exp(k_i (s_v - m)) * (s_v - m)^n_i

sympy expands the body in E = exp(s - m) and u = s - m (so that exp_sub(s, L) = E / l and sub_lse(s, L) = u - log l).
A term may join if its coefficient c holds no streamed symbol, k >= 0 (the rescale when the maximum moves is then at
most 1) and n is a natural number. Growing factors, sums of quotients and logarithms of sums are refused: they need the
final statistics, hence one more sweep. Powers of u stay together: expanded in s they cancel catastrophically.

The weight of one distribution may meet the distance of another once (a divergence between two heads). There distances are
those to the row's first score, which is about as close as the maximum and known beforehand, and the difference of both is
accumulated: sum exp(t - m) ((t - t_0) - (s - s_0)) is small where the distributions are alike, as the divergence is.
"""
from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any

from fuse.ir.expr import Axis, Expr, cast, const, iota, make, size, substitute, topological, where
from fuse.ir.ops import OPS
from fuse.ir.size import product
from fuse.reasons import Miss

ALGEBRA = ("add", "sub", "mul", "div", "neg", "pow", "sqrt", "rsqrt")


@dataclass(frozen=True)
class Moment:
    """sum_v body * exp(exponent * (s - m)) * (s - m)**moment, s and m being those of `lse` (None: a plain sum)."""

    body: Expr
    lse: Expr | None
    exponent: int | float = 0
    moment: int = 0


def is_normaliser(moment: Moment) -> bool:
    """sum_v exp(s - m) = l, which the LSE carry keeps anyway."""
    return moment.lse is not None and (moment.exponent, moment.moment) == (1, 0) and moment.body.op == "const"


@dataclass(frozen=True)
class Separated:
    """The terms of the sum; `coefficients[i]` is a sympy expression of `symbols`, and the moment None is 1."""

    moments: tuple[Moment | None, ...]
    coefficients: tuple[Any, ...]
    symbols: dict[Any, Callable[[Any], Expr]]

    @property
    def bodies(self) -> list[Expr]:
        return [m.body for m in self.moments if m is not None]

    def value(self, parts: Callable[[Moment], Expr], resolver: Any, dtype: str) -> Expr:
        """The sum as an expression: `parts` gives each moment's value, `resolver` lowers row values and LSE pairs."""
        total: Expr | None = None
        for moment, coefficient in zip(self.moments, self.coefficients, strict=True):
            term = self._expr(coefficient, resolver, dtype)
            if moment is not None:
                term = make("mul", parts(moment), term)
            total = term if total is None else make("add", total, term)
        return const(0, dtype) if total is None else total

    def _expr(self, c: Any, resolver: Any, dtype: str) -> Expr:
        if c in self.symbols:
            return self.symbols[c](resolver)
        if c.is_number:
            return const(float(c), dtype)
        args = [self._expr(a, resolver, dtype) for a in c.args]
        if c.is_Pow:
            return args[0] if c.args[1] == 1 else make("div", const(1, dtype), args[0]) if c.args[1] == -1 \
                else make("pow", *args)
        out = args[0]
        for arg in args[1:]:
            out = make("add" if c.is_Add else "mul", out, arg)
        return out


@dataclass
class _Translation:
    """From an expression to sympy: opaque streamed factors, row values, and (E, u, 1/l, log l) per LSE."""

    dtype: str
    streams: tuple[Axis, ...]
    statistics: Collection[Expr]
    depends: Callable[[Expr], bool]
    streamed: dict[Any, Expr | tuple[str, Expr]] = field(default_factory=dict)
    rows: dict[Any, Callable[[Any], Expr]] = field(default_factory=dict)
    names: dict[Any, Any] = field(default_factory=dict)
    operands: dict[Expr, Expr] = field(default_factory=dict)
    logarithms: set[Expr] = field(default_factory=set)      # -inf where the score is

    def symbol(self, key: Any, **assumptions: Any) -> Any:
        import sympy
        return self.names.setdefault(key, sympy.Symbol(f"s{len(self.names)}", **assumptions))

    def translate(self, x: Expr) -> Any:
        """A sympy expression, or a Miss."""
        import sympy
        if not any(x.has(a) for a in self.streams):
            return self._row(x)
        if not self.depends(x) and (x.op not in ALGEBRA or self._purely_streamed(x)):
            symbol = self.symbol(x, real=True)
            self.streamed[symbol] = x
            return symbol
        if x.op in ("exp_sub", "sub_lse"):
            return self._statistic(x)
        if x.op == "where" and x.args[2].op == "const" and x.args[2]["value"] == 0 and not self.depends(x.args[0]):
            inner = self.translate(x.args[1])
            return inner if isinstance(inner, Miss) else inner * self.translate(cast(x.args[0], x.dtype))
        if x.op not in ALGEBRA:
            return Miss("NOT_SEPARABLE", x.origin, x.op)
        args = [self.translate(a) for a in x.args]
        miss = next((a for a in args if isinstance(a, Miss)), None)
        form = OPS[x.op].sympy
        assert form is not None, x.op
        return miss if miss is not None else form(sympy, *args)

    def _purely_streamed(self, x: Expr) -> bool:
        """No row value is mixed in that would better stand in the coefficient."""
        if x.op in ALGEBRA:
            return all(self._purely_streamed(a) for a in x.args)
        return x.op == "const" or any(x.has(a) for a in self.streams)

    def _row(self, x: Expr) -> Any:
        import sympy
        if x.op == "const":
            return sympy.Integer(int(x["value"])) if float(x["value"]).is_integer() else sympy.Float(x["value"], 17)
        symbol = self.symbol(x, real=True)
        self.rows[symbol] = lambda resolver: resolver.lower(x)
        return symbol

    def extent(self) -> Any:
        """sum_v 1."""
        count = size(product(a.extent for a in self.streams))
        symbol = self.symbol("extent", positive=True)
        self.rows[symbol] = lambda _: cast(count, self.dtype)
        return symbol

    def _statistic(self, x: Expr) -> Any:
        s, total = x.args
        ell = next((e for e in _parts(total) if e in self.statistics and e.args[0] is s), None)
        if ell is None:
            return Miss("NOT_SEPARABLE", x.origin, "the operand is not that of the statistic")
        if ell is not total:                  # exp(s - T) = exp(s - L) exp(L - T), the second a row value
            return self._statistic(make(x.op, s, ell)) * self._row(make("exp_sub", ell, total)) if x.op == "exp_sub" \
                else self._statistic(make(x.op, s, ell)) + self._row(ell - total)
        self.operands[ell] = s
        if x.op == "exp_sub":
            weight, inverse = self.symbol(("E", ell), positive=True), self.symbol(("1/l", ell), positive=True)
            self.streamed[weight] = ("E", ell)
            self.rows[inverse] = lambda resolver: make("div", const(1, s.dtype), resolver.pair(ell)[1])
            return weight * inverse
        distance, log = self.symbol(("u", ell), real=True), self.symbol(("log l", ell), real=True)
        self.streamed[distance] = ("u", ell)
        self.rows[log] = lambda resolver: make("log", resolver.pair(ell)[1])
        return distance - log

    def unmixed(self, terms: tuple[Any, ...]) -> Any:
        """The sum of the terms. Where the weight of one distribution meets the distance of another, all distances that it meets
        are those to a first score."""
        met = {x: self._met(x) for x in terms}
        mixed = {weight for weight, distance in met.values() if weight is not distance}
        out = 0
        for term, (weight, ell) in met.items():
            if weight in mixed and ell is not None and (first := self._first(self.operands[ell])) is not None:
                term = term.subs(self.names["u", ell], self._distance(ell, first))
            out += term
        return out

    def _met(self, term: Any) -> tuple[Expr | None, Expr | None]:
        """(weight, distance): the only distribution that weighs the term, and the only one whose distance is in it, once."""
        parts = {x: part for x in term.free_symbols if isinstance(part := self.streamed.get(x), tuple)}
        weights = [ell for name, ell in parts.values() if name == "E"]
        distances = [ell for x, (name, ell) in parts.items() if name == "u" and term.as_powers_dict()[x] == 1]
        alone = len(weights) == 1 and len(parts) == len(weights) + len(distances) == 2
        return (weights[0], distances[0]) if alone else (None, None)

    def _distance(self, ell: Expr, first: Expr) -> Any:
        """s - m as (s - s_0) + (s_0 - L) + log l: the second is one value, so that equal distributions cancel."""
        near, far = self.symbol(("s - s0", ell), real=True), self.symbol(("s0 - L", ell), real=True)
        self.streamed[near] = distance = self.operands[ell] - first
        self.logarithms.add(distance)

        def offset(resolver: Any) -> Expr:
            m, total = resolver.pair(ell)
            away: Expr = (resolver.lower(first) - m) - make("log", total)
            return away
        self.rows[far] = offset
        return near + far + self.names["log l", ell]

    def _first(self, s: Expr) -> Expr | None:
        """The score at the first position; 0 where that is not finite."""
        bound = {a for e in topological([s]) if e.op != "iota" for k, v in e.attrs if k in ("axis", "axes")
                 for a in (v if k == "axes" else (v,))}
        if not bound.isdisjoint(self.streams) or any(a.extent == 0 for a in self.streams):
            return None
        first = substitute(s, {iota(a): const(0, "int64") for a in self.streams})
        return where(make("eq", first - first, const(0, first.dtype)), first, 0)


def _parts(total: Expr) -> list[Expr]:
    """The statistics that a log-sum-exp is combined from."""
    return [p for a in total.args for p in _parts(a)] if total.op == "logaddexp" else [total]


def separate(body: Expr, streams: tuple[Axis, ...], statistics: Collection[Expr],
             depends: Callable[[Expr], bool]) -> Separated | Miss:
    """Splits sum over `streams` of `body`; `depends` tells what reads a statistic of this sweep."""
    import sympy
    t = _Translation(body.dtype, streams, statistics, depends)
    form = t.translate(body)
    if isinstance(form, Miss):
        return form
    terms: dict[Moment | None, Any] = {}
    form = t.unmixed(sympy.Add.make_args(sympy.expand(form)))
    for term in sympy.Add.make_args(sympy.expand(form)):
        coefficient, streamed = term.as_independent(*t.streamed, as_Add=False)
        found = _moment(streamed, t, body.dtype)
        if isinstance(found, Miss):
            return found
        moment: Moment | None = found
        if is_normaliser(found):
            moment, coefficient = None, coefficient / t.names["1/l", found.lse]
        elif found.lse is None and found.body.op == "const":
            moment, coefficient = None, coefficient * t.extent()
        terms[moment] = terms.get(moment, 0) + coefficient
    terms = _joined(terms)
    return Separated(tuple(terms), tuple(terms.values()), t.rows)


def _joined(terms: dict[Moment | None, Any]) -> dict[Moment | None, Any]:
    """Weighted sums whose coefficients differ by a sign are one: what cancels between them does so before it is added up."""
    out: dict[Moment | None, Any] = {}
    for moment, coefficient in terms.items():
        other = next((m for m, c in out.items() if c == -coefficient and _weighs_alike(m, moment)), None)
        if other is None or moment is None:
            out[moment] = coefficient
        else:
            out[replace(other, body=other.body - moment.body)] = out.pop(other)
    return out


def _weighs_alike(a: Moment | None, b: Moment | None) -> bool:
    return a is not None and b is not None and a.lse is not None and replace(a, body=b.body) == b and a.moment == 0


def _moment(streamed: Any, t: _Translation, dtype: str) -> Moment | Miss:
    """One product of streamed symbols as a moment."""
    lse: Expr | None = None
    exponent: int | float = 0
    power, body, hidden, logarithm = 0, const(1, dtype), False, False
    for base, n in streamed.as_powers_dict().items():
        if base == 1:
            continue
        source = t.streamed.get(base)
        if source is None or not n.is_number or n < 0:
            return Miss("NOT_SEPARABLE", None, f"the factor {streamed} grows or divides")
        if isinstance(source, Expr):
            if not n.is_Integer:
                return Miss("NOT_SEPARABLE", source.origin, f"the factor {streamed}")
            hidden |= source.op == "cast" and source.args[0].dtype == "bool"
            logarithm |= source in t.logarithms
            for _ in range(int(n)):
                body = source if body.op == "const" else make("mul", body, source)
            continue
        name, ell = source
        if lse not in (None, ell) or (name == "u" and not n.is_Integer):
            return Miss("NOT_SEPARABLE", ell.origin, f"the factor {streamed}")
        lse = ell
        if name == "E":
            exponent = int(n) if n.is_Integer else float(n)
        else:
            power = int(n)
    if hidden and (power or logarithm):
        return Miss("NOT_SEPARABLE", None, "a masked power of a logarithm")
    return Moment(body, lse, exponent, power)
