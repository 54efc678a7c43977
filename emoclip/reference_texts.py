# SPDX-License-Identifier: Apache-2.0
"""Generic descriptions of faces, used as the reference for the percentile of a text in `pipe.alignment`."""

from itertools import product

# Our own wording, based on the action units of the Facial Action Coding System (numbers in brackets).
_UPPER = (
    "a smooth forehead and relaxed eyes",
    "raised eyebrows",  # [1 + 2]
    "inner eyebrows pulled up",  # [1]
    "lowered eyebrows drawn together",  # [4]
    "wide open eyes",  # [5]
    "narrowed eyes",  # [7]
    "raised cheeks with wrinkles around the eyes",  # [6]
    "drooping eyelids",  # [43]
    "closed eyes",
    "one raised eyebrow",
    "a downcast gaze",
)
_LOWER = (
    "a closed, relaxed mouth",
    "a smile",  # [12]
    "a broad smile with teeth",  # [12 + 25]
    "mouth corners pulled down",  # [15]
    "tightly pressed lips",  # [24]
    "parted lips",  # [25]
    "a wide open mouth",  # [26]
    "lips stretched sideways",  # [20]
    "a wrinkled nose and a raised upper lip",  # [9 + 10]
    "one mouth corner raised",  # [14]
    "a raised chin and pushed up lower lip",  # [17]
)
REFERENCE_TEXTS = tuple(f"{upper} and {lower}" for upper, lower in product(_UPPER, _LOWER))

__all__ = ["REFERENCE_TEXTS"]
