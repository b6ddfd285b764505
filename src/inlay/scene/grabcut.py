"""GrabCut: the one place that asks OpenCV to tell a thing from its background by their colours."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["grabcut", "without_specks"]

Mask = NDArray[np.bool_]


def grabcut(picture: NDArray[np.uint8], labels: NDArray[np.uint8], rounds: int) -> Mask | None:
    """The thing in a picture (h, w, 3), bool (h, w) (Rother, Kolmogorov and Blake 2004).

    labels (h, w) are OpenCV's: GC_BGD and GC_FGD stay what they are, GC_PR_BGD and GC_PR_FGD are
    guesses, of which `rounds` of fitting colours and cutting make up their mind. The labels are
    not written to, and the same input gives the same mask. None where thing or background have
    too few pixels to fit colours to.
    """
    import cv2

    labels = np.ascontiguousarray(labels).copy()
    # The fit starts from k-means, which draws from OpenCV's own, global generator.
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    nowhere = (0, 0, 1, 1)
    picture = np.ascontiguousarray(picture)
    try:
        cv2.grabCut(picture, labels, nowhere, *models, rounds, cv2.GC_INIT_WITH_MASK)
    except cv2.error:
        return None
    return np.asarray((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD))


def without_specks(mask: Mask, piece: float, gap: float) -> Mask:
    """A mask (h, w) without pieces below the share `piece` of the largest one's area, and with the
    gaps inside filled that are below the share `gap` of its whole area.
    """
    import cv2

    for keep in (True, False):
        count, labels, facts, _ = cv2.connectedComponentsWithStats(
            (mask == keep).astype(np.uint8), connectivity=8 if keep else 4
        )
        if count < 2:
            continue
        areas = facts[:, cv2.CC_STAT_AREA]
        small = areas < (piece * areas[1:].max() if keep else gap * mask.sum())
        small[0] = False
        mask = mask ^ small[labels]
    return mask
