"""Learning an object: boxes, crops, loss, prompts, what stays frozen, resuming, and the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from skimage import data

from checkpoints import built, loaded
from inlay import Box, InputError
from inlay.checkpoints.concept import Sight, attach, is_concept, read_concept
from inlay.checkpoints.load import load_backbone
from inlay.cli import main
from inlay.diffusion.backbone import Backbone
from inlay.diffusion.conditions import Conditions
from inlay.diffusion.text import embed_prompt
from inlay.learning.learn import Learning, learn, run_folder
from inlay.learning.loop import train
from inlay.learning.photos import find_views, with_places
from inlay.learning.samples import (
    Example,
    crop_sample,
    draw_crop,
    encode,
    example,
    loss_weights,
)
from inlay.learning.settings import LearnConfig, pick_token, prompt_for

BOXES = [Box(60, 30, 90, 80), Box(50, 20, 100, 90), Box(40, 40, 80, 100)]
SMALL: dict[str, Any] = {
    "steps": 4, "batch": 2, "variants": 2, "rank": 2, "save_every": 2, "resolution": 64,
    "layers": "all", "learning_rate": 1e-2,
}  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three crops of one photo, the cup somewhere in each."""
    folder = tmp_path_factory.mktemp("photos")
    files = []
    for number, (x, y) in enumerate([(120, 10), (180, 40), (150, 60)]):
        path = folder / f"{number}.png"
        Image.fromarray(data.coffee()[y : y + 180, x : x + 220]).save(path)
        files.append(str(path))
    return files


def _read(photos: list[Any], side: int = 64, **where: Any) -> list[Example]:
    return [
        example(found, LearnConfig(), side) for found in find_views(with_places(photos, **where))
    ]


def _example(shape: np.ndarray[Any, Any], box: Box, frame: Box) -> Example:
    height, width = shape.shape
    rgb = np.random.default_rng(0).random((height, width, 3), np.float32)
    known = np.ones_like(shape)
    sight = Sight(photo="photo", sha256="0", aspect=box.width / box.height, size=0.1)
    return Example(rgb, known, shape, box, frame, sight)


def _filled(height: int, width: int, box: Box) -> np.ndarray[Any, Any]:
    mask = np.zeros((height, width), np.float32)
    mask[box.slices] = 1
    return mask


def test_the_loss_counts_valid_pixels_alone() -> None:
    hole = torch.tensor([[[[1.0, 1.0, 0.0, 0.0]]]])
    valid = torch.tensor([[[[1.0, 0.0, 1.0, 1.0]]]])
    error = torch.tensor([[[[2.0, 50.0, 4.0, 6.0]]]])

    def loss(hole_weight: float) -> float:
        weight = loss_weights(hole, valid, hole_weight)
        return float((error * weight).sum() / weight.sum())

    assert loss(0) == pytest.approx((2 + 4 + 6) / 3)
    assert loss(1) == pytest.approx(2)
    # Of the valid pixels one is hole, with 1, and two are not, with 0.5 each.
    assert loss(0.5) == pytest.approx((2 + 0.5 * 4 + 0.5 * 6) / 2)


def test_every_crop_holds_four_fifths_of_the_object() -> None:
    box = Box(40, 40, 40, 40)
    example = _example(_filled(120, 120, box), box, Box(30, 30, 60, 60))
    config = LearnConfig(shift=0.5, scale_min=0.8, scale_max=2)
    rng = np.random.default_rng(0)
    crops = [draw_crop(example, config, rng) for _ in range(200)]
    shares = []
    for crop in crops:
        # By hand: the overlap of two boxes, side by side.
        across = min(crop.right, box.right) - max(crop.x, box.x)
        down = min(crop.bottom, box.bottom) - max(crop.y, box.y)
        shares.append(max(across, 0) * max(down, 0) / 1600)
    assert min(shares) >= 0.8
    assert min(shares) < 0.9
    sides = [crop.width for crop in crops]
    assert len(set(sides)) > 20
    assert 60 / 2 <= min(sides) < 40
    assert 70 < max(sides) <= 75
    # Where no crop can do it, as each is smaller than the object, the frame is taken.
    tight = LearnConfig(scale_min=1, scale_max=4, least_inside=1, shift=1)
    large = _example(
        _filled(120, 120, Box(0, 0, 120, 120)), Box(0, 0, 120, 120), Box(5, 5, 110, 110)
    )
    assert draw_crop(large, tight, rng) == large.frame


