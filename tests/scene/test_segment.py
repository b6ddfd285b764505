"""Segmenters: small random models in the real formats, and what cannot be loaded."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import data

from evaluation.judges import sam
from inlay.errors import InputError
from inlay.pictures.arrays import Box
from inlay.scene.cutter import of_points
from inlay.scene.segment import segment

PHOTO = (data.chelsea()[:120, :150] / 255).astype(np.float32)

# A model that brings its own code, as BiRefNet does: the map is the green channel's excess.
CODE = """
import torch
from transformers import PretrainedConfig, PreTrainedModel

class FrontConfig(PretrainedConfig):
    model_type = "inlay_test_front"

class Front(PreTrainedModel):
    config_class = FrontConfig

    def __init__(self, config):
        super().__init__(config)
        self.gain = torch.nn.Parameter(torch.ones(1))
        self.post_init()

    def forward(self, pixels):
        assert pixels.shape[-2:] == (1024, 1024)
        front = self.gain * (pixels[:, 1:2] - pixels[:, 0:1]) * 20
        return [front * 0, front]
"""


def _semantic(folder: Path, favour: int, names: dict[int, str] | None = None) -> str:
    """DeepLabV3 on a small MobileNetV2, its classifier's bias set so that one class wins."""
    from transformers import (
        MobileNetV2Config,
        MobileNetV2ForSemanticSegmentation,
        MobileNetV2ImageProcessorPil,
    )

    names = names or {0: "background", 1: "cat", 2: "cup"}
    config = MobileNetV2Config(
        image_size=64, depth_multiplier=0.25, output_stride=8, id2label=names, num_labels=3
    )
    torch.manual_seed(0)
    model = MobileNetV2ForSemanticSegmentation(config)
    last = model.segmentation_head.classifier.convolution
    torch.nn.init.zeros_(last.weight)
    with torch.no_grad():
        last.bias.copy_(torch.eye(3)[favour])
    model.save_pretrained(folder)
    MobileNetV2ImageProcessorPil(
        size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64}
    ).save_pretrained(folder)
    return str(folder)


def test_semantic_takes_the_subjects_class(tmp_path: Path) -> None:
    model = _semantic(tmp_path / "m", favour=1)
    found, reach = segment(PHOTO, model)
    assert found.shape == (120, 150) and found.dtype == np.float32
    assert found.min() == 1  # the classifier says "cat" everywhere
    # Its map has an eighth of the resized picture's resolution.
    assert reach is not None and 120 / 9 * 0.8 < reach < 120 / 9 * 1.3


def test_semantic_with_a_box_keeps_to_it(tmp_path: Path) -> None:
    model = _semantic(tmp_path / "m", favour=2)
    found, _ = segment(PHOTO, model, box=Box(10, 20, 30, 40))
    assert found.sum() == 30 * 40
    assert found[20:60, 10:40].min() == 1


def test_semantic_that_sees_only_background(tmp_path: Path) -> None:
    model = _semantic(tmp_path / "m", favour=0)
    with pytest.raises(InputError, match="only background"):
        segment(PHOTO, model)


def test_semantic_class_zero_counts_where_it_has_a_name(tmp_path: Path) -> None:
    model = _semantic(tmp_path / "m", favour=0, names={0: "wall", 1: "cat", 2: "cup"})
    assert segment(PHOTO, model)[0].min() == 1


def test_sam_agrees_with_its_own_processor(tmp_path: Path) -> None:
    from transformers import SamImageProcessorPil, SamModel

    model = str(sam(tmp_path / "sam"))
    box = Box(20, 10, 80, 90)
    processor = SamImageProcessorPil(
        size={"longest_edge": 128}, pad_size={"height": 128, "width": 128}
    )
    inputs = processor((PHOTO * 255).round().astype(np.uint8), return_tensors="pt")
    scale = 128 / 150
    corners = torch.tensor([[[20.0, 10.0, 100.0, 100.0]]]) * scale
    with torch.inference_mode():
        answer = SamModel.from_pretrained(model)(
            pixel_values=inputs["pixel_values"], input_boxes=corners, multimask_output=False
        )
    logits = answer.pred_masks[0, 0, 0]
    # Random weights put the threshold anywhere: the sign has to say something for the test.
    assert float((logits > 0).float().mean()) > 0.05
    assert float((logits < 0).float().mean()) > 0.05
    wanted = processor.post_process_masks(
        answer.pred_masks, [[120, 150]], inputs["reshaped_input_sizes"]
    )[0][0, 0].numpy()
    found, _ = segment(PHOTO, model, box=box)
    inside = np.zeros((120, 150), bool)
    inside[box.slices] = True
    assert ((found > 0.5) == (wanted & inside)).mean() > 0.97
    assert found[~inside].max() == 0


def test_sam_2(tmp_path: Path) -> None:
    from transformers import Sam2Config, Sam2Model

    torch.manual_seed(0)
    config = Sam2Config(
        vision_config={
            "backbone_config": {
                "model_type": "sam2_hiera_det_model", "hidden_size": 16,
                "image_size": [128, 128], "num_attention_heads": 1,
                "blocks_per_stage": [1, 1, 2, 1], "embed_dim_per_stage": [16, 32, 64, 128],
                "num_attention_heads_per_stage": [1, 1, 2, 2],
                "window_size_per_stage": [4, 4, 4, 4], "global_attention_blocks": [3],
                "window_positional_embedding_background_size": [4, 4],
            },
            "backbone_channel_list": [128, 64, 32, 16], "fpn_hidden_size": 32,
            "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
        },
        prompt_encoder_config={"hidden_size": 32, "image_size": 128, "patch_size": 16},
        mask_decoder_config={
            "hidden_size": 32, "mlp_dim": 64, "num_attention_heads": 2, "iou_head_hidden_dim": 32,
        },
    )  # fmt: skip
    Sam2Model(config).save_pretrained(tmp_path)
    box = Box(5, 6, 100, 110)
    found, reach = segment(PHOTO, str(tmp_path), box=box)
    outside = np.ones((120, 150), bool)
    outside[box.slices] = False
    assert found.any() and not found[outside].any()
    assert reach is not None and 120 / 64 < reach < 20


