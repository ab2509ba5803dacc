from types import SimpleNamespace
from fuse.ir.size import Size
def affine(e):
    if e.op=="iota": return SimpleNamespace(terms={e["axis"]:Size.of(1)},offset=Size.of(0))
    if e.op=="const": return SimpleNamespace(terms={},offset=Size.of(e["value"]))
    if e.op=="size": return SimpleNamespace(terms={},offset=e["extent"])
    if e.op in("add","sub","mul","neg"):
        f=[affine(a) for a in e.args]
        if any(x is None for x in f): return None
        if e.op=="neg": return SimpleNamespace(terms={k:-v for k,v in f[0].terms.items()},offset=-f[0].offset)
        a,b=f
        if e.op=="mul":
            if a.terms and b.terms: return None
            if a.terms: a,b=b,a
            return SimpleNamespace(terms={k:v*a.offset for k,v in b.terms.items()},offset=a.offset*b.offset)
        s=1 if e.op=="add" else -1
        t=dict(a.terms)
        for k,v in b.terms.items(): t[k]=t.get(k,Size.of(0))+v*s
        return SimpleNamespace(terms={k:v for k,v in t.items() if v!=0},offset=a.offset+b.offset*s)
    return None
