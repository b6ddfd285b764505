"""Metrics of composites, each under the name of the protocol that says how it is computed.

A protocol is what one paper's figures follow; figures of two are never compared. `dreamcom`: Lu et
al. 2023 (arXiv 2309.15508); `bcmi`: the metrics that its group released; `shine`: arXiv 2509.21278;
`dreamedit`: Li et al. 2023 (arXiv 2306.12624); `iharmony4`: Cong et al. 2020 (arXiv 1911.13239);
`inlay`: our own, for any data set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image as PILImage

from inlay.errors import InputError, nearest, show
from inlay.evaluation import protocols
from inlay.evaluation.networks import HUB, find_network
from inlay.evaluation.pairs import Pair
from inlay.evaluation.protocols import Value, View


@dataclass(frozen=True)
class Metric:
    """One figure of a result, or several of one run of a network, by their names.

    source: the paper or release that it follows. reason: why it cannot be had here, one sentence;
    None where it can. models: the folders or ids of its networks. Called with a pair and its
    result, it says {} where the pair lacks what it is measured by, such as a truth. Raises
    InputError where it cannot be had, or the result does not fit the pair.
    """

    name: str
    protocol: str
    source: str
    higher_is_better: bool
    reason: str | None = None
    measure: Callable[[Pair, PILImage.Image], Value] = field(repr=False, default=lambda *_: {})
    models: Sequence[str] = ()

    def __call__(self, pair: Pair, result: PILImage.Image) -> Value:
        if self.reason:
            raise InputError(f"{self.name} of {self.protocol} is not available: {self.reason}")
        return self.measure(pair, result)


def metrics_of(protocol: str, models: Mapping[str, Path | str] | None = None) -> list[Metric]:
    """The metrics of a protocol, one of PROTOCOLS; raises InputError for another name.

    models: the folder or the hub id of a network by its name (networks.HUB); one that is not named
    is the hub's. Networks are opened here, once, so that each metric's reason is known.
    """
    if protocol not in PROTOCOLS:
        raise InputError(f"there is no protocol {show(protocol)}; {nearest(protocol, PROTOCOLS)}")
    for name in models or {}:
        if name not in HUB:
            raise InputError(f"there is no network {show(name)} of metrics; {nearest(name, HUB)}")
    source, rows = PROTOCOLS[protocol]
    metrics = []
    for name, higher, needs, function in rows:
        reason, networks = None, []
        try:
            networks = [find_network(need, models or {}) for need in needs]
        except InputError as error:
            reason = str(error)
        if function is None:
            reason = "inlay has no network for it that is safe to read."
        taken = partial(_measured, function, networks)
        sources = [str((models or {}).get(need) or HUB.get(need)) for need in needs]
        metrics.append(Metric(name, protocol, source, higher, reason, taken, sources))
    return metrics


def _measured(function: Any, networks: Any, pair: Pair, result: PILImage.Image) -> Value:
    value: Value = function(View(pair, result), *networks)
    return value


_Row = tuple[str, bool, tuple[str, ...], Callable[..., Value] | None]
# By name the source, and of each metric its name, whether more is better, and its networks.
PROTOCOLS: dict[str, tuple[str, list[_Row]]] = {
    "dreamcom": (
        "DreamCom, arXiv 2309.15508, section 6.2; what it leaves open is ours: a reference's "
        "object is the box round its mask, crops are fitted as DreamEdit's release does, SSIM and "
        "LPIPS (VGG-16) are at 512 x 512, the box excluded",
        [
            ("dino", True, ("dino",), protocols.likeness),
            ("clip_i", True, ("clip",), protocols.likeness),
            ("ssim", True, (), protocols.dreamcom_ssim),
            ("lpips", False, ("vgg16",), protocols.dreamcom_lpips),
        ],
    ),
    "bcmi": (
        "the metrics released with bcmi's image composition; DINO by its first token, for the "
        "pooler that they take has no weights in the checkpoint; the box is black in both pictures",
        [
            ("clip_i", True, ("clip", "sam"), protocols.bcmi_likeness),
            ("dino", True, ("dino", "sam"), protocols.bcmi_likeness),
            ("ssim", True, (), protocols.bcmi_ssim),
            ("lpips", False, ("vgg16",), protocols.bcmi_lpips),
        ],
    ),
    "shine": (
        "SHINE, arXiv 2509.21278, evaluation_dreameditbench.py; the box is black in both pictures",
        [
            ("clip_i", True, ("clip",), partial(protocols.shine_likeness, "crop", 1, 0)),
            ("dinov2", True, ("dinov2",), partial(protocols.shine_likeness, "crop mean", 0.5, 0.5)),
            ("irf", True, (), None),
            ("dreamsim", False, ("dreamsim",), partial(protocols.shine_likeness, "squash", -1, 1)),
            ("lpips", False, ("alexnet",), protocols.shine_lpips),
            ("ssim", True, (), protocols.shine_ssim),
            ("image_reward", True, (), None),
        ],
    ),
    "dreamedit": (
        "DreamEdit, arXiv 2306.12624, auto_evaluation.py",
        [("dreamedit", True, ("dino", "clip"), protocols.dreamedit)],
    ),
    "iharmony4": (
        "iHarmony4, arXiv 1911.13239, evaluation.py",
        [
            (name, name == "psnr", (), partial(protocols.iharmony4, name))
            for name in ("mse", "fmse", "psnr")
        ],
    ),
    "inlay": (
        "inlay's own, at the picture's size; comparable with no paper's",
        [
            ("ssim_outside", True, (), protocols.own_ssim),
            ("changed_outside", False, (), protocols.changed_outside),
            ("seam", False, (), protocols.edge),
            ("truth_fmse", False, (), partial(protocols.against_truth, "fmse")),
            ("truth_fpsnr", True, (), partial(protocols.against_truth, "fpsnr")),
            ("truth_delta_e", False, (), partial(protocols.against_truth, "delta_e")),
            ("truth_psnr", True, (), partial(protocols.against_truth, "psnr")),
            ("truth_ssim", True, (), partial(protocols.against_truth, "ssim")),
            ("truth_lpips", False, ("vgg16",), partial(protocols.against_truth, "lpips")),
            ("clip_t", True, ("clip",), protocols.clip_t),
            ("efficientnet_lite0", True, ("efficientnet",), protocols.likeness),
        ],
    ),
}
