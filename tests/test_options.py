"""Options are checked by name and by value, and every message says what would be right."""
from __future__ import annotations

import os
from dataclasses import fields

import pytest

from fuse.options import DEFAULT_MIN_VIRTUAL_BYTES, OptionError, Options, cache_directory


def test_the_defaults():
    assert Options.parse() == Options() == Options.parse({})
    assert Options().virtual_floor == DEFAULT_MIN_VIRTUAL_BYTES and Options(min_virtual_bytes=0).virtual_floor == 0
    assert Options().slab and not Options(schedule="recompute").slab and not Options(schedule="least-memory").slab


def test_every_option_is_accepted():
    given = {"target": "cpu", "min_virtual_bytes": 0, "gradient_filter": "off", "schedule": "slab", "strict": True,
             "require": ["attention"], "fuel": 3, "mode": "max-autotune", "tile": {"row": 16}, "arch": "sm_90"}
    assert set(given) == {f.name for f in fields(Options)}
    parsed = Options.parse(given)
    assert parsed.require == ("attention",) and parsed.tile == {"row": 16} and parsed.arch == "sm90"


@pytest.mark.parametrize("options, message", [
    ({"min_virtual_byte": 0}, "no option 'min_virtual_byte'; the options are target, min_virtual_bytes"),
    ({"max_autotune": True}, "no option 'max_autotune'"),
    ({"target": "cuda"}, "'target' must be one of 'auto', 'cpu', 'triton', not 'cuda'"),
    ({"min_virtual_bytes": -1}, "'min_virtual_bytes' must be an integer >= 0"),
    ({"min_virtual_bytes": True}, "'min_virtual_bytes' must be an integer >= 0"),
    ({"fuel": 1.5}, "'fuel' must be an integer"),
    ({"gradient_filter": "on"}, "'gradient_filter' must be 'off'.*'auto', or a number of at least 0 and below 1, not 'on'"),
    ({"gradient_filter": "0.1"}, "'gradient_filter' must be"),
    ({"gradient_filter": -1e-3}, "'gradient_filter' must be"),
    ({"gradient_filter": 1.0}, "'gradient_filter' must be"),
    ({"gradient_filter": float("nan")}, "'gradient_filter' must be"),
    ({"gradient_filter": float("inf")}, "'gradient_filter' must be"),
    ({"gradient_filter": True}, "'gradient_filter' must be"),
    ({"gradient_filter": None}, "'gradient_filter' must be"),
    ({"gradient_filter": [0.1]}, "'gradient_filter' must be"),
    ({"schedule": "best"}, "'schedule' must be one of 'auto', 'recompute'"),
    ({"strict": 1}, "'strict' must be True or False"),
    ({"require": ["cross_entropy"]}, "no kind is called 'cross_entropy'; the kinds are attention"),
    ({"mode": "fast"}, "'mode' must be one of default"),
    ({"tile": {"row": 0}}, "'tile' must map dimensions to positive extents"),
    ({"tile": 16}, "'tile' must map dimensions"),
    ({"arch": "sm_70"}, "'arch' must be one of cpu, sm80, .*gfx942, not 'sm_70'"),
    ({"arch": 90}, "'arch' must be one of"),
])
def test_what_is_refused(options, message):
    with pytest.raises(OptionError, match=message):
        Options.parse(options)


def test_the_gradient_filter_is_off_or_a_bound():
    given = ("off", "auto", 0, 2 ** -12)
    assert [Options.parse({"gradient_filter": value}).eps for value in given] == [None, "auto", 0.0, 2.0 ** -12]
    assert len({Options.parse({"gradient_filter": value}).digest for value in given}) == len(given)


def test_mode_may_come_from_either_side():
    assert Options.parse(None, "reduce-overhead").mode == Options.parse({"mode": "reduce-overhead"}).mode == "reduce-overhead"
    with pytest.raises(OptionError, match="mode"):
        Options.parse(None, "bogus")


def test_the_digest_is_that_of_what_changes_code():
    base = Options.parse({"tile": {"row": 16, "col": 32}})
    assert base.digest == Options.parse({"tile": {"col": 32, "row": 16}, "strict": True, "require": "scan"}).digest
    assert len({base.digest, Options().digest, Options(schedule="slab").digest, Options(tile={"row": 8}).digest}) == 4


def test_the_cache_directory_comes_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("FUSE_CACHE_DIR", str(tmp_path))
    assert cache_directory() == tmp_path
    monkeypatch.delenv("FUSE_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_directory() == tmp_path / "x" / "fuse"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory() == tmp_path / ".cache" / "fuse"
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 54321)     # a container's user, of whom the system knows nothing
    assert cache_directory() is None
    monkeypatch.setenv("FUSE_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    assert cache_directory() is None
