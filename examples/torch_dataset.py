"""What `inlay augment` wrote, as a torch dataset: pictures with boxes, masks and classes.

    python examples/torch_dataset.py DIR

DIR has coco.json (`--labels coco`). An item is what detectors of torchvision learn from: the
picture, float32 (3, H, W) in [0, 1]; boxes (n, 4) as x1, y1, x2, y2; labels (n,) from 1; masks
(n, H, W), uint8.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


class Composites(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """The composites of a folder, with their labels."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        told = json.loads((self.folder / "coco.json").read_text())
        self.names = {each["id"]: each["name"] for each in told["categories"]}
        self.images = told["images"]
        self.labels: dict[int, list[dict[str, object]]] = {each["id"]: [] for each in self.images}
        for label in told["annotations"]:
            self.labels[label["image_id"]].append(label)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> tuple[Tensor, dict[str, Tensor]]:
        image = self.images[number]
        labels = self.labels[image["id"]]
        picture = np.array(Image.open(self.folder / image["file_name"]).convert("RGB"))
        boxes = np.array([label["bbox"] for label in labels], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        masks = [coco.decode(label["segmentation"]) for label in labels]
        shape = (len(labels), *picture.shape[:2])
        return torch.from_numpy(picture).permute(2, 0, 1) / 255, {
            "boxes": torch.from_numpy(boxes),
            "labels": torch.tensor([label["category_id"] for label in labels], dtype=torch.int64),
            "masks": torch.from_numpy(np.array(masks, np.uint8).reshape(shape)),
        }


if __name__ == "__main__":
    composites = Composites(sys.argv[1])
    for pictures, targets in DataLoader(
        composites, batch_size=4, collate_fn=lambda items: zip(*items, strict=True)
    ):
        for picture, target in zip(pictures, targets, strict=True):
            names = [composites.names[int(label)] for label in target["labels"]]
            print(tuple(picture.shape), names, target["masks"].sum((1, 2)).tolist())
