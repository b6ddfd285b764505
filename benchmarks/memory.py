"""What a checkpoint would hold on a GPU, counted without one: bytes of weights and of live tensors.

    python benchmarks/memory.py                 # SD 1.5 at 512, SDXL at 1024, each way of --memory
    python benchmarks/memory.py --load          # how much loading a folder of SDXL's size peaks at

The device is torch's "meta", on which tensors have sizes but no numbers: nothing is calculated.
Each storage that appears there counts until it is freed, so a peak is that of what Python and
PyTorch hold between two kernels; what a kernel takes for itself (cuDNN's workspaces, fused
attention's rows) and what an allocator rounds up are not seen. Attention is the fused kernel's: its
map is never built.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from inlay.checkpoints.load import load_backbone
from inlay.diffusion.conditions import Conditions
from inlay.diffusion.text import TextStack
from inlay.diffusion.unet import UNetBackbone

NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
META, GB = torch.device("meta"), 1e9
# What diffusers asks of a device's module.
torch.meta = SimpleNamespace(empty_cache=lambda: None, is_available=lambda: True)  # type: ignore[attr-defined]
CLIP_L: dict[str, Any] = {
    "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "max_position_embeddings": 77, "projection_dim": 768,
}  # fmt: skip
BIG_G = CLIP_L | {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
    "num_attention_heads": 20, "hidden_act": "gelu", "projection_dim": 1280,
}  # fmt: skip
VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4,
}  # fmt: skip
SD15: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768}
SDXL: dict[str, Any] = {
    "sample_size": 128, "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": [1, 2, 10], "attention_head_dim": [5, 10, 20],
    "use_linear_projection": True, "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip


class Meter(TorchDispatchMode):
    """Counts the bytes of storages on the device, and their most since it was last asked."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.most = self.held = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else (result,):
            if isinstance(x, Tensor) and x.device == META:
                self.add(x)
        return result

    def add(self, x: Tensor) -> None:
        storage = x.untyped_storage()
        key = storage._cdata
        if key in self.live and not self.live[key][0].expired():
            return
        self.live[key] = StorageWeakRef(storage), storage.nbytes()
        # With what was freed since the last sweep.
        self.held += storage.nbytes()
        if self.held > self.most:
            self.most = max(self.most, self.sweep())

    def sweep(self) -> int:
        """The bytes that are held now."""
        self.live = {k: (ref, n) for k, (ref, n) in self.live.items() if not ref.expired()}
        self.held = sum(n for _, n in self.live.values())
        return self.held


class Device(TorchFunctionMode):
    """Lets tensors come back from the device, as they were never filled, and attention be fused."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            query, value = args[0], args[2] if len(args) > 2 else kwargs["value"]
            return query.new_empty(*query.shape[:-1], value.shape[-1])
        if func in (Tensor.to, Tensor.cpu) and args[0].device == META:
            to = [*args[1:], kwargs.get("device"), "cpu" if func is Tensor.cpu else None]
            if any(str(x) == "cpu" for x in to if isinstance(x, str | torch.device)):
                return torch.empty(args[0].shape, dtype=args[0].dtype)
        return func(*args, **kwargs)


def parts(size: str, autoencoder: torch.dtype = torch.float32) -> dict[str, Any]:
    """The networks of a checkpoint in bfloat16, on pages of memory that are never written."""
    with init_empty_weights(include_buffers=False), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = {
            "unet": diffusers.UNet2DConditionModel(**(SDXL if size == "sdxl" else SD15)),
            "vae": diffusers.AutoencoderKL(**VAE, scaling_factor=0.13025),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**CLIP_L)),
        }
        if size == "sdxl":
            made["text_encoder_2"] = CLIPTextModelWithProjection(CLIPTextConfig(**BIG_G))
    for name, part in made.items():
        dtype = autoencoder if name == "vae" else torch.bfloat16
        # While they are on "meta", as a conversion on the CPU would write them.
        for module in part.modules():
            for key, x in module._parameters.items():
                if x is not None:
                    empty = torch.empty(x.shape, dtype=dtype)
                    module._parameters[key] = torch.nn.Parameter(empty, requires_grad=False)
        part.eval()
    return made


def tokenizers(count: int) -> list[Any]:
    from importlib import resources

    from transformers import CLIPTokenizer

    folder = resources.files("inlay").joinpath("assets/embedded/tokenizer")
    return [CLIPTokenizer.from_pretrained(str(folder), model_max_length=77)] * count


class Unchecked(UNetBackbone):
    """One whose answers, which hold no numbers, are not looked at."""

    def check_finite(self, x: Tensor, part: str, dtype: torch.dtype) -> None:
        pass


def ours(size: str, memory: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The steps of a picture by this package."""
    made = parts(size)
    unet, vae, *encoders = made.values()
    text = TextStack(tokenizers(len(encoders)), encoders)
    config = {**NOISE, "_class_name": "DDIMScheduler", "num_train_timesteps": 1000}
    config |= {"steps_offset": 1}
    backbone = Unchecked(unet, vae, text, config, name=size, device=META)
    side, told = backbone.native_size, dict[str, Any]()
    yield "", lambda: None
    yield "place", lambda: backbone.place(memory)
    picture = torch.empty(1, 3, side, side)
    yield "encode", lambda: told.update(z=backbone.encode(picture))
    sizes = (side, side)

    def embed() -> None:
        told["both"] = [backbone.embed([each], sizes) for each in ("a cat", "")]

    yield "text", embed
    conditions = Conditions(*told.pop("both"), guidance_scale=7.5)
    denoiser, level = backbone.denoiser(conditions), backbone.levels[500]
    yield "network", lambda: told.update(x0=denoiser(told["z"], level)[1])
    yield "decode", lambda: told.update(x=backbone.decode(told["x0"]))


