"""Frames with flaws in ends, final states and action masks."""

from __future__ import annotations

import numpy as np
from bad_case import FRAME, LOST, NEXT, ROW_20, ROW_30, STATE_ONLY, UNFLAGGED, Bad, frame, read, state_only

ENDS = [
    Bad(
        "terminal flag too early",
        read(frame(dead=[True, True, False, True])),
        ValueError,
        (FRAME, r"`terminated` \(column 'dead'\)", "last row", r"index 10 \(episode 'p1'\)", "number apart"),
    ),
    Bad(
        "truncated flag too early",
        read(frame(lost=[False, False, True, False])),
        ValueError,
        (FRAME, r"`truncated` \(column 'lost'\)", ROW_30),
    ),
    Bad(
        "both flags",
        read(frame(lost=[False, True, False, False])),
        ValueError,
        (FRAME, "`terminated`", "`truncated`", "both flags", ROW_20, "keep one"),
    ),
    Bad(
        "flags as text",
        read(frame(dead=["no", "yes", "no", "yes"])),
        TypeError,
        (FRAME, "`terminated`", "booleans", "'no'", "map"),
    ),
    Bad(
        "flags as counts",
        read(frame(dead=[0, 2, 0, 1])),
        ValueError,
        (FRAME, "`terminated`", "0 and 1", "2 at index 20"),
    ),
    Bad(
        "flag missing",
        read(frame(dead=[False, True, None, True])),
        ValueError,
        (FRAME, "`terminated`", "0 and 1", ROW_30, "fill in"),
    ),
    Bad(
        "unflagged ends of different lengths",
        read(frame(t=[0, 1, 2, 0], id=["p1", "p1", "p1", "p2"]), **UNFLAGGED),
        ValueError,
        (FRAME, "one length|its length", "1 .episode 'p2'., 3 .episode 'p1'.", "terminated=", "truncated=", "horizon="),
    ),
    Bad(
        "unflagged end before the horizon",
        read(horizon=3, **UNFLAGGED),
        ValueError,
        (FRAME, "before step 3", r"\['p1', 'p2'\]", "terminated="),
    ),
    Bad(
        "episode longer than the horizon", read(horizon=1), ValueError, (FRAME, "horizon of 1 steps", r"\['p1', 'p2'\]")
    ),
    Bad(
        "terminal episode longer than the unflagged ones",
        read(frame(id=["p1", "p1", "p1", "p2"], t=[0, 1, 2, 0], dead=[False, False, True, False])),
        ValueError,
        (FRAME, "longer", "horizon of 1 steps", "'p1'"),
    ),
    Bad(
        "horizon that is no number",
        read(horizon=2.5),
        ValueError,
        (FRAME, "`horizon`", "positive number of steps", r"2\.5"),
    ),
    Bad("horizon zero", read(horizon=0), ValueError, (FRAME, "`horizon`", "positive", "got 0")),
]

