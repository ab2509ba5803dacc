"""Folds `across` the strip: each lane is a state of its own (see `folds`), and a block of several vectors is folded at once."""
from __future__ import annotations

from fuse.codegen.cpu.folds import Fold, Folds
from fuse.codegen.cpu.frame import Frame
from fuse.codegen.cpu.nests import index_of
from fuse.codegen.cpu.spell import LOWEST
from fuse.codegen.cpu.values import Strip, ctype_of_sum
from fuse.codegen.tile import Update
from fuse.ir.program import Kind

PER_LANE = "for (int k = 0; k < n; ++k) {"


class Lanes(Folds):
    def across(self, frame: Frame, fold: Fold, outer: tuple[str, ...], reduce: tuple[str, ...], strip: str) -> None:
        loops = self.nests.outer(frame, outer)
        block = self.nests.chunk(loops, strip, step="WIDE", parallel=not outer)
        lses = [u for u in fold.updates if u.kind is Kind.LSE]
        names = {u.state for u in lses}
        second = [u for u in fold.updates if u.relative in names]
        first = [u for u in fold.updates if u.kind is not Kind.LSE and u not in second]
        if lses or first:
            self.lane_pass(block, reduce, strip, [*lses, *first])
        for u in first:
            self.lane_flush(u, block)
        if lses:
            for u in lses:
                self.lane_maximum(u, block, u.state in fold.shared)
            self.weighted_pass(block, fold, reduce, strip, lses, second)
        self.nests.close(block, frame)

    def lanes_of(self, block: Frame, u: Update, prefix: str) -> None:
        """Lane accumulators of one update: `h_`/`g_` within a block of BLOCK positions, `a_` in double across blocks."""
        state = self.ctx.program.state(u.state)
        ctype = self.lane_type(state)
        summed = prefix == "g" or u.kind is Kind.SUM
        identity = f"{ctype}(0)" if summed else LOWEST[ctype]
        block.add(f"{ctype} {prefix}_{u.state}[WIDE]; fill({prefix}_{u.state}, {identity});")
        if summed:
            total = ctype_of_sum(state.dtype)
            block.add(f"{total} a_{u.state}[WIDE]; fill(a_{u.state}, {total}(0));")
        elif u.kind is Kind.ARGMAX:
            block.add(f"int w_{u.state}[WIDE]; fill(w_{u.state}, 0);")

    def reduce_loops(self, block: Frame, reduce: tuple[str, ...], strip: str) -> tuple[Frame, Frame]:
        """(frame of BLOCK positions of the last reduced dim, strip body)."""
        loops = self.nests.outer(block, reduce[:-1], parallel=False)
        i, count = index_of(reduce[-1]), self.ctx.count(reduce[-1])
        blocks = loops.open(f"for (int {i}0 = 0; {i}0 < {count}; {i}0 += BLOCK) {{")
        each = blocks.open(f"for (int {i} = {i}0; {i} < {count} && {i} < {i}0 + BLOCK; ++{i}) {{", {reduce[-1]: i})
        return blocks, self.nests.strip(each, strip, apart=True)

    def lane_pass(self, block: Frame, reduce: tuple[str, ...], strip: str, updates: list[Update]) -> None:
        for u in updates:
            self.lanes_of(block, u, "h")
        blocks, body = self.reduce_loops(block, reduce, strip)
        for u in updates:
            if u.kind is Kind.LSE:
                assert u.value is not None
                name = self.values.get(u.value, body)
                body.add(f"h_{u.state}[k] = {name} > h_{u.state}[k] ? {name} : h_{u.state}[k];")
            elif u.kind is Kind.ARGMAX:
                assert u.value is not None
                name = self.values.get(u.value, body)
                body.add(f"const bool b_{u.state} = beats({name}, h_{u.state}[k]);",
                         f"h_{u.state}[k] = b_{u.state} ? {name} : h_{u.state}[k];",
                         f"w_{u.state}[k] = b_{u.state} ? {body.bound[reduce[-1]]} : w_{u.state}[k];")
            else:
                self.accumulate(u, body)
        self.nests.close(body, blocks)
        for u in updates:
            if u.kind is Kind.SUM:
                blocks.add(f"flush(a_{u.state}, h_{u.state});")
        self.nests.close(blocks, block)

    def lane_flush(self, u: Update, block: Frame) -> None:
        lane, each = block.thing("strip"), block.open(PER_LANE)
        assert isinstance(lane, Strip)
        if u.kind is Kind.ARGMAX:
            best, where = (self.at(self.array(f"{u.state}{s}", each), each, lane) for s in ("_v", ""))
            first = {"row": "row0", "col": "col0"}[u.over[0]]
            each.add(f"if (beats(h_{u.state}[k], {best})) {{ {best} = h_{u.state}[k]; {where} = {first} + w_{u.state}[k]; }}")
        else:
            target = self.at(self.array(u.state, each), each, lane)
            each.add(f"{target} = max_({target}, h_{u.state}[k]);" if u.kind is Kind.MAX else f"{target} += a_{u.state}[k];")
        each.close()

    def lane_maximum(self, u: Update, block: Frame, shared: bool) -> None:
        lane, ctype = block.thing("strip"), self.lane_type(self.ctx.program.state(u.state))
        assert isinstance(lane, Strip)
        block.add(f"{ctype} m_{u.state}[WIDE], delta_{u.state}[WIDE];", f"fill(m_{u.state}, {ctype}(0));")
        each = block.open(PER_LANE)
        self.raise_lane(u, each, lane, ctype)
        if shared:
            each.add(f"{self.at(self.array(f'{u.state}_o', each), each, lane)} = old;")
        each.close()

    def raise_lane(self, u: Update, each: Frame, lane: Strip, ctype: str) -> None:
        at = self.at(self.array(f"{u.state}_m", each), each, lane)
        each.add(f"const {ctype} old = {at}, top = h_{u.state}[k] > old ? h_{u.state}[k] : old;",
                 f"m_{u.state}[k] = origin(top);", f"delta_{u.state}[k] = drop(old, top);", f"{at} = top;")

    def weighted_pass(self, block: Frame, fold: Fold, reduce: tuple[str, ...], strip: str, lses: list[Update],
                      second: list[Update]) -> None:
        for u in (*lses, *second):
            self.lanes_of(block, u, "g")
        blocks, body = self.reduce_loops(block, reduce, strip)
        for u in lses:
            assert u.value is not None
            ctype = self.ctx.ctype(u.value)
            body.add(f"const {ctype} z_{u.state} = {self.values.get(u.value, body)} - m_{u.state}[k];",
                     f"const {ctype} e_{u.state} = exp_(z_{u.state});", f"g_{u.state}[k] += e_{u.state};")
        for u in second:
            body.add(f"g_{u.state}[k] += {self.contribution(u, body)};")
        for w in fold.weighted:
            if w.update.relative in {u.state for u in lses}:
                body.add(f"{self.nests.target(w.array, body)} = {self.contribution(w.update, body)};")
        self.nests.close(body, blocks)
        for u in (*lses, *second):
            blocks.add(f"flush(a_{u.state}, g_{u.state});")
        self.nests.close(blocks, block)
        lane, each = block.thing("strip"), block.open(PER_LANE)
        assert isinstance(lane, Strip)
        for u in (*second, *lses):
            delta = f"delta_{u.relative or u.state}[k]"
            if u.kind is Kind.LSE:
                target = self.at(self.array(f"{u.state}_l", each), each, lane)
                each.add(f"{target} = exp_({delta}) * {target} + a_{u.state}[k];")
            else:
                target = self.at(self.array(u.state, each), each, lane)
                each.add(f"{target} = {self.moved(u, each, self.rho(u, delta), delta, lane)} + a_{u.state}[k];")
        each.close()