def test_the_rule_counts_the_object_not_its_box() -> None:
    """An object that is the left tenth of its box is in crops that hold little of the box."""
    shape = _filled(100, 100, Box(20, 20, 6, 60))
    example = _example(shape, Box(20, 20, 60, 60), Box(10, 10, 80, 80))
    config = LearnConfig(shift=0.6, scale_min=1, scale_max=3)
    rng = np.random.default_rng(1)
    held, boxed = [], []
    for _ in range(100):
        crop = draw_crop(example, config, rng)
        inside = crop.intersect(Box.of_size((100, 100)))
        assert inside is not None
        held.append(shape[inside.slices].sum() / shape.sum())
        boxed.append(_filled(100, 100, example.box)[inside.slices].sum() / 3600)
    assert min(held) >= 0.8
    assert min(boxed) < 0.5


def test_what_lies_beyond_the_photo_is_not_valid() -> None:
    box = Box(8, 8, 16, 16)
    example = _example(_filled(32, 32, box), box, Box(0, 0, 32, 32))
    sample = crop_sample(example, Box(-8, 0, 40, 40), 40)
    assert sample.valid[0].sum() == 32 * 32
    assert sample.valid[0, :32, 8:].all()
    assert torch.equal(sample.x[:, :, :8], torch.zeros(3, 40, 8))
    expected = torch.from_numpy(example.rgb.transpose(2, 0, 1)) * 2 - 1
    torch.testing.assert_close(sample.x[:, :32, 8:], expected)
    assert sample.hole[0].sum() == 256
    assert sample.hole[0, 8:24, 16:32].all()
    mirrored = crop_sample(example, Box(-8, 0, 40, 40), 40, flip=True)
    for one, other in ((sample.x, mirrored.x), (sample.hole, mirrored.hole)):
        assert torch.equal(one.flip(-1), other)


def test_whole_patches_are_hole_or_valid() -> None:
    backbone = loaded("sd1_inpaint")
    box = Box(12, 12, 8, 8)
    example = _example(_filled(64, 64, box), box, Box(0, 0, 64, 64))
    sample = crop_sample(example, Box(4, 0, 64, 64), 64)
    pool = encode(backbone, [sample])
    # The box is at 8 to 16 across and 12 to 20 down: one patch of 8 across, two down.
    hole = torch.zeros(8, 8)
    hole[1:3, 1] = 1
    assert torch.equal(pool.hole[0, 0], hole)
    # The last 4 of 64 columns lie beyond the photo: their patch is not sound.
    assert torch.equal(pool.valid[0, 0, :, -1], torch.zeros(8))
    assert pool.valid[0, 0, :, :-1].all()
    erased = sample.x[None].clone()
    erased[:, :, 8:24, 8:16] = 0
    assert pool.seen is not None
    torch.testing.assert_close(pool.seen, backbone.encode(erased))
    torch.testing.assert_close(pool.z, backbone.encode(sample.x[None]))
    assert encode(loaded("sd1"), [sample]).seen is None


def test_boxes_come_from_where_they_are_said(photos: list[str], tmp_path: Path) -> None:
    given = _read(photos, 64, boxes=BOXES)
    assert [example.sight.aspect for example in given] == [90 / 80, 100 / 90, 80 / 100]
    assert given[0].sight.size == pytest.approx((90 * 80 / (220 * 180)) ** 0.5)
    # Twice the longer side of 90, and no finer than twice what the model sees.
    assert given[0].frame.width == given[0].frame.height == 128
    assert given[0].box.width == 64
    mask = Image.fromarray((_filled(180, 220, BOXES[0]) * 255).astype(np.uint8))
    mask.save(tmp_path / "mask.png")
    masked = _read(photos[:1], 64, masks=[str(tmp_path / "mask.png")])[0]
    assert (masked.box, masked.frame) == (given[0].box, given[0].frame)
    clear = np.dstack([np.asarray(Image.open(photos[0])), np.asarray(mask)])
    alpha = _read([clear], 64)[0]
    assert (alpha.box, alpha.frame) == (given[0].box, given[0].frame)
    # What is transparent has no colour to be learnt.
    assert np.array_equal(alpha.known, alpha.shape)
    dark = np.full((90, 120, 3), 30, np.uint8)
    dark[30:70, 40:90] = (200, 180, 40)
    found = _read([dark], 64)[0]
    assert found.sight.aspect == pytest.approx(50 / 40, abs=0.15)


