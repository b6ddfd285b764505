"""Networks that work beside a frozen U-Net: T2I-Adapters and harmonizers.

What a T2I-Adapter (Mou et al. 2023, arXiv 2302.08453) makes of a control image, lines white on
black, is added in the U-Net's blocks on the way down, the same at every timestep. Those published
for Stable Diffusion were trained on Canny's edges, or on soft lines as of a pencil.

A harmonizer is PhD's Inpainting and Harmonizing Module (Zhang et al. 2023, arXiv 2306.07596) as a
ControlNet (Zhang et al. 2023, arXiv 2302.05543): a copy of the U-Net's encoder whose features are
added to what the decoder reads. Its four channels of condition are red, green and blue of the
pasted picture in [-1, 1] and the mask in [0, 1].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal

import cv2
import numpy as np
import torch
from diffusers import ControlNetModel, T2IAdapter
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from inlay.diffusion.backbone import Backbone
from inlay.diffusion.conditions import Conditions, Guide
from inlay.diffusion.sample import CLEAN, Level, Step, sample
from inlay.errors import InputError

ControlType = Literal["canny", "sketch"]
Image = NDArray[np.uint8]
Lines = NDArray[np.float32]

# A pencil's width in picture sizes: one pixel at 128.
_PENCIL = 1 / 128
# What a pencil's line is multiplied by: a step from 0.8 to 0.5 is then about white.
_STRENGTH = 4.0
# Below this brightness differences are noise, not lines.
_DARK = 0.05
# What a harmonizer reads.
_CHANNELS = 4
# ControlNet's own widths of the layers that bring the condition to the latent's size.
_WIDTHS = (16, 32, 96, 256)
# What a harmonizer and the U-Net must have in common.
_SHARED = (
    "in_channels",
    "block_out_channels",
    "down_block_types",
    "layers_per_block",
    "cross_attention_dim",
    "addition_embed_type",
    "addition_time_embed_dim",
    "projection_class_embeddings_input_dim",
)


class Branch(ABC):
    """A network that works beside a backbone's U-Net.

    network is of the class that diffusers calls class_name, on the backbone's device; name is what
    the user gave, what is how messages call it. Raises InputError where it does not fit.
    """

    what: ClassVar[str]
    class_name: ClassVar[str]

    def __init__(
        self, network: Any, backbone: Backbone, *, name: str, hasher: Callable[[], str] = lambda: ""
    ) -> None:
        self.network, self.name, self._hasher = network, name, hasher
        self.check(backbone)

    @cached_property
    def hash(self) -> str:
        """SHA-256 over the weight files; read once, when asked."""
        return self._hasher()

    @abstractmethod
    def check(self, backbone: Backbone) -> None:
        """Raises InputError where the network does not fit a backbone."""


def canny(image: Image) -> Lines:
    """Canny's edges (1986) of an RGB image (H, W, 3), uint8: float32 (H, W), 0 or 1."""
    # The thresholds on the gradient that the published adapters were trained with.
    edges = cv2.Canny(np.ascontiguousarray(image), 100, 200)
    return np.asarray(edges > 0, np.float32)


