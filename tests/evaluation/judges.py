"""Small random networks in the formats of those that metrics look with."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file

_FILE = "model.safetensors"
SIDE, PATCH, WIDTH = 32, 8, 16
_SIZES = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": SIDE,
    "patch_size": PATCH,
}
# Of each network of LPIPS its convolutions: number, channels in and out, side of the kernel.
_ALEXNET = ((0, 3, 64, 11), (3, 64, 192, 5), (6, 192, 384, 3), (8, 384, 256, 3), (10, 256, 256, 3))
_WIDTHS = {
    0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256),
    14: (256, 256), 17: (256, 512), 19: (512, 512), 21: (512, 512), 24: (512, 512),
    26: (512, 512), 28: (512, 512),
}  # fmt: skip
_VGG = tuple((number, *widths, 3) for number, widths in _WIDTHS.items())


def dino(folder: Path, seed: int = 0) -> Path:
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(seed)
    # Wider than they are made, so that pictures matter.
    ViTModel(ViTConfig(**_SIZES, initializer_range=0.3)).save_pretrained(folder)
    return folder


def dinov2(folder: Path) -> Path:
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(1)
    sizes = {**_SIZES, "image_size": SIDE, "mlp_ratio": 2}
    Dinov2Model(Dinov2Config(**sizes, initializer_range=0.3)).save_pretrained(folder)
    return folder


def clip(folder: Path, seed: int = 2) -> Path:
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(seed)
    words = {"vocab_size": 400, "bos_token_id": 0, "eos_token_id": 1, "hidden_size": WIDTH}
    words |= {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = CLIPConfig(text_config=words, vision_config=_SIZES, projection_dim=12)
    config.initializer_factor = 20.0
    CLIPModel(config).save_pretrained(folder)
    signs = [chr(n) for n in (*range(33, 127), *range(161, 173), *range(174, 256))]
    vocab = ["<|startoftext|>", "<|endoftext|>", *signs, *(f"{sign}</w>" for sign in signs)]
    (folder / "vocab.json").write_text(json.dumps({each: n for n, each in enumerate(vocab)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer"}')
    return folder


def dreamsim(folder: Path) -> Path:
    dino(folder / "dino", 5)
    clip(folder / "clip", 6)
    clip(folder / "open_clip", 7)
    return folder


def sam(folder: Path) -> Path:
    from transformers import SamConfig, SamModel

    torch.manual_seed(3)
    config = SamConfig(
        vision_config={
            "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 128, "patch_size": 16, "output_channels": 32, "mlp_dim": 64,
            "window_size": 4, "global_attn_indexes": [1], "num_pos_feats": 16,
        },
        prompt_encoder_config={"hidden_size": 32, "image_size": 128, "patch_size": 16},
        mask_decoder_config={
            "hidden_size": 32, "mlp_dim": 64, "num_attention_heads": 2, "iou_head_hidden_dim": 32,
        },
    )  # fmt: skip
    SamModel(config).save_pretrained(folder)
    return folder


def stack(folder: Path, name: str) -> Path:
    """AlexNet's or VGG-16's convolutions, as torchvision names them."""
    generator = torch.Generator().manual_seed(4)
    tensors = {}
    for number, inner, outer, side in _ALEXNET if name == "alexnet" else _VGG:
        spread = (2 / (inner * side * side)) ** 0.5
        weight = torch.randn(outer, inner, side, side, generator=generator) * spread
        tensors[f"features.{number}.weight"] = weight
        tensors[f"features.{number}.bias"] = torch.randn(outer, generator=generator) * 0.1
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / _FILE)
    return folder


def judges(root: Path) -> dict[str, Path]:
    """All of them, by the names that metrics_of() takes."""
    made = {each.__name__: each for each in (dino, dinov2, clip, dreamsim, sam)}
    found = {name: make(root / name) for name, make in made.items()}
    return found | {name: stack(root / name, name) for name in ("alexnet", "vgg16")}


class Network:
    """One of them as transformers opens it; a call takes pixels (1, 3, h, w)."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModel

        self.net: Any = AutoModel.from_pretrained(folder).eval()
        self.clip = hasattr(self.net, "get_image_features")

    def __call__(self, values: torch.Tensor, take: str) -> torch.Tensor:
        with torch.inference_mode():
            if self.clip:
                return self.net.get_image_features(pixel_values=values).pooler_output[0]
            found = self.net(pixel_values=values, output_hidden_states=True)
        tokens = (found.hidden_states[-1] if take == "raw" else found.last_hidden_state)[0]
        return tokens.mean(0) if take == "mean" else tokens[0]