def test_prompts_are_laid_out_as_told() -> None:
    text = loaded("sd1_inpaint").text
    prompt = prompt_for("a photo of {token} {class}", "q", "cup of tea")
    assert prompt == "a photo of q cup of tea"
    assert prompt_for("a photo of {token} {class}", "", "cup") == "a photo of cup"
    plain = embed_prompt(text, prompt, (64, 64)).hidden
    assert torch.equal(plain, text.embed([prompt], (64, 64)).hidden)
    both = embed_prompt(text, prompt, (64, 64), "released", "cat").hidden
    other = text.embed(["cat"], (64, 64)).hidden
    assert both.shape == plain.shape == (1, 77, 32)
    for place in range(77):
        source = plain[0, place] if place < 39 else other[0, place - 38]
        assert torch.equal(both[0, place], source)
    with pytest.raises(InputError, match="longer than the 38 tokens"):
        embed_prompt(text, "a " * 39, (64, 64), "released")
    # The test's vocabulary of single letters does not have "sks" in one piece.
    assert pick_token(text) == "q"
    assert len(text.word_ids(pick_token(text))) == 1


def _weights(backbone: Backbone) -> dict[str, torch.Tensor]:
    modules = (backbone.network, backbone.vae, *backbone.text.encoders)
    return {
        f"{number}.{name.replace('.base_layer', '')}": value.clone()
        for number, module in enumerate(modules)
        for name, value in module.state_dict().items()
        if "lora_" not in name
    }


def _run(photos: list[str], out: Path, model: str = "sd1_inpaint", **changes: Any) -> Learning:
    config = LearnConfig(**{**SMALL, "model": str(built(model)), **changes})
    examples = _read(photos, 64, boxes=BOXES)
    return Learning(examples, "cup", out, load_backbone(config.model, device="cpu"), config)


@pytest.mark.parametrize(("model", "checkpointing"), [("sd1_inpaint", False), ("sd2_v", True)])
def test_the_lora_learns_and_the_checkpoint_stays(
    model: str, checkpointing: bool, photos: list[str], tmp_path: Path
) -> None:
    # At 64 px the deepest layers have one token alone, and self-attention over it learns nothing.
    changes = {"gradient_checkpointing": checkpointing, "resolution": 128, "batch": 1}
    run = _run(photos, tmp_path / "run", model, **changes)
    backbone = run.backbone
    before = _weights(backbone)
    fresh = {name: value.clone() for name, value in run.trained.state_dict().items()}
    for _ in range(3):
        run.train_step()
    after = _weights(backbone)
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    now = run.trained.state_dict()
    assert not [name for name, value in fresh.items() if torch.equal(value, now[name])]
    assert len(fresh) > 100
    learning = {name for name, p in backbone.network.named_parameters() if p.requires_grad}
    assert learning == {name for name, _ in backbone.network.named_parameters() if "lora_" in name}


def test_a_loss_that_is_no_number_ends_the_run(photos: list[str], tmp_path: Path) -> None:
    run = _run(photos, tmp_path / "run", "sd1", steps=3)
    with torch.no_grad():
        run.backbone.unet.conv_out.bias[0] = float("nan")
    with pytest.raises(InputError, match="the loss of step 1 is no finite number"):
        train(run, lambda line: None)
    assert not (tmp_path / "run" / "state.safetensors").exists()


def test_training_masks_cross_attention(photos: list[str], tmp_path: Path) -> None:
    """Nothing but what is inside the box sees the prompt, so without a hole it does not matter."""
    run = _run(photos, tmp_path / "run", "sd1")
    pool = run.fixed["photos"].rows(np.arange(1), run.device)
    z, t = pool.z, torch.tensor([500])
    one, other = (run.backbone.embed([text], (64, 64)) for text in ("a photo of q cup", "cat"))

    def apart(hole: torch.Tensor) -> float:
        with torch.no_grad(), run.masked(hole):
            outputs = [run.backbone.predict(z, t, Conditions(text)) for text in (one, other)]
        return float((outputs[0] - outputs[1]).abs().max())

    assert apart(torch.zeros_like(pool.hole)) == 0
    assert apart(pool.hole) > 1e-4


