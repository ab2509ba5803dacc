"""Text that every Python carries, as tokens: its language reference, and the prose in its standard library.

Nothing is downloaded. A byte-level BPE vocabulary is trained on that text the first time, and the tokens are kept in
the user's cache folder.
"""
from __future__ import annotations

import ast
import os
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

MAX_CHARACTERS = 8_000_000
SKIPPED = {"site-packages", "dist-packages", "test", "lib2to3"}


def load_tokens(vocabulary: int) -> np.ndarray:
    """The corpus as token ids in [0, vocabulary), int32. Tokenised once, then read from the cache."""
    path = cache_folder() / f"stdlib-py{sys.version_info.major}.{sys.version_info.minor}-bpe{vocabulary}.npy"
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError):
        tokens = _tokenise(list(_texts()), vocabulary)
    try:
        _write(path, tokens)
    except OSError as error:
        print(f"the tokens could not be kept in {path}: {error}", file=sys.stderr)
    return tokens


def load_bytes(count: int) -> np.ndarray:
    """The first `count` bytes of the corpus, uint8: no vocabulary has to be made for them."""
    found = bytearray()
    for text in _texts():
        found += text.encode()
        if len(found) >= count:
            break
    return np.frombuffer(bytes(found[:count]), np.uint8)


def _tokenise(texts: list[str], vocabulary: int) -> np.ndarray:
    from tokenizers import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts, vocab_size=vocabulary, min_frequency=1, show_progress=False)
    return np.concatenate([np.asarray(encoded.ids, np.int32) for encoded in tokenizer.encode_batch(texts)])


def _texts() -> Iterator[str]:
    """The language reference, then each module's prose, in the same order on every machine, up to MAX_CHARACTERS."""
    from pydoc_data.topics import topics

    left = MAX_CHARACTERS
    for text in (*topics.values(), *_prose(Path(sysconfig.get_path("stdlib")))):
        left -= len(text)
        if left < 0:
            return
        yield text


def _prose(library: Path) -> Iterator[str]:
    """Each module's docstrings, then its comments."""
    for path in sorted(library.rglob("*.py")):
        if SKIPPED.intersection(path.relative_to(library).parts):
            continue
        try:
            source = path.read_text("utf-8")
            nodes = list(ast.walk(ast.parse(source)))
        except (OSError, SyntaxError, ValueError):
            continue  # templates and the like: a text less
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        docstrings = [ast.get_docstring(node) or "" for node in nodes if isinstance(node, documented)]
        comments = [line.strip("# ") for line in source.splitlines() if line.lstrip().startswith("# ")]
        yield "\n\n".join(filter(None, docstrings)) + "\n\n"
        yield "\n".join(comments) + "\n\n"


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fuse-demo"


def _write(path: Path, tokens: np.ndarray) -> None:
    """Write beside, then rename: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".npy", delete=False) as file:
        np.save(file, tokens)
    os.replace(file.name, path)