def theirs(size: str, way: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The same steps by diffusers' own pipeline, in its own dtype throughout."""
    made = parts(size, torch.bfloat16)
    names = ["tokenizer", "tokenizer_2"][: len(made) - 2]
    made |= dict(zip(names, tokenizers(2), strict=False))
    made["scheduler"] = diffusers.DDIMScheduler(**NOISE, clip_sample=False)
    cls: Any = diffusers.StableDiffusionXLPipeline
    if size != "sdxl":
        cls = diffusers.StableDiffusionPipeline
        made |= {
            "safety_checker": None,
            "feature_extractor": None,
            "requires_safety_checker": False,
        }
    pipe: Any = cls(**made)

    def place() -> None:
        if way == "none":
            for part in (pipe.unet, pipe.vae, *(getattr(pipe, k) for k in made if "encoder" in k)):
                part.to(META)
        else:
            pipe.enable_model_cpu_offload(device="meta")
        if "tiling" in way:
            pipe.vae.enable_tiling()
            pipe.vae.enable_slicing()

    side, told, dtype = 8 * pipe.unet.config.sample_size, dict[str, Any](), torch.bfloat16
    on: dict[str, Any] = {"device": META, "dtype": dtype}
    yield "", lambda: None
    yield "place", place
    x = torch.empty(1, 3, side, side, **on)
    yield "encode", lambda: told.update(z=pipe.vae.encode(x).latent_dist.mode())

    def embed() -> None:
        rows = [
            row
            for row in pipe.encode_prompt(
                prompt="a cat",
                device=META,
                num_images_per_prompt=1,
                do_classifier_free_guidance=True,
            )
            if row is not None
        ]
        told["text"] = torch.cat([rows[1], rows[0]])
        if size == "sdxl":
            pooled, ids = torch.cat([rows[3], rows[2]]), torch.empty(2, 6, **on)
            told["added"] = {"text_embeds": pooled, "time_ids": ids}

    yield "text", embed

    def network() -> None:
        z = torch.cat([told["z"]] * 2)
        step, added = torch.empty((), device=META), told.get("added")
        output = pipe.unet(
            z, step, encoder_hidden_states=told["text"], added_cond_kwargs=added, return_dict=False
        )[0]
        one, other = output.chunk(2)
        told["z"] = one + 7.5 * (other - one)

    yield "network", network
    yield "decode", lambda: told.update(x=pipe.vae.decode(told["z"], return_dict=False)[0])


def peaks(steps: Iterator[tuple[str, Callable[[], Any]]]) -> dict[str, float]:
    """The most that is held on the device in each step, in GB."""
    # What is made before the first step is not counted.
    next(steps)
    found, meter = {}, Meter()
    with torch.no_grad(), Device(), meter:
        for name, step in steps:
            meter.most = meter.sweep()
            step()
            found[name] = meter.most / GB
    return found


def table() -> None:
    steps = "place", "encode", "text", "network", "decode", "most"
    print(f"{'GB':37} " + " ".join(f"{step:>7}" for step in steps))
    for size in ("sd15", "sdxl"):
        rows = [(f"inlay {way}", ours(size, way)) for way in ("device", "balanced", "low")]
        rows += [
            (f"diffusers {way}", theirs(size, way))
            for way in ("none", "model offload", "offload, tiling")
        ]
        for name, steps in rows:
            found = peaks(steps)
            shown = " ".join(f"{x:7.2f}" for x in (*found.values(), max(found.values())))
            print(f"{size:8} {name:28} {shown}", flush=True)


def load() -> None:
    """Loading a folder of SDXL's size: the most memory of a process over that of the weights."""
    root = Path(tempfile.mkdtemp(prefix="inlay-memory-"))
    try:
        made = parts("sdxl", torch.bfloat16)
        index: dict[str, Any] = {"_class_name": "StableDiffusionXLPipeline"}
        while made:
            name, part = made.popitem()
            part.save_pretrained(root / name)
            library = "transformers" if "text" in name else "diffusers"
            index[name] = [library, type(part).__name__]
        for name in ("tokenizer", "tokenizer_2"):
            tokenizers(1)[0].save_pretrained(root / name)
            index[name] = ["transformers", "CLIPTokenizer"]
        scheduler = diffusers.DDIMScheduler(**NOISE, clip_sample=False)
        scheduler.save_pretrained(root / "scheduler")
        (root / "model_index.json").write_text(json.dumps(index))
        size = sum(path.stat().st_size for path in root.rglob("*.safetensors"))
        code = f"import benchmarks.memory as m; m.load_one({str(root)!r})"
        here = str(Path(__file__).parents[1])
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=here, capture_output=True, text=True
        )
        before, after = map(int, done.stdout.split()[-2:])
        # Those of the autoencoder, of 0.17 GB, become float32.
        print(
            f"weights {size / GB:.2f} GB; loading takes {(after - before) / GB:.2f} GB at most, ",
            end="",
        )
        print(f"{(after - before) / size:.3f} of them")
    finally:
        shutil.rmtree(root)


def load_one(folder: str) -> None:
    def most() -> int:
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    load_backbone("embedded", device="cpu")
    before = most()
    load_backbone(folder, device="cpu", dtype="bfloat16")
    print(before, most())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--load", action="store_true", help="measure loading instead")
    (load if parser.parse_args().load else table)()


if __name__ == "__main__":
    main()
