"""The stages of PhD on one window: soften the paste, paint the ring, harmonize the subject."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image as PilImage
from PIL import ImageOps
from torch import Tensor

from inlay.diffusion.branches import correct
from inlay.diffusion.conditions import ImagePrompt
from inlay.diffusion.sample import Level
from inlay.methods.phd import PhdSettings
from inlay.methods.workspace import Workspace
from inlay.pictures.arrays import Image, Mask, blur, bounds, luma, masked_blur, resize, to_uint8
from inlay.pictures.colour import convert
from inlay.scene.fill import foreground
from inlay.scene.stitch import Window

# Below this a luminance is too dark to be made darker by a factor.
_DARKEST = 0.02


@dataclass(frozen=True, eq=False)
class Canvas:
    """A window as a stage leaves it.

    window.pasted is the picture so far, window.alpha the subject's own; cover, float32 (h, w), is
    the alpha after softening; effect, bool (h, w), says where the picture may differ from the
    background.
    """

    window: Window
    cover: Image
    effect: Mask

    def with_picture(self, rgb: Image, where: Mask) -> Canvas:
        """The canvas with another picture, which differs only in `where`."""
        # A new cache: the old one holds the old picture's tensors.
        window = replace(self.window, pasted=rgb, cache={})
        return Canvas(window, self.cover, self.effect | where)


def soften_paste(window: Window, softening: float) -> Canvas:
    """The window with the subject's edge softened: a Gaussian of sigma `softening` (window sizes)
    on its alpha a, P' = P + (a' - a) (F - B) for the paste P, the subject's colour F and the
    background B.

    Nothing happens where B is not known, or see-through.
    """
    alpha, sigma = window.alpha, softening * max(window.shape)
    known = window.under is None and not np.array_equal(window.clean, window.pasted)
    if not known or sigma <= 0:
        return Canvas(window, alpha, alpha > 0)
    soft = blur(alpha, sigma)
    # The blur of a constant is off by rounding, which would count as a change.
    soft[np.abs(soft - alpha) < 1e-4] = alpha[np.abs(soft - alpha) < 1e-4]
    colour = foreground(window.pasted, window.clean, alpha)
    change = (soft - alpha)[..., None] * (colour - window.clean)
    canvas = Canvas(window, soft, alpha > 0)
    return canvas.with_picture(np.clip(window.pasted + change, 0, 1), soft > 0)


def image_prompt(
    work: Workspace, settings: PhdSettings, paint: Image, cover: Image
) -> ImagePrompt | None:
    """The subject as a prompt; None where no IP-Adapter is to count. paint (h, w, 3) is its colour
    times its cover (h, w). Raises InputError for an IP-Adapter that does not fit the model.
    """
    box, context = bounds(cover), work.context
    if settings.ip_adapter == "none" or settings.ip_adapter_scale == 0 or box is None:
        return None
    assert context.models is not None
    context.ip_adapter = context.models.ip_adapter(settings.ip_adapter)
    picture = (paint + 1 - cover[..., None])[box.slices]
    if work.window.space is not None:
        picture = convert(picture, work.window.space, None)
    # All of it, in the middle of a white square, as CLIP knows things that are cut out.
    square = ImageOps.pad(
        PilImage.fromarray(to_uint8(picture)), (max(picture.shape),) * 2, color="white"
    )
    return context.ip_adapter.prompt(square, settings.ip_adapter_scale)


def inpaint_ring(work: Workspace, canvas: Canvas, settings: PhdSettings) -> Canvas:
    """The canvas with its ring painted anew from the background that is there; the subject, and
    all outside of the region M, stay as they are.

    The ring's new content B' lies under the subject's soft edge: P + (1 - a') (B' - B). M is the
    subject, or its box, grown by `grow`; B' passes into B over `feather` inside of M's rim. Raises
    InputError for a scheduler that does not sample this model.
    """
    window = canvas.window
    solver = work.backbone.solver(settings.sampler(scene=False), settings.num_inference_steps)
    region = window
    if settings.region == "box":
        region = replace(window, alpha=np.zeros_like(window.alpha))
        region.alpha[window.region_box().slices] = 1
    solid = torch.from_numpy(resize(window.alpha, work.size) > 0.99)[None, None]
    ring = region.mask(work.size, settings.grow) * ~solid
    if not ring.any():
        return canvas
    source = work.backbone.encode(work.picture)
    conditions = work.conditions(work.latent_mask(ring, cover=True), work.picture)
    cover = canvas.cover[..., None]
    prompt = image_prompt(work, settings, window.pasted - (1 - cover) * window.clean, canvas.cover)
    with work.backbone.attention(prompt):
        after = work.paint(solver, conditions, source, settings.strength)
    rim = min(settings.feather, settings.grow)
    weight = region.rim(rim, settings.grow - rim) * (region.region(settings.grow) > 0)
    weight = weight[..., None] * (1 - cover)
    new = work.image(after)
    if settings.decoding == "residual":
        sigma = settings.ring_smoothing * max(work.size)
        change = _smooth(new - work.image(source), ring[0, 0].numpy(), sigma)
        change = resize(change, window.shape)
    else:
        change = resize(new, window.shape) - window.clean
    rgb = np.clip(window.pasted + weight * change, 0, 1).astype(np.float32)
    return canvas.with_picture(rgb, weight[..., 0] > 0)


def harmonize(
    work: Workspace, canvas: Canvas, settings: PhdSettings, levels: list[Level]
) -> Canvas:
    """The canvas with the subject's light and colour changed, its own detail kept.

    Residual decoding: P + a' U(D(z + k (m - z)) - D(z)) for the pasted latent z, the mean m of the
    answers and the restraint k; the change is blurred by `smoothing` inside the subject, and goes
    on as a shadow beyond it. Without a harmonizer in the context the answers are those of the bare
    model. They begin with the picture noised to the first level, at strength 1 with noise alone.
    """
    backbone, window, harmonizer = work.backbone, canvas.window, work.context.harmonizer
    # Not the workspace's picture: the ring may have been painted since.
    picture = window.tensor("pasted", work.size)
    cover, source = np.clip(resize(window.alpha, work.size), 0, 1), backbone.encode(picture)
    mask = torch.from_numpy(cover)[None, None]
    reach = max(settings.harmonize_grow, settings.shadow_reach)
    region = torch.maximum(window.mask(work.size, reach), mask)
    # As in training: every latent pixel that the mask touches.
    latent_mask = work.latent_mask((region > 1 / 512).float(), cover=True)
    own = settings.model_copy(update={"guidance_scale": settings.harmonize_guidance_scale})
    conditions = replace(work, settings=own).conditions(latent_mask, picture)
    strength = settings.harmonize_strength
    if harmonizer is not None:
        strength = settings.harmonizer_strength
        guide = harmonizer.guide(picture, mask, settings.harmonizer_scale)
        conditions = replace(conditions, guide=guide)
    mean, spread = correct(
        backbone,
        conditions,
        source,
        levels,
        generator=work.context.generator,
        samples=settings.harmonizer_samples,
        from_pasted=strength < 1 or settings.initial_latent == "source",
        progress=work.on_step,
    )
    change, samples = mean - source, settings.harmonizer_samples
    sigma = settings.smoothing * max(work.size) / backbone.factor
    kept = shrinkage(change, spread, latent_mask, samples, settings.restraint, sigma)
    before = work.image(source)
    after = work.image(source + settings.amount * kept * change)
    if settings.decoding == "plain":
        new = resize(after, window.shape) - window.pasted
    else:
        sigma = settings.smoothing * max(work.size)
        new = resize(_smooth(after - before, cover, sigma), window.shape)
    rgb, where = window.pasted + canvas.cover[..., None] * new, canvas.cover > 0
    if settings.shadow_reach > 0:
        shade = _shade(window, settings, before, after)
        shade = 1 - (1 - shade) * window.rim(settings.shadow_reach) * (1 - canvas.cover)
        rgb, where = rgb * shade[..., None], where | (shade < 1)
    return canvas.with_picture(np.clip(rgb, 0, 1).astype(np.float32), where)


def shrinkage(
    change: Tensor, spread: Tensor, mask: Tensor, samples: int, restraint: float, sigma: float
) -> Tensor:
    """The factor k (1, 1, h, w) in [0, 1] on a change (1, C, h, w) of uncertain size.

    A Wiener filter, k = |d|^2 / (|d|^2 + restraint * v). The mean of n answers measures the right
    change d along its own direction u = d / |d|, with the variance of one more answer about it,

        v = (n + 1) / (n - 1) * sum_c u_c^2 s_c^2,

    for the deviations s (n in the denominator) of the answers; and d is taken as drawn round 0 with
    a variance of |d|^2, the empirical Bayes of James and Stein (1961) without their threshold.

    d and s^2 are blurred first inside the mask (1, 1, h, w), with a Gaussian of `sigma` in their
    pixels, so that k follows regions. One answer has no spread: then k is 1.
    """
    if samples < 2 or restraint == 0:
        return torch.ones_like(change[:, :1])
    weight, like = mask[0, 0].cpu().numpy(), change
    planes = (x[0].permute(1, 2, 0).cpu().numpy() for x in (change, spread**2))
    d, variance = (
        torch.from_numpy(_smooth(x, weight, sigma)).permute(2, 0, 1)[None].to(like) for x in planes
    )
    size = (d**2).sum(1, keepdim=True)
    error = (samples + 1) / (samples - 1) * (d**2 * variance).sum(1, keepdim=True)
    return size**2 / (size**2 + restraint * error).clamp(min=1e-12)


def _smooth(change: Image, mask: Image, sigma: float) -> Image:
    """A change (h, w, c) blurred inside a mask (h, w), without what lies outside; 0 is no blur."""
    return masked_blur(change, mask, sigma) if sigma > 0 else change


def _shade(window: Window, settings: PhdSettings, before: Image, after: Image) -> Image:
    """How much darker the model has made its picture: a factor (h, w) in [0, 1], smoothed."""
    was, now = (np.maximum(luma(image), _DARKEST) for image in (before, after))
    sigma = max(0.15 * settings.shadow_reach * max(was.shape), 1.0)
    ratio = np.log(now / was).astype(np.float32)
    outside = (resize(window.alpha, (was.shape[0], was.shape[1])) < 0.5).astype(np.float32)
    factor = np.exp(np.minimum(masked_blur(ratio, outside, sigma, mirror=True), 0))
    return np.clip(resize(np.asarray(factor, np.float32), window.shape), 0, 1)