FINAL_STATES = [
    Bad(
        "truncated without a state",
        read(frame(**LOST)),
        ValueError,
        (FRAME, r"\['p1', 'p2'\]", "next_states=", "state_only", '"drop"'),
    ),
    Bad(
        "truncated without next states",
        read(frame(**LOST, x_next=[1, np.nan, 3, 9], y_next=[0.5, np.nan, 0.5, 0.5]), **NEXT),
        ValueError,
        (FRAME, r"\['p1'\]", "state_only"),
    ),
    Bad(
        "next states that disagree",
        read(frame(x_next=[1.0, 9.0, 4.0, 9.0]), **NEXT),
        ValueError,
        (FRAME, r"`next_states` \(column 'x_next'\)", "agree", r"4\.0 before 3\.0", ROW_30, "missing in between"),
    ),
    Bad(
        "next states partly missing",
        read(frame(y_next=[0.5, np.nan, 0.5, 0.5]), **NEXT),
        ValueError,
        (FRAME, r"`next_states` \(column 'y_next'\)", "complete", ROW_20),
    ),
    Bad(
        "next states infinite",
        read(frame(y_next=[0.5, 0.5, 0.5, np.inf]), **NEXT),
        ValueError,
        (FRAME, "`next_states`", "inf", "index 40"),
    ),
    Bad(
        "next states as text",
        read(frame(y_next=list("abcd")), **NEXT),
        TypeError,
        (FRAME, "`next_states`", "numeric", "'y_next'"),
    ),
    Bad(
        "too few next states",
        read(next_states=["x_next"]),
        ValueError,
        (FRAME, "`next_states`", r"\['x', 'y'\]", r"got \['x_next'\]", "same order"),
    ),
    Bad(
        "next states and state-only rows",
        read(state_only(), **NEXT, **STATE_ONLY),
        ValueError,
        (FRAME, "`next_states`", "absent", "drop one"),
    ),
    Bad(
        "final_row of another kind",
        read(final_row="keep"),
        ValueError,
        (FRAME, "`final_row`", "state_only", "drop", "'keep'"),
    ),
    Bad(
        "state-only row with a reward",
        read(state_only(r=[1.0, None, 3.0, 4.0]), **STATE_ONLY),
        ValueError,
        (FRAME, "`reward`", "missing in the last row", "index 40", "append"),
    ),
    Bad(
        "state-only row with an action",
        read(state_only(act=["a", None, "a", "b"]), **STATE_ONLY),
        ValueError,
        (FRAME, r"`action` \(column 'act'\)", "missing in the last row", "index 40"),
    ),
    Bad(
        "state-only row without a state",
        read(state_only(x=[0.0, 1.0, 2.0, np.nan]), **STATE_ONLY),
        ValueError,
        (FRAME, "`states`", "finite", "index 40"),
    ),
    Bad(
        "state-only row alone",
        read(
            state_only(
                id=["p1", "p1", "p1", "p2"],
                t=[0, 1, 2, 0],
                act=["a", "a", None, None],
                r=[1, 2, None, None],
                dead=[False, False, True, True],
            ),
            **STATE_ONLY,
        ),
        ValueError,
        (FRAME, "state_only", "a row before its last", "index 40 .episode 'p2'.", "remove"),
    ),
    Bad(
        "dropped row alone",
        read(
            frame(
                id=["p1", "p1", "p2", "p3"],
                t=[0, 1, 0, 0],
                dead=[False, True, False, True],
                lost=[False, False, True, False],
            ),
            final_row="drop",
        ),
        ValueError,
        (FRAME, "'drop'", "a row before its last", ROW_30, "next_states="),
    ),
]

MASKS = [
    Bad(
        "mask forbids the logged action",
        read(frame(may_b=[True, False, True, True]), action_mask=["may_a", "may_b"]),
        ValueError,
        (FRAME, "`action_mask`", "allow the logged action", "'b' masked", ROW_20),
    ),
    Bad(
        "mask forbids everything",
        read(frame(may_a=False, may_b=False), action_mask=["may_a", "may_b"]),
        ValueError,
        (FRAME, "`action_mask`", "in every row", "index 10"),
    ),
    Bad(
        "mask as text",
        read(frame(may_b=list("nyny")), action_mask=["may_a", "may_b"]),
        ValueError,
        (FRAME, r"`action_mask` \(column 'may_b'\)", "booleans", "'n'", "convert"),
    ),
    Bad(
        "mask missing",
        read(frame(may_a=[True, None, True, True]), action_mask=["may_a", "may_b"]),
        ValueError,
        (FRAME, "'may_a'", ROW_20, "fill in"),
    ),
    Bad("too few masks", read(action_mask=["may_a"]), ValueError, (FRAME, "`action_mask`", r"\(4, 2\)", r"\(4, 1\)")),
    Bad("masks of other labels", read(action_mask={"a": "may_a", "c": "may_b"}), ValueError, (FRAME, "'b'", "among")),
    Bad(
        "masks that miss a label",
        read(action_mask={"a": "may_a"}, actions=["a", "b"]),
        ValueError,
        (FRAME, "`action_mask`", r"\['a', 'b'\]", r"\['a'\]", "complete"),
    ),
    Bad(
        "masks of continuous actions",
        read(frame(act=[0.5, 1, 1, 1]), action_mask=["may_a", "may_b"]),
        ValueError,
        (FRAME, "`action_mask`", "absent for continuous", "drop it"),
    ),
    Bad(
        "mask missing at a truncated end",
        read(state_only(**LOST, may_a=[True, True, True, None]), action_mask=["may_a", "may_b"], **STATE_ONLY),
        ValueError,
        (FRAME, "'may_a'", "index 40"),
    ),
    Bad(
        "mask empty at a truncated end",
        read(
            state_only(**LOST, may_a=[True, False, True, True], may_b=[True, False, True, True]),
            action_mask=["may_a", "may_b"],
            **STATE_ONLY,
        ),
        ValueError,
        (FRAME, "`action_mask`", "every state", ROW_20),
    ),
]

BAD_ENDS = [*ENDS, *FINAL_STATES, *MASKS]