def pixels(image: Image.Image, short: int | None, clip: bool) -> torch.Tensor:
    """A picture as such a network takes it: squashed, or its shorter side to `short`, then the
    middle; less a mean, over a deviation.
    """
    if short is None:
        image = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    else:
        width, height = image.size
        size = (short, int(short * height / width))
        size = (int(short * width / height), short) if width > height else size
        image = image.resize(size, Image.Resampling.BICUBIC)
        x, y = round((size[0] - SIDE) / 2), round((size[1] - SIDE) / 2)
        image = image.crop((x, y, x + SIDE, y + SIDE))
    mean, spread = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    if clip:
        mean = (0.48145466, 0.4578275, 0.40821073)
        spread = (0.26862954, 0.26130258, 0.27577711)
    values = (np.asarray(image) / 255 - mean) / spread
    return torch.from_numpy(values.transpose(2, 0, 1)[None]).float()


def literal_vit(folder: Path, image: NDArray[np.float64]) -> NDArray[np.float64]:
    """The tokens (n, width) of a picture (h, w, 3) by Dosovitskiy et al. 2020, equations 1 to 4."""
    weights = {k: v.numpy().astype(np.float64) for k, v in load_file(folder / _FILE).items()}

    def linear(name: str, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return values @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name: str, values: NDArray[np.float64]) -> NDArray[np.float64]:
        centred = values - values.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    kernel = weights["embeddings.patch_embeddings.projection.weight"]
    tokens = [weights["embeddings.cls_token"][0, 0]]
    for y in range(0, SIDE, PATCH):
        for x in range(0, SIDE, PATCH):
            patch = image[y : y + PATCH, x : x + PATCH].transpose(2, 0, 1)
            bias = weights["embeddings.patch_embeddings.projection.bias"]
            tokens.append((kernel * patch).sum((1, 2, 3)) + bias)
    state = np.array(tokens) + weights["embeddings.position_embeddings"][0]
    for number in range(2):
        layer = f"encoder.layer.{number}"
        before = norm(f"{layer}.layernorm_before", state)
        query, key, value = (
            linear(f"{layer}.attention.attention.{each}", before)
            for each in ("query", "key", "value")
        )
        heads = []
        for part in np.split(np.arange(WIDTH), 2):
            likeness = query[:, part] @ key[:, part].T / math.sqrt(WIDTH / 2)
            share = np.exp(likeness - likeness.max(1, keepdims=True))
            heads.append(share / share.sum(1, keepdims=True) @ value[:, part])
        state = state + linear(f"{layer}.attention.output.dense", np.concatenate(heads, 1))
        inner = linear(f"{layer}.intermediate.dense", norm(f"{layer}.layernorm_after", state))
        inner = inner * 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
        state = state + linear(f"{layer}.output.dense", inner)
    return norm("layernorm", state)


def literal_lpips(folder: Path, name: str, *pictures: NDArray[np.float64]) -> float:
    """LPIPS of two pictures (h, w, 3) of levels, by Zhang et al. 2018, equation 1."""
    import torchmetrics

    weights = {k: v.numpy().astype(np.float64) for k, v in load_file(folder / _FILE).items()}
    home = Path(torchmetrics.__file__).parent / "functional/image/lpips_models"
    file = home / {"alexnet": "alex.pth", "vgg16": "vgg.pth"}[name]
    linear = list(torch.load(file, weights_only=True, map_location="cpu").values())
    steps = {0: (4, 2), 3: (1, 2)} if name == "alexnet" else {}
    pools = {3: 3, 6: 3} if name == "alexnet" else dict.fromkeys((5, 10, 17, 24), 2)
    taps = (0, 3, 6, 8, 10) if name == "alexnet" else (2, 7, 14, 21, 28)
    seen = []
    for picture in pictures:
        values = (picture / 127.5 - 1 - [-0.030, -0.088, -0.188]) / [0.458, 0.448, 0.450]
        layers = []
        for number, *_ in _ALEXNET if name == "alexnet" else _VGG:
            if side := pools.get(number):
                size = [(length - side) // 2 + 1 for length in values.shape[:2]]
                parts = [
                    values[y : y + 2 * size[0] - 1 : 2, x : x + 2 * size[1] - 1 : 2]
                    for y in range(side)
                    for x in range(side)
                ]
                values = np.max(parts, axis=0)
            stride, edge = steps.get(number, (1, 1))
            kernel = weights[f"features.{number}.weight"]
            padded = np.pad(values, ((edge, edge), (edge, edge), (0, 0)))
            side = kernel.shape[-1]
            size = [(length - side) // stride + 1 for length in padded.shape[:2]]
            total = np.zeros((*size, len(kernel))) + weights[f"features.{number}.bias"]
            for y in range(side):
                for x in range(side):
                    rows = slice(y, y + stride * (size[0] - 1) + 1, stride)
                    columns = slice(x, x + stride * (size[1] - 1) + 1, stride)
                    total += padded[rows, columns] @ kernel[:, :, y, x].T
            values = np.maximum(total, 0)
            if number in taps:
                layers.append(values / (np.sqrt((values**2).sum(-1, keepdims=True)) + 1e-10))
        seen.append(layers)
    return sum(
        float((((one - two) ** 2) @ weight.numpy()[0, :, 0, 0]).mean())
        for one, two, weight in zip(*seen, linear, strict=True)
    )
