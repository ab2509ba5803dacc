"""Source text with its words sorted into a few classes, as runs `class length` that a page colours when it shows them.

A page holds many kernels: marking up every word would make it six times as long. Without pygments the text stays plain.
"""
from __future__ import annotations

import re
from functools import cache
from typing import Any

CLASSES = {"Comment": "c", "Keyword": "k", "Literal.String": "s", "Literal.Number": "n", "Name.Function": "f",
           "Name.Class": "f", "Name.Builtin": "b", "Keyword.Type": "t", "Name.Decorator": "f", "Comment.Preproc": "p"}
IR_WORDS = re.compile(r"(?P<c>#.*)|(?P<k>\b(?:program|axis|input|output|anchor|region|define|carry|emit|check|stream|streams|"
                      r"grid|over|reverse|relative)\b)|(?P<t>\b(?:b?float|u?int|complex)\d+\b|\bbool\b)|"
                      r"(?P<f>\b[a-z_]+(?=[({]))|(?P<n>(?<![\w.])-?\d+(?:\.\d+)?(?:e-?\d+)?\b)|(?P<p>%\d+)")


def marked(text: str, language: str) -> dict[str, str]:
    """{"text": the text, "runs": such as "k3 1f7"}: a class (none: plain) and a number of characters, one after the other."""
    words = _ir(text) if language == "ir" else _source(text, language)
    runs: list[tuple[str, int]] = []
    for kind, word in words:
        if runs and runs[-1][0] == kind:
            runs[-1] = kind, runs[-1][1] + len(word)
        elif word:
            runs.append((kind, len(word)))
    return {"text": text, "runs": " ".join(f"{kind}{length}" for kind, length in runs)}


def _ir(text: str) -> list[tuple[str, str]]:
    words, at = [], 0
    for found in IR_WORDS.finditer(text):
        words += [("", text[at:found.start()]), (found.lastgroup or "", found.group())]
        at = found.end()
    return [*words, ("", text[at:])]


def _source(text: str, language: str) -> list[tuple[str, str]]:
    lexer = _lexer(language)
    return [("", text)] if lexer is None else [(_class(str(token)[6:]), word) for token, word in lexer.get_tokens(text)]


@cache
def _class(token: str) -> str:
    """'Name.Function.Magic' -> 'f': the class of the nearest kind that has one."""
    while token and token not in CLASSES:
        token = token.rpartition(".")[0]
    return CLASSES.get(token, "")


@cache
def _lexer(language: str) -> Any:
    try:
        from pygments.lexers import get_lexer_by_name
    except ImportError:
        return None
    return get_lexer_by_name(language, stripnl=False, ensurenl=False)
