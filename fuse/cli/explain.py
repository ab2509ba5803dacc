"""`fuse explain CODE`: what a refusal means, an example of it, and what to write instead."""
from __future__ import annotations

import argparse
from typing import Any

from fuse.cli import screen
from fuse.cli.errors import UsageError
from fuse.reasons import REASONS, Reason
from fuse.reasons_examples import EXAMPLES


def add(commands: Any) -> None:
    explain = commands.add_parser("explain", help="say what a refusal means", description=__doc__)
    explain.add_argument("code", metavar="CODE")
    screen.add_json(explain)
    explain.set_defaults(run=run)
    reasons = commands.add_parser("reasons", help="print every refusal as Markdown")
    screen.add_json(reasons)
    reasons.set_defaults(run=run_all)


def run(parsed: argparse.Namespace) -> int:
    reason = REASONS.get(parsed.code.upper())
    if reason is None:
        raise UsageError(f"there is no code {parsed.code!r}; the codes are {', '.join(REASONS)}")
    if parsed.json:
        screen.document("explain", described(reason))
        return 0
    example = EXAMPLES[reason.code]
    screen.say(f"{reason.code}\n  cause  {reason.cause}\n  hint   {reason.hint}\n\n; declined")
    screen.code(example.before, "python")
    if example.after:
        screen.say("\n; instead")
        screen.code(example.after, "python")
    return 0


def described(reason: Reason) -> dict[str, Any]:
    example = EXAMPLES[reason.code]
    return {"code": reason.code, "cause": reason.cause, "hint": reason.hint, "example": example.before, "instead": example.after}


def run_all(parsed: argparse.Namespace) -> int:
    if parsed.json:
        screen.document("reasons", {"reasons": [described(r) for r in REASONS.values()]})
    else:
        print(reasons_page(), end="")
    return 0


def reasons_page() -> str:
    """docs/reasons.md."""
    rows = "\n".join(f"| [`{r.code}`](#{r.code.lower()}) | {r.cause} | {r.hint} |" for r in REASONS.values())
    return f"""# Why fuse declines

Every refusal has a code. `fuse.explain` and `fuse inspect` give it together with the line of your program, `fuse explain
CODE` prints what this page says of it; `torch._dynamo.utils.counters["fuse"]["declined"]` counts them, and
`TORCH_LOGS=+fuse` logs each. What is declined is compiled by Inductor, as if fuse were not there.

This page is made by `fuse reasons > docs/reasons.md`. In the examples, `h` is `[tokens, width]`, `W` is `[words, width]`
and `y` holds a word for each token.

| code | cause | what you can do |
|---|---|---|
{rows}

{chr(10).join(map(_section, REASONS.values()))}"""


def _section(reason: Reason) -> str:
    example = EXAMPLES[reason.code]
    instead = f"\nInstead:\n\n```python\n{example.after}\n```\n" if example.after else ""
    return f"## {reason.code}\n\n```python\n{example.before}\n```\n{instead}"
