"""One form of each idiom, by name: (function, maker of its arguments)."""
from __future__ import annotations

from tests.frontend import test_bodies, test_convolutions, test_logspace, test_loops, test_trees

IDIOMS = {
    "scan": (test_bodies.backwards_from_a_state, test_bodies.given),
    "tree": (test_trees.selective, lambda: test_trees.given(9)),
    "logarithms": (test_logspace.min_gru, test_logspace.given),
    "convolution": (test_convolutions.zero_order_hold, test_convolutions.given),
    **{name: test_loops.FORMS[name] for name in (
        "final_state_and_initial_state", "setitem", "log_gate", "advantages", "first_is_given", "one_pole_from_the_second",
        "states_are_contracted_after_the_loop", "appended_backwards")},
}