def test_sam_is_asked_with_points_as_with_its_own_prompts(tmp_path: Path) -> None:
    """Its answer is the one to the points in its own pixels, kept to the pieces they lie on."""
    from transformers import SamImageProcessorPil, SamModel

    # As large as it reads, so that both read the same.
    photo, points = PHOTO[:100, :128], [(20.0, 90.0, True), (60.0, 50.0, True)]
    model = str(sam(tmp_path / "sam"))
    processor = SamImageProcessorPil(
        size={"longest_edge": 128}, pad_size={"height": 128, "width": 128}
    )
    inputs = processor((photo * 255).round().astype(np.uint8), return_tensors="pt")
    with torch.inference_mode():
        answer = SamModel.from_pretrained(model)(
            pixel_values=inputs["pixel_values"], multimask_output=False,
            input_points=torch.tensor([[[[x, y] for x, y, _ in points]]]),
            input_labels=torch.tensor([[[1, 1]]]),
        )  # fmt: skip
    wanted = processor.post_process_masks(
        answer.pred_masks, [[100, 128]], inputs["reshaped_input_sizes"]
    )[0][0, 0].numpy()
    kept = of_points(wanted.astype(np.float32), points) > 0.5
    # Random weights say anything: the pieces at the points have to say something for the test.
    assert 0.05 < kept.mean() < 0.95
    found, _ = segment(photo, model, points=points)
    assert ((found > 0.5) == kept).mean() > 0.999


def test_points_choose_among_what_a_segmenter_finds(front: str) -> None:
    """Two green things on pink: the one that the point lies on is meant."""
    photo = np.full((100, 160, 3), (0.8, 0.5, 0.5), np.float32)
    photo[20:60, 10:50] = photo[30:80, 100:140] = (0, 1, 0)
    found, _ = segment(photo, front, points=[(120, 50, True)], trust_remote_code=True)
    assert found[50, 120] > 0.9 and found[:, :80].max() < 0.5
    with pytest.raises(InputError, match="found no subject"):
        segment(photo, front, points=[(80, 5, True)], trust_remote_code=True)


def test_what_rembg_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no model 'birefnet-generl'; did you mean birefnet-gener"):
        segment(PHOTO, "rembg:birefnet-generl")
    monkeypatch.setitem(sys.modules, "rembg.session_factory", None)
    for how in ("rembg", "rembg:birefnet-general"):
        with pytest.raises(InputError, match=r"pip install inlay\[rembg\]"):
            segment(PHOTO, how)


def test_sam_needs_a_box(tmp_path: Path) -> None:
    model = str(sam(tmp_path / "sam"))
    with pytest.raises(InputError, match="asked with a box"):
        segment(PHOTO, model)


@pytest.fixture
def front(tmp_path: Path) -> str:
    folder = tmp_path / "front"
    folder.mkdir()
    (folder / "modeling_front.py").write_text(CODE)
    config = {
        "model_type": "inlay_test_front",
        "auto_map": {
            "AutoConfig": "modeling_front.FrontConfig",
            "AutoModelForImageSegmentation": "modeling_front.Front",
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    from safetensors.torch import save_file

    save_file({"gain": torch.ones(1)}, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def test_own_code_runs_only_when_allowed(front: str) -> None:
    with pytest.raises(InputError, match="code of its own"):
        segment(PHOTO, front)


def test_soft_foreground_map(front: str) -> None:
    picture = np.zeros((60, 80, 3), np.float32)
    picture[..., 0] = 0.8
    picture[20:40, 30:60] = (0.1, 0.9, 0.1)
    found, reach = segment(picture, front, trust_remote_code=True)
    assert reach is None
    assert found.shape == (60, 80)
    assert found[22:38, 32:58].min() > 0.99
    assert found[:17].max() < 0.01


@pytest.mark.parametrize(
    "name", ["/nowhere/at/all", "../model", "a/b/c", "no such model", "graphcut", "C:\\model"]
)
def test_a_name_that_is_no_model(name: str) -> None:
    with pytest.raises(InputError, match="cannot cut by"):
        segment(PHOTO, name)


def test_a_hub_id_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="not in the local cache"):
        segment(PHOTO, "inlay-tests/there-is-no-such-model")


def test_folders_that_hold_no_segmenter(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no model"):
        segment(PHOTO, str(tmp_path))
    (tmp_path / "config.json").write_text("{ not json")
    with pytest.raises(InputError, match="holds no model"):
        segment(PHOTO, str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match="bert model"):
        segment(PHOTO, str(tmp_path))


def test_truncated_weights(tmp_path: Path) -> None:
    model = Path(_semantic(tmp_path / "m", favour=1))
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="could not be loaded"):
        segment(PHOTO, str(model))


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    model = Path(_semantic(tmp_path / "m", favour=1))
    (model / "model.safetensors").unlink()
    torch.save({}, model / "pytorch_model.bin")
    with pytest.raises(InputError, match="could not be loaded"):
        segment(PHOTO, str(model))