def test_a_resumed_run_ends_where_an_unbroken_one_does(photos: list[str], tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    config = LearnConfig(**SMALL, model=str(built("sd1_inpaint")))
    places = with_places(photos, BOXES)
    learn(places, "cup", whole, config, device="cpu")
    stopped = config.model_copy(update={"max_minutes": 1e-6})
    for number in range(4):
        learn(places, "cup", parts, stopped, device="cpu", resume=number > 0)
    one, two = load_file(whole), load_file(parts)
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(value, two[key], atol=1e-5, rtol=1e-4)
    assert read_concept(parts).steps == read_concept(whole).steps == 4
    with pytest.raises(InputError, match="had other photos"):
        other = with_places(photos[::-1], BOXES)
        learn(other, "cup", parts, config, device="cpu", resume=True)
    with pytest.raises(InputError, match="had other class name"):
        learn(places, "mug", parts, config, device="cpu", resume=True)
    # States that were damaged, or come from elsewhere.
    state = run_folder(parts) / "state.safetensors"
    whole_bytes, tensors = state.read_bytes(), load_file(state)
    name = next(key for key in tensors if key.startswith("opt.exp_avg."))
    less = {key: value for key, value in tensors.items() if not key.startswith("ema.")}
    for held, step in (
        (less, "2"),
        (tensors | {name: torch.zeros(5)}, "2"),
        (tensors | {"opt.exp_avg.strange": torch.zeros(5)}, "2"),
        (tensors, "two"),
        (tensors, None),
    ):
        save_file(held, state, step and {"step": step})
        with pytest.raises(InputError, match="is not of an object for the model"):
            learn(places, "cup", parts, config, device="cpu", resume=True)
    for damaged in (whole_bytes[:-9], b"", b"\xff" * 99):
        state.write_bytes(damaged)
        with pytest.raises(InputError, match="truncated"):
            learn(places, "cup", parts, config, device="cpu", resume=True)
    state.write_bytes(whole_bytes)
    for recipe in ("[1]", "[" * 10**6, "{}"):
        (state.parent / "recipe.json").write_text(recipe)
        with pytest.raises(InputError, match="had other photos"):
            learn(places, "cup", parts, config, device="cpu", resume=True)


@pytest.fixture(scope="module")
def learnt(photos: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("learnt") / "cup.safetensors"
    config = LearnConfig(**SMALL, model=str(built("sd1_inpaint")), ema_decay=0)
    learn(with_places(photos, BOXES), "cup", path, config, device="cpu")
    return path


def _prediction(backbone: Backbone) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    z, seen = (torch.randn(1, 4, 16, 16, generator=generator) for _ in range(2))
    hole = torch.zeros(1, 1, 16, 16)
    hole[..., 4:12, 4:12] = 1
    with torch.no_grad():
        text = backbone.embed(["a photo of q cup"], (128, 128))
        return backbone.predict(z, 500, Conditions(text, mask=hole, masked_latent=seen))


def test_the_file_is_the_same_in_inlay_and_diffusers(learnt: Path) -> None:
    import diffusers

    model = str(built("sd1_inpaint"))
    base = load_backbone(model, device="cpu")
    plain, before = _prediction(base), _weights(base)
    with attach(base, learnt) as concept:
        inside = _prediction(base)
        assert concept.prompt == "a photo of q cup"
    assert torch.equal(_prediction(base), plain)
    after = _weights(base)
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert (inside - plain).abs().max() > 1e-2
    with attach(base, learnt, 0.0):
        torch.testing.assert_close(_prediction(base), plain, atol=1e-6, rtol=0)
    merged = load_backbone(model, device="cpu", loras=[(learnt, 1.0)])
    torch.testing.assert_close(_prediction(merged), inside, atol=1e-4, rtol=0)
    library: Any = diffusers
    pipe = library.StableDiffusionInpaintPipeline.from_pretrained(model, safety_checker=None)
    pipe.load_lora_weights(str(learnt.parent), weight_name=learnt.name)
    base.network = pipe.unet.eval()
    torch.testing.assert_close(_prediction(base), inside, atol=1e-4, rtol=0)
    # By hand, from the file alone: what a layer adds is B A x.
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    tensors = load_file(learnt)
    a, b = (tensors[f"unet.{name}.lora_{side}.weight"] for side in "AB")
    layer = pipe.unet.get_submodule(name)
    x = torch.randn(3, a.shape[1], generator=torch.Generator().manual_seed(1))
    expected = x @ layer.base_layer.weight.T + x @ a.T @ b.T
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-4)


def test_the_file_says_what_it_is_of(learnt: Path) -> None:
    concept = read_concept(learnt, loaded("sd1_inpaint"))
    assert (concept.class_name, concept.token) == ("cup", "q")
    assert concept.class_prompt == "a photo of cup"
    assert concept.aspect == pytest.approx(100 / 90)
    sizes = [(box.area / (220 * 180)) ** 0.5 for box in BOXES]
    assert [sight.size for sight in concept.sights] == pytest.approx(sizes)
    assert concept.base.hash == loaded("sd1_inpaint").hash
    assert concept.base.kind == "inpaint"
    assert concept.settings["rank"] == 2
    assert is_concept(learnt)


def test_files_that_do_not_fit_are_refused(learnt: Path, tmp_path: Path) -> None:
    for other in ("sd1", "sd2_v"):
        with pytest.raises(InputError, match="has other weights") as error:
            read_concept(learnt, loaded(other))
        assert str(error.value).count(".") == str(error.value).count(".safetensors") + 1
    stranger = load_backbone(str(built("sd1")), device="cpu")
    with pytest.raises(InputError, match="has other weights"), attach(stranger, learnt):
        raise AssertionError
    plain = tmp_path / "plain.safetensors"
    save_file({"x": torch.zeros(1)}, plain)
    with pytest.raises(InputError, match="holds no concept"):
        read_concept(plain)
    save_file({"x": torch.zeros(1)}, plain, metadata={"inlay_learned": '{"format": 9}'})
    with pytest.raises(InputError, match="learn it again"):
        read_concept(plain)
    assert not is_concept(tmp_path / "none.safetensors")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(learnt.read_bytes()[:500])
    with pytest.raises(InputError, match="not a whole"):
        read_concept(broken)


def test_bad_requests_are_one_sentence_and_write_nothing(
    photos: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, out = photos[0], str(tmp_path / "cup.safetensors")
    (tmp_path / "text.jpg").write_text("no picture")
    broken = tmp_path / "model"
    broken.mkdir()
    Image.fromarray(np.zeros((180, 220), np.uint8)).save(tmp_path / "black.png")
    box = ["--box", "60,30,90,80", "--model", str(built("sd1"))]
    named = ["--class-name", "cup", "-o", out]
    cases = [
        (named, "needs PHOTO"),
        ([*photos[:1] * 11, *named], "11 photos"),
        ([one, "-o", out], "needs --class-name"),
        ([one, "--class-name", " ", "-o", out], "--class-name is empty"),
        ([one, "--class-name", "cup", "-o", str(tmp_path / "cup.pt")], "safetensors"),
        ([one, "--class-name", "cup", "-o", str(tmp_path / "no" / "cup.safetensors")], "folder"),
        ([str(tmp_path / "text.jpg"), *named, *box], "text.jpg"),
        ([str(tmp_path / "none.jpg"), *named, *box], "does not exist"),
        ([one, *named, "--box", "900,0,20,20"], "outside"),
        ([one, *named, "--box", "10,10,3,3"], "at least 8 x 8"),
        ([*photos, *named, *box], "expected one for each"),
        ([one, *named, "--mask", str(tmp_path / "black.png")], "is empty"),
        ([one, *named, *box, "--mask", one], "not both kinds"),
        ([one, *named, *box[:2], "--model", str(broken)], "model"),
        ([one, *named, *box, "--class-pictures", str(broken)], "class pictures"),
        ([one, *named, *box, "--resume"], "resume"),
        ([one, *named, *box, "--set", "held_out=1"], "held_out"),
        ([one, *named, *box, "--set", "prompt=a cup"], "{token}"),
        ([one, *named, *box, "--set", "rank=0"], "rank"),
        ([one, *named, *box, "--set", "resolution=50"], "multiple"),
    ]
    before = sorted(path.name for path in tmp_path.rglob("*"))
    for arguments, words in cases:
        assert main(["learn", *arguments]) == 2, arguments
        said = capsys.readouterr().err
        assert words in said, (arguments, said)
        assert said.count("\n") == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_the_whole_command(
    photos: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cup.safetensors"
    boxes = [f"{b.x},{b.y},{b.width},{b.height}" for b in BOXES]
    named = ["--class-name", "cup", "-o", str(out)]
    arguments = ["learn", *photos, *named, "--device", "cpu", "--json"]
    for box in boxes:
        arguments += ["--box", box]
    for setting in ("steps=3", "batch=2", "variants=2", "preview_every=3", "preview_steps=2"):
        arguments += ["--set", setting]
    prior = tmp_path / "cups"
    prior.mkdir()
    Image.fromarray(data.coffee()).save(prior / "coffee.png")
    assert main([*arguments, "--class-pictures", str(prior), "--set", "held_out=1"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["class_name"] == "cup"
    assert told["steps"] == 3
    assert len(told["sights"]) == 2
    assert read_concept(out).token == told["token"]
    folder = run_folder(out)
    row = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])
    assert {"loss_in_box_photos", "loss_in_box_held_out", "loss_in_box_held_out_before"} <= set(row)
    assert Image.open(folder / "preview-000003.png").size == (256, 128)
