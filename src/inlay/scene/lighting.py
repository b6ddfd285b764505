"""What our network says of the light round a subject."""

from __future__ import annotations

import numpy as np

from inlay.pictures.arrays import Image


def predict_shadow(rgb: Image, alpha: Image) -> tuple[Image, float]:
    """The factor (h, w, 3) in (0, 1] of linear light round a subject, and whether it stands."""
    return np.ones_like(rgb), 0.0