def sketch(image: Image) -> Lines:
    """Soft lines of an RGB image (H, W, 3), uint8: float32 (H, W) in [0, 1].

    A dodged pencil drawing, white on black: 1 - g / blur(g), times a strength. Lines lie on the
    darker side of an edge; their strength is that of the contrast, whatever the light.
    """
    grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    sigma = max(1.0, max(grey.shape) * _PENCIL)
    around = cv2.GaussianBlur(grey, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    lines = _STRENGTH * (1 - (grey + _DARK) / (around + _DARK))
    # Rounding alone leaves a flat picture a little off 0.
    return np.asarray(np.clip(np.where(lines < 1e-3, 0, lines), 0, 1), np.float32)


_KINDS = {"canny": canny, "sketch": sketch}


def control_image(pictures: Tensor, kind: ControlType) -> Tensor:
    """The lines of pictures (N, 3, H, W) in [-1, 1]: float32 (N, 1, H, W) in [0, 1], on the CPU."""
    levels = ((pictures.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round()
    images = levels.to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return torch.from_numpy(np.stack([_KINDS[kind](image) for image in images]))[:, None]


def fit_drawing(lines: Lines, size: tuple[int, int], kind: ControlType) -> Tensor:
    """A drawing (h, w) in [0, 1] at (height, width) of the model's picture: (1, 1, height, width).

    Shrunk by its brightest pixel: an average would fade thin lines to a grey that no adapter was
    ever shown. For "canny" lines are then thinned to one pixel of white, which is what Canny's are.
    """
    from skimage.morphology import skeletonize

    drawing = torch.from_numpy(np.ascontiguousarray(lines, np.float32))[None, None].clamp(0, 1)
    if size[0] <= lines.shape[0] and size[1] <= lines.shape[1]:
        drawing = functional.adaptive_max_pool2d(drawing, size)
    else:
        drawing = functional.interpolate(drawing, size, mode="bilinear", align_corners=False)
    if kind == "canny":
        thin = skeletonize(drawing[0, 0].numpy() > 0.5)
        drawing = torch.from_numpy(thin.astype(np.float32))[None, None]
    return drawing


class ControlAdapter(Branch):
    """A T2I-Adapter, which makes features of a control image."""

    what, class_name = "adapter", "T2IAdapter"

    def features(self, control: Tensor, scale: float = 1.0) -> list[Tensor]:
        """What a control image (N, 1, H, W) in [0, 1] adds to the U-Net, coarser and coarser:
        tensors (N, C, h, w) for Conditions.control, times `scale`.
        """
        network = self.network
        shown = control.expand(-1, int(network.config.in_channels), -1, -1)
        # Its first layer cuts the picture into squares, which may be larger than the model's own.
        square = int(network.config.downscale_factor)
        right, below = (-side % square for side in reversed(shown.shape[-2:]))
        shown = functional.pad(shown, (0, right, 0, below))
        return [scale * level for level in network(shown.to(network.device, network.dtype))]

    def check(self, backbone: Backbone) -> None:
        network, name = self.network, self.name
        reads = int(network.config.in_channels)
        if reads not in (1, 3):
            raise InputError(
                f"The adapter {name} reads {reads} channels, but lines have 1, or 3 in colour."
            )
        # Two latent pixels of the coarsest level, so that the shapes of all levels differ.
        side = backbone.factor * 2 ** len(backbone.unet.config.down_block_types)
        wanted = feature_shapes(backbone.unet, side // backbone.factor, side // backbone.factor)
        blank = torch.zeros(1, reads, side, side, device=network.device, dtype=network.dtype)
        try:
            with torch.no_grad():
                made = [tuple(level.shape[1:]) for level in network(blank)]
        except RuntimeError:
            made = []
        # With the middle or without it.
        if made not in (wanted, wanted[:-1]):
            raise InputError(
                f"The adapter {name} does not fit the model {backbone.name}: of {side} pixels it "
                f"makes {_listed(made)}, but the U-Net takes {_listed(wanted[:-1])}."
            )


def feature_shapes(unet: Any, height: int, width: int) -> list[tuple[int, ...]]:
    """What a U-Net takes for a latent of (height, width): (channels, height, width) of each level.

    As diffusers' UNet2DConditionModel adds them: in a block with cross-attention before it shrinks
    the picture, in one without after. The last shape is the middle's, which SDXL's adapters have.
    """
    shapes: list[tuple[int, ...]] = []
    size = (height, width)
    channels = list(unet.config.block_out_channels)
    for block, wide in zip(unet.down_blocks, channels, strict=True):
        shrinks = block.downsamplers is not None
        after = ((size[0] + 1) // 2, (size[1] + 1) // 2) if shrinks else size
        attends = getattr(block, "has_cross_attention", False)
        shapes.append((wide, *(size if attends else after)))
        size = after
    return [*shapes, (channels[-1], *size)]


def _listed(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join("x".join(map(str, shape)) for shape in shapes) or "nothing"


def new_adapter(backbone: Backbone) -> Any:
    """An untrained T2IAdapter (float32, on the CPU) for lines of one channel that fits a backbone.

    A U-Net whose first block attends gets "full_adapter", as SD 1.x and 2.x; else it is
    "full_adapter_xl", as SDXL, which starts one level coarser. Weights come from torch's generator.
    """
    channels = list(backbone.unet.config.block_out_channels)
    attends = getattr(backbone.unet.down_blocks[0], "has_cross_attention", False)
    if backbone.family == "sdxl":
        channels.append(channels[-1])
    return T2IAdapter(
        in_channels=1,
        channels=channels,
        num_res_blocks=2,
        downscale_factor=backbone.factor * (1 if attends else 2),
        adapter_type="full_adapter" if attends else "full_adapter_xl",
    )


class Harmonizer(Branch):
    """A harmonizer, which makes guides."""

    what, class_name = "harmonizer", "ControlNetModel"

    def guide(self, pasted: Tensor, mask: Tensor, scale: float = 1.0) -> Guide:
        """The guide for pictures (N, 3, H, W) in [-1, 1] and their masks (N, 1, H, W) in [0, 1]."""
        return Guide(self.network, torch.cat([pasted, mask.to(pasted)], 1), scale)

    def check(self, backbone: Backbone) -> None:
        config, name = self.network.config, self.name
        if config.conditioning_channels != _CHANNELS:
            raise InputError(
                f"The harmonizer {name} reads {config.conditioning_channels} channels, but a "
                f"pasted picture and its mask have {_CHANNELS}."
            )
        pairs = [(key, config.get(key), backbone.unet.config.get(key)) for key in _SHARED]
        factor = 2 ** (len(config.conditioning_embedding_out_channels) - 1)
        pairs.append(("number of pixels to a latent pixel", factor, backbone.factor))
        for key, *both in pairs:
            # Lists are tuples where a config was not read from a file.
            mine, wanted = (list(x) if isinstance(x, tuple) else x for x in both)
            if mine != wanted:
                raise InputError(
                    f"The harmonizer {name} does not fit the model {backbone.name}: its {key} is "
                    f"{mine}, but the model's is {wanted}."
                )


def new_harmonizer(backbone: Backbone) -> Any:
    """An untrained ControlNetModel (float32, on the CPU) that fits a backbone and changes nothing.

    The layers that read the condition come from torch's generator. Raises InputError for a U-Net
    whose encoder cannot be copied.
    """
    unet, halvings = backbone.unet, backbone.factor.bit_length() - 1
    if 2**halvings != backbone.factor:
        raise InputError(
            f"The model {backbone.name} has {backbone.factor} pixels to a latent pixel, but a "
            "harmonizer can be made for powers of 2."
        )
    widths = (_WIDTHS + _WIDTHS[-1:] * halvings)[: halvings + 1]
    try:
        network: Any = ControlNetModel.from_unet(
            unet, conditioning_embedding_out_channels=widths, conditioning_channels=_CHANNELS
        )
    except (ValueError, RuntimeError, AttributeError) as error:
        raise InputError(
            f"The U-Net of the model {backbone.name} is built in a way that a harmonizer cannot "
            "copy; take one of Stable Diffusion 1.x, 2.x or XL."
        ) from error
    return network.float().cpu()


def few_levels(backbone: Backbone, steps: int, strength: float = 1.0) -> list[Level]:
    """`steps` levels, noisiest first, evenly from `strength` of the schedule down.

    At strength 1 they begin with the very last one, where a schedule of zero terminal SNR (Lin et
    al. 2024, arXiv 2305.08891) has no signal left. Fewer come where the schedule has no more.
    """
    top = strength * len(backbone.levels)
    spaced = [round(top * (steps - i) / steps) - 1 for i in range(steps)]
    return [backbone.levels[t] for t in dict.fromkeys(max(0, t) for t in spaced)]


@torch.no_grad()
def correct(
    backbone: Backbone,
    conditions: Conditions,
    z_pasted: Tensor,
    levels: Sequence[Level],
    *,
    generator: torch.Generator,
    samples: int = 1,
    from_pasted: bool = False,
    progress: Callable[[Step], None] = lambda step: None,
) -> tuple[Tensor, Tensor]:
    """The latent of the pasted picture as the harmonizer would have it: mean and spread.

    DDIM over `levels`, noisiest first, to x0, from `samples` noises in ONE batch; with a single
    level x0 is that of the one prediction, an estimate of the conditional mean. z_pasted is
    (1, C, h, w); conditions are of one row, their guide the harmonizer at work and their mask 1
    where the latent may change. The run begins with pure noise, or with `from_pasted` with z_pasted
    noised to the first level. After each step all outside the mask is z_pasted's again.
    """
    noises = [level.noise for level in levels]
    if not noises or noises != sorted(set(noises), reverse=True):
        raise ValueError(f"levels of noise {noises}; expected falling ones, one or more")
    if conditions.mask is None:
        raise ValueError("what may change is for the conditions' mask to say")
    source = z_pasted.float().to(backbone.device)
    region = conditions.mask.float().to(backbone.device)
    shape = (samples, *source.shape[1:])
    noise = torch.randn(shape, generator=generator).to(backbone.device)
    made = sample(
        backbone.denoiser(conditions),
        levels[0].add_noise(source, noise) if from_pasted else noise,
        [*levels, CLEAN],
        noise=torch.zeros_like,
        on_x0=lambda step: region * step.x0 + (1 - region) * source,
        progress=progress,
    )
    return made.mean(0, keepdim=True), made.std(0, keepdim=True, correction=0)
