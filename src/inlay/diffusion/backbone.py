"""A checkpoint as the methods see it: encode, decode, embed, noise levels, denoiser, attention.

Nothing here knows where weights come from (checkpoints/load.py does) or how to sample (sample.py).
"""

from __future__ import annotations

import copy
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from inlay.diffusion.attention import AttentionRule, Layer, change_attention
from inlay.diffusion.conditions import Conditions, repeat_rows
from inlay.diffusion.sample import Level, Levels, Sampler, guide
from inlay.diffusion.text import Embedding, TextStack
from inlay.errors import InputError

# Of a side of the pictures that a checkpoint was trained on, in pixels.
_LARGEST = 4096
# What an autoencoder holds for each pixel while it decodes, in bytes.
_DECODES = 4 * 1024
Kind = Literal["plain", "inpaint"]


@dataclass(eq=False)
class Denoiser:
    """A backbone under some conditions, which may be set anew between calls: a function of (z,
    level). keep_outside is their mask where the network does not read it, so that a sampler has to
    hold the sample outside of it in place itself; else None.
    """

    backbone: Backbone
    conditions: Conditions

    @property
    def keep_outside(self) -> Tensor | None:
        return self.conditions.mask if self.backbone.kind == "plain" else None

    def __call__(self, z: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        """(eps, x0), float32 (N, C, h, w) like z, after guidance; both rows of it in one batch.
        Raises InputError where they are not finite.
        """
        backbone, conditions, count = self.backbone, self.conditions, len(z)
        if backbone.told_scale:
            conditions = replace(conditions, negative=None)
        for rule in backbone.rules:
            rule.begin(level, count, conditions.guided)
        inputs = torch.cat([z, z]) if conditions.guided else z
        call = backbone.predict if backbone.wait is None else backbone.wait
        output = call(inputs, level.timestep, conditions.rows(count))
        if conditions.guided:
            scale, rescale = conditions.guidance_scale, conditions.guidance_rescale
            output = backbone.guide(output[:count], output[count:], scale, rescale)
        eps, x0 = level.estimates(output, z.float(), backbone.prediction_type)
        for estimate in (eps, x0):
            backbone.check_finite(estimate, "network", backbone.dtype)
        return eps, x0


def lend_layers(network: Any, device: torch.device) -> None:
    """Have each layer of a network copy its weights to a device for as long as it runs."""

    def lend(module: Any, args: Any, options: Any) -> None:
        own = module.__dict__["_own"] = (module._parameters, module._buffers)
        on = [{k: x if x is None else x.to(device) for k, x in part.items()} for part in own]
        module._parameters = {
            k: x if x is None else torch.nn.Parameter(x, False) for k, x in on[0].items()
        }
        module._buffers = on[1]

    def take_back(module: Any, args: Any, output: Any) -> None:
        module._parameters, module._buffers = module.__dict__.pop("_own")

    for module in network.modules():
        if any(True for _ in itertools.chain(module.parameters(False), module.buffers(False))):
            module.register_forward_pre_hook(lend, with_kwargs=True)
            module.register_forward_hook(take_back, always_call=True)


class Backbone(ABC):
    """What methods may use of a loaded checkpoint, whatever it is built of.

    Its weights are frozen; gradients flow to inputs that ask for them. It draws no random numbers.
    One thread may run it at a time.

    Attributes: name; device; dtype (of the network and the text encoders; the autoencoder may run
    in float32); kind, "plain", or "inpaint" where the network reads a mask; family, such as "sd1",
    "sdxl" or "embedded"; latent_channels; factor, pixels per latent pixel; native_size, the window
    side in pixels that the checkpoint was trained at; least_window, of how many of a picture's
    pixels a window is at least, before it is enlarged to that; multiple, what window sides must be
    multiples of; levels, the noise levels of its training; prediction_type, in diffusers' words;
    told_scale, where the network reads the guidance scale in place of being guided; few_steps,
    where it was distilled to need no more than 8; edits, where it reads a whole picture beside the
    sample, to change it as the prompt says; notes, what a user should know of how it was loaded;
    network, vae, text and scheduler_config as loaded.
    """

    kind: Kind
    family: str
    multiple: int
    native_size: int
    latent_channels: int
    levels: Levels
    prediction_type: str
    told_scale: bool = False
    few_steps: bool = False
    edits: bool = False
    least_window: int = 32
    # What stands in for predict() where the backbone is that of a job in a batch.
    wait: Callable[[Tensor, float | Tensor, Conditions], Tensor] | None = None

    def __init__(
        self,
        network: Any,
        vae: Any,
        text: TextStack,
        scheduler_config: Mapping[str, Any],
        *,
        name: str,
        hasher: Callable[[], str] = lambda: "",
        edits: bool = False,
        device: torch.device | None = None,
    ) -> None:
        self.network, self.vae, self.text, self.name = network, vae, text, name
        self.edits = edits
        self.scheduler_config = dict(scheduler_config)
        self.rules: list[AttentionRule] = []
        self._guests: list[Any] = []
        self.notes: list[str] = []
        self._hasher = hasher
        for module in (network, vae, *text.encoders):
            module.requires_grad_(False).eval()
        self.device: torch.device = device or network.device
        text.device = self.device
        self.dtype: torch.dtype = network.dtype
        # Each of its levels but the last halves the picture; a linear one has patches.
        config = vae.config
        levels = config.get("block_out_channels") or config.get("dim_mult", ())
        self.factor = int(config.get("patch_size") or 2 ** (len(levels) - 1))
        scaling = float(config.get("scaling_factor", 1))
        # Numbers, or one for each channel (1, C, 1, 1).
        self._scaling: float | Tensor = scaling
        self._shift: float | Tensor = config.get("shift_factor") or 0.0
        self.set_up()
        largest = _LARGEST if 0 < abs(scaling) < math.inf else 0
        if not self.factor <= self.native_size <= largest:
            raise InputError(
                f"The model {name} is for pictures of {self.native_size:.6g} pixels, and latents "
                f"times {scaling:.6g}; expected at most {_LARGEST}, and a finite number."
            )

    @abstractmethod
    def set_up(self) -> None:
        """Set the attributes that follow from the parts; InputError for parts that do not fit."""

    def place(self, memory: str) -> None:
        """Put the weights where they are to be, once all that changes them is done.

        "device": all on the device. "fast": there on CUDA with the network's repeated blocks
        compiled and convolutions in channels_last. "balanced": one network at a time, the others on
        the CPU (diffusers' model CPU offload). "low": of the network and the text encoders one
        layer at a time (its sequential CPU offload), the autoencoder while it runs, row by row.
        "auto": what the device's free memory is enough for. Only "fast" may round otherwise.
        """
        parts = [self.vae, self.network, *self.text.encoders]
        chosen = self._fitting(parts) if memory == "auto" else memory
        if chosen in ("device", "fast"):
            fast = chosen == "fast" and self.device.type == "cuda"
            for part in parts:
                part.to(self.device)
            for part in parts[:2] if fast else ():
                part.to(memory_format=torch.channels_last)
            if fast:
                net = self.network
                (net.compile_repeated_blocks if net._repeated_blocks else net.compile)()
            return
        self._guests = parts if chosen == "balanced" else [self.vae]
        for part in parts[1:]:
            if chosen == "balanced":
                part.register_forward_pre_hook(lambda module, _: self.bring(module))
            else:
                lend_layers(part, self.device)
                part.register_forward_pre_hook(lambda *_: self.bring(None))
        if hasattr(self.vae, "enable_slicing"):
            self.vae.enable_slicing()

    def _fitting(self, parts: Sequence[Any]) -> str:
        if self.device.type != "cuda":
            return "device"
        sizes = [sum(x.nbytes for x in part.state_dict().values()) for part in parts]
        free = torch.cuda.mem_get_info(self.device)[0] - _DECODES * self.native_size**2
        return "device" if sum(sizes) < free else "balanced" if max(sizes) < free else "low"

    def bring(self, module: Any) -> None:
        """Of the networks that take turns on the device have this one there, and no other."""
        # The others first, as both at once would be the most that is ever held.
        for guest in sorted(self._guests, key=lambda guest: guest is module):
            guest.to(self.device if guest is module else "cpu")

    @cached_property
    def hash(self) -> str:
        """SHA-256 over the bytes of every weight file that was loaded; read once, when asked."""
        return self._hasher()

    @property
    def unet(self) -> Any:
        """The network where it is a U-Net; InputError where it is not."""
        return self.network

    def encode(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] to scaled latents (N, C, H / factor, W / factor), float32: the
        mode of the posterior. Raises InputError where they are not finite.
        """
        return (self._autoencode(self._latent, x) - self._shift) * self._scaling

    def _latent(self, vae: Any, x: Tensor) -> Tensor:
        output = vae.encode(x)
        z: Tensor = output.latent_dist.mode() if "latent_dist" in output else output.latents
        return z

    def _decoded(self, vae: Any, z: Tensor) -> Tensor:
        x: Tensor = vae.decode(z).sample
        return x

    def encode_masked(
        self, x: Tensor, mask: Tensor, encode: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor | None:
        """Conditions.masked_latent of pictures (N, 3, H, W): the latent without what latent masks
        (1 or N, 1, h, w) cover, whole patches set to 0; None where the network does not read it.
        `encode` may be another way to encode, such as by tiles.
        """
        if self.kind == "plain":
            return None
        # Whole patches: one half erased would be neither seen nor hole.
        erased = functional.interpolate(mask.to(x), x.shape[-2:], mode="nearest")
        return (encode or self.encode)(x * (1 - erased))

    def decode(self, z: Tensor) -> Tensor:
        """Scaled latents (N, C, h, w) to (N, 3, H, W) around [-1, 1], not clamped, float32; raises
        InputError where they are not finite.
        """
        raw = z.float() / self._scaling + self._shift
        return self._autoencode(self._decoded, raw)

    def _autoencode(self, call: Callable[[Any, Tensor], Tensor], x: Tensor) -> Tensor:
        """A call of the autoencoder in float32; one that overflows in float16 is made again."""
        self.bring(self.vae)
        result = call(self.vae, x.to(self.device, self.vae.dtype)).float()
        if self.vae.dtype == torch.float16 and not result.isfinite().all():
            result = call(self._wide_vae, x.to(self.device, torch.float32))
        self.check_finite(result, "autoencoder", torch.float32)
        return result

    @cached_property
    def _wide_vae(self) -> Any:
        """The autoencoder in float32, of a checkpoint that says that float16 is enough for it."""
        # Not inference tensors, as gradients may flow through it.
        with torch.inference_mode(False):
            return copy.deepcopy(self.vae).float()

    def check_finite(self, x: Tensor, part: str, dtype: torch.dtype) -> None:
        """Raises InputError where what a part of the checkpoint gave holds NaN or infinity."""
        # Quicker: where a sum is finite, all of its numbers are.
        if not math.isfinite(x.detach().sum()) and not x.isfinite().all():
            cure = "use the dtype float32" if dtype == torch.float16 else "take undamaged weights"
            raise InputError(
                f"the {part} of the model {self.name} gave NaN or infinity in "
                f"{str(dtype).removeprefix('torch.')}; {cure} or milder settings."
            )

    def embed(
        self,
        prompts: Sequence[str],
        size: tuple[int, int],
        skip: int = 0,
        picture: Tensor | None = None,
    ) -> Embedding:
        """Embed prompts for a window of (height, width) pixels; see TextStack.embed(). `picture`,
        (1, 3, H, W) in [-1, 1], is what they are about, for encoders that look at it too.
        """
        return self.text.embed(prompts, size, skip)

    def denoiser(self, conditions: Conditions) -> Denoiser:
        """The network under conditions, as a function of (z, level)."""
        return Denoiser(self, conditions)

    @contextmanager
    def attention(self, rule: AttentionRule | None) -> Iterator[None]:
        """Inside, the network's attention goes by a rule (None: as always); then as it was before,
        even when the body raises.
        """
        if rule is None:
            yield
            return
        change = self.change(rule) if self.wait is None else nullcontext()
        self.rules.append(rule)
        try:
            with change:
                yield
        finally:
            self.rules.remove(rule)

    def change(self, rule: AttentionRule) -> AbstractContextManager[None]:
        """What a rule needs to be put into the network for; InputError where it cannot be."""
        return change_attention(self.network, rule, self.layers())

    def guide(self, negative: Tensor, positive: Tensor, scale: float, rescale: float) -> Tensor:
        """Guidance, see sample.guide()."""
        return guide(negative, positive, scale, rescale)

    @abstractmethod
    def layers(self) -> list[Layer]:
        """The network's attention layers in the order in which they run."""

    @abstractmethod
    def predict(self, z: Tensor, timestep: float | Tensor, conditions: Conditions) -> Tensor:
        """The network's raw output (N, C, h, w) in float32, without guidance.

        z is (N, C, h, w), timestep one or N of them, conditions.text of N rows. Raises ValueError
        for another number of rows, and where an inpainting network lacks mask or masked_latent.
        """

    def seen(self, z: Tensor, conditions: Conditions) -> list[Tensor]:
        """What predict() shows to the network, all of N rows: z, and one that inpaints the mask and
        the masked latent.
        """
        count, mask, masked = len(z), conditions.mask, conditions.masked_latent
        if len(conditions.text) != count:
            raise ValueError(f"{len(conditions.text)} rows of conditioning for {count} latents")
        if self.kind == "plain":
            return [z]
        if mask is None or masked is None:
            raise ValueError("an inpainting checkpoint needs a mask and a masked latent")
        return [z, repeat_rows(mask, count), repeat_rows(masked, count)]

    @abstractmethod
    def solver(self, name: str, steps: int) -> Sampler:
        """A sampler by the class name of one of diffusers' schedulers; InputError for one that does
        not sample this checkpoint in so many steps.
        """
