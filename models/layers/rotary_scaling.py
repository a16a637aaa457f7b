"""Rotary positions for longer texts than a model was trained on: slower turns, so that no angle is new to it.

`{"kind": "linear", "factor": f}` turns everything f times slower. `{"kind": "llama3", "factor": f, "low_factor": l,
"high_factor": h, "trained_length": t}` does so where a whole turn takes more than t / l places, leaves alone what takes
fewer than t / h, which tells near places apart, and goes from one to the other in between.
"""

import math
from collections.abc import Mapping
from typing import Any

from keras import ops

from models.layers.classification import check_choice

NAMES = {"linear": ("factor",), "llama3": ("factor", "low_factor", "high_factor", "trained_length")}


def check_scaling(scaling: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A copy of a scaling, None for none.

    Raises:
        ValueError: it is not as described, with numbers above 0, and `high_factor` above `low_factor`.
    """
    if not scaling:
        return None
    kind = check_choice("kind of rotary_scaling", scaling.get("kind"), tuple(NAMES))
    expected = {"kind", *NAMES[kind]}
    numbers = [value for name, value in scaling.items() if name != "kind"]
    if set(scaling) != expected or not all(isinstance(one, (int, float)) and one > 0 for one in numbers):
        raise ValueError(
            f"rotary_scaling {kind!r} has {', '.join(NAMES[kind])}, all above 0. Received: {dict(scaling)}"
        )
    if kind == "llama3" and scaling["high_factor"] <= scaling["low_factor"]:
        raise ValueError(f"high_factor of rotary_scaling must be above low_factor. Received: {dict(scaling)}")
    return dict(scaling)


def scaled_rates(rates, scaling: Mapping[str, Any]):
    """Radians per place, (d / 2,), scaled.

    Reference: Chen et al. 2023, "Extending context window of large language models via positional interpolation",
        eq. 4, for "linear"; Meta's release of LLaMA 3.1, `apply_scaling`, for "llama3".
    """
    slow = rates / scaling["factor"]
    if scaling["kind"] == "linear":
        return slow
    low, high = scaling["low_factor"], scaling["high_factor"]
    turns = scaling["trained_length"] * rates / (2 * math.pi)  # of a text of that length
    share = ops.clip((turns - low) / (high - low), 0.0, 1.0)
    return share * rates + (1.0 - share) * slow
