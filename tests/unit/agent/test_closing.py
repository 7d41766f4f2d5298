"""What a step of the trial closing may ask for."""

from __future__ import annotations

import pytest

from bench.agent.stage import Misuse
from bench.agent.trials import closing

NOWHERE = ("127.0.0.1", 9)


@pytest.mark.parametrize("count", [0, closing.MOST + 1, 1.5, "1", None])
def test_a_step_has_a_bound(count: object) -> None:
    # Nothing says who closes first: that is refused next, before anything is connected.
    with pytest.raises(Misuse, match=rf"^count: got {count!r}, expected 1 to 200000$"):
        closing._churn("127.0.0.1", NOWHERE, {"count": count})
    with pytest.raises(Misuse, match=r"^first, how: got None, None, expected"):
        closing._churn("127.0.0.1", NOWHERE, {"count": closing.MOST})


@pytest.mark.parametrize("patience", [0, closing.STEP + 1, "1", None])
def test_a_four_tuple_is_not_tried_again_for_ever(patience: object) -> None:
    with pytest.raises(Misuse, match=rf"^patience: got {patience!r}, expected above 0"):
        closing._reuse("127.0.0.1", [], {"patience": patience})
