"""The training of the embedded checkpoint: data, resuming, and that what it writes loads."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from skimage import data

from inlay import Box, Composer, InputError
from inlay.learning.folder import is_held_out
from inlay.learning.loop import JointOptimizer, reports
from inlay.learning.samples import random_crop, random_mask
from inlay.training.corpus import (
    load_corpus,
    masked_crop,
    object_mask,
    recolour,
    with_rendered,
)
from inlay.training.embedded import EmbeddedConfig, EmbeddedTrainer
from inlay.training.latent import favoured_timesteps
from inlay.training.objects import ObjectCache
from inlay.training.trainer import Ahead, train_folder

TINY = EmbeddedConfig(
    block_out_channels=(16, 32), text_width=32, text_layers=1, attention_heads=2,
    steps=4, low_resolution_steps=2, low_resolution=32, resolution=64, low_resolution_batch=2,
    batch=2, save_every=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder of crops of real photos, large enough for both splits."""
    root = tmp_path_factory.mktemp("photos")
    rows = []
    rng = np.random.default_rng(0)
    for number in range(40):
        name = ("astronaut", "coffee", "chelsea", "rocket")[number % 4]
        photo = getattr(data, name)()
        y, x = rng.integers(0, 100, 2)
        Image.fromarray(photo[y : y + 150, x : x + 170]).save(root / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "text": f"a photo of a {name}"})
    (root / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return root


def test_the_splits_are_disjoint_and_complete(folder: Path) -> None:
    train, held = load_corpus(folder, held_out=False), load_corpus(folder, held_out=True)
    assert len(train) + len(held) == 40
    assert 1 <= len(held) < 10
    assert train.weights.sum() == pytest.approx(1)
    share = sum(is_held_out(f"photo-{n}.jpg") for n in range(4000)) / 4000
    assert share == pytest.approx(0.05, abs=0.012)


def test_crops_and_masks_are_what_they_say() -> None:
    rng = np.random.default_rng(1)
    photo = data.coffee()
    for _ in range(20):
        crop = random_crop(photo, 64, rng)
        assert crop.shape == (64, 64, 3)
        assert crop.dtype == np.uint8
    masks = [random_mask(64, rng) for _ in range(200)]
    shares = np.array([mask.mean() for mask in masks])
    assert all(set(np.unique(mask)) <= {0.0, 1.0} for mask in masks)
    assert 0.08 < (shares == 1).mean() < 0.25
    assert 0.1 < np.median(shares) < 0.7
    assert (shares > 0).mean() > 0.95


def test_a_resumed_run_ends_where_an_unbroken_one_does(folder: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_folder(EmbeddedTrainer, folder, whole, TINY)
    stopped = TINY.model_copy(update={"max_minutes": 1e-6})
    for _ in range(4):
        train_folder(
            EmbeddedTrainer, folder, parts, stopped, resume=(parts / "state.safetensors").exists()
        )
    one, two = load_file(whole / "state.safetensors"), load_file(parts / "state.safetensors")
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(value, two[key], atol=1e-5, rtol=1e-4)
    steps = [json.loads(line)["step"] for line in (whole / "log.jsonl").read_text().splitlines()]
    assert steps == [2, 4]


def test_a_resumed_run_keeps_its_words(folder: Path, tmp_path: Path) -> None:
    """They were learned anew, and numbered otherwise, although the weights knew the old numbers."""
    train_folder(EmbeddedTrainer, folder, tmp_path / "run", TINY)
    words = EmbeddedTrainer(folder, tmp_path / "run", TINY, resume=True).tokenizer.get_vocab()
    other = tmp_path / "photos"
    shutil.copytree(folder, other)
    lines = (other / "metadata.jsonl").read_text().replace("coffee", "zebra in a xylophone shop")
    (other / "metadata.jsonl").write_text(lines)
    again = EmbeddedTrainer(other, tmp_path / "run", TINY, resume=True)
    assert again.tokenizer.get_vocab() == words
    assert EmbeddedTrainer(other, tmp_path / "new", TINY).tokenizer.get_vocab() != words


def test_what_training_writes_composes(folder: Path, tmp_path: Path) -> None:
    checkpoint = train_folder(EmbeddedTrainer, folder, tmp_path / "out", TINY)
    recipe = json.loads((checkpoint / "training.json").read_text())
    assert recipe["step"] == 4
    assert recipe["config"]["seed"] == 0
    result = Composer.from_pretrained(str(checkpoint), device="cpu").harmonize(
        data.coffee(), mask=(np.indices((400, 600)).sum(0) % 400 < 60).astype(np.uint8) * 255,
        method="cdc", num_inference_steps=2,
    )  # fmt: skip
    assert result.image.size == (600, 400)
    assert Box.of_size((600, 400)).intersect(result.region) == result.region


def test_bad_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"metadata\.jsonl"):
        train_folder(EmbeddedTrainer, tmp_path, tmp_path / "out", TINY)
    (tmp_path / "metadata.jsonl").write_text("{nonsense")
    with pytest.raises(InputError, match="line 1"):
        train_folder(EmbeddedTrainer, tmp_path, tmp_path / "out", TINY)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "gone.png", "text": "x"}')
    with pytest.raises(InputError, match="no readable picture"):
        train_folder(EmbeddedTrainer, tmp_path, tmp_path / "out", TINY)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"file_name": "../a.png", "text": "x"}', "inside the folder"),
        ('{"file_name": "/a.png", "text": "x"}', "inside the folder"),
        ('{"file_name": "a.png", "text": "x", "weight": -1}', "weight"),
        ('{"file_name": "a.png", "text": "x", "weight": NaN}', "weight"),
        ("[1, 2]", "line 1"),
        ("[" * 10**6, "line 1"),
        ('{"file_name": "a.png", "text": "' + "x" * 10**6 + '"}', "line 1"),
        ('{"file_name": "a.png", "weight": 1' + "0" * 10**6 + "}", "line 1"),
        ("\udcff", "UTF-8"),
    ],
)
def test_bad_rows_are_refused(tmp_path: Path, line: str, says: str) -> None:
    (tmp_path / "metadata.jsonl").write_bytes(line.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=says):
        train_folder(EmbeddedTrainer, tmp_path, tmp_path / "out", TINY)


def test_a_handful_of_photos_trains_without_a_held_out_split(tmp_path: Path) -> None:
    rows = []
    for name in ("chelsea.png", "coffee.png", "rocket.png"):
        assert not is_held_out(name)
        Image.fromarray(getattr(data, name[:-4])()).save(tmp_path / name)
        rows.append(json.dumps({"file_name": name, "text": "a photo"}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    short = TINY.model_copy(update={"steps": 2})
    assert (
        train_folder(EmbeddedTrainer, tmp_path, tmp_path / "out", short) / "model_index.json"
    ).is_file()


@pytest.mark.parametrize("widths", [(30, 60), (16,), (0, 16)])
def test_widths_that_no_network_has_are_refused(widths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="multiples of 16"):
        EmbeddedConfig(block_out_channels=widths)


def test_nothing_to_resume_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="resume"):
        train_folder(EmbeddedTrainer, folder, tmp_path / "empty", TINY, resume=True)


def test_muon_moves_matrices_along_the_polar_factor_and_the_rest_as_adamw() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Linear(6, 4)
            self.conv = torch.nn.Conv2d(3, 5, 3, bias=False)
            self.conv_in = torch.nn.Conv2d(2, 3, 1, bias=False)

    torch.manual_seed(0)
    net = Net()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for parameter in net.parameters():
        parameter.grad = torch.randn_like(parameter)
    JointOptimizer(net, "muon", 0.01).step(0.01)
    for name in ("inner.weight", "conv.weight"):
        parameter = dict(net.named_parameters())[name]
        grad = parameter.grad.flatten(1)
        left, _, right = torch.linalg.svd(grad, full_matrices=False)
        scale = 0.2 * max(grad.shape) ** 0.5
        moved = (before[name] * (1 - 0.01 * 0.01) - parameter.detach()).flatten(1)
        # Newton-Schulz brings the singular values near 1, not to it.
        values = torch.linalg.svdvals(moved / (0.01 * scale))
        assert values.min() > 0.5
        assert values.max() < 1.35
        cosine = (moved * (left @ right)).sum() / (moved.norm() * (left @ right).norm())
        assert cosine > 0.97
    for name in ("inner.bias", "conv_in.weight"):
        parameter = dict(net.named_parameters())[name]
        # The first step of AdamW has the size of the learning rate, whatever the gradient.
        expected = before[name] * (1 - 0.01 * 0.01) - 0.01 * parameter.grad.sign()
        torch.testing.assert_close(parameter.detach(), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_an_optimiser_goes_on_from_its_state(kind: str) -> None:
    def gradient(net: torch.nn.Module, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in net.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)

    one = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Linear(4, 3))
    first = JointOptimizer(one, kind, 0.01)
    for seed in range(3):
        gradient(one, seed)
        first.step(0.01)
    two = copy.deepcopy(one)
    second = JointOptimizer(two, kind, 0.01)
    second.load({key: value.clone() for key, value in first.state().items()})
    for net, optimizer in ((one, first), (two, second)):
        gradient(net, 9)
        optimizer.step(0.01)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)


def ellipse(side: int) -> np.ndarray:
    shape = np.zeros((side, side), np.uint8)
    cv2.ellipse(shape, (side // 2, side // 2 + 2), (side // 4, side // 3), 20, 0, 360, 255, -1)
    return shape


def test_the_object_in_the_middle_is_found_and_kept(tmp_path: Path) -> None:
    rng, shape = np.random.default_rng(0), ellipse(160)
    picture = np.where(shape[..., None] > 0, (190, 60, 40), (70, 90, 120))
    picture = np.clip(picture + rng.normal(0, 6, (160, 160, 3)), 0, 255).astype(np.uint8)
    objects = ObjectCache()
    (found,) = objects.of(picture)
    assert ((found > 127) == (shape > 0)).mean() > 0.97
    (again,) = objects.of(picture.copy())
    np.testing.assert_array_equal(found, again)
    # A given object is not looked for.
    (given,) = objects.of(np.dstack([picture, 255 - shape]))
    np.testing.assert_array_equal(given, 255 - shape)


def test_object_masks_hide_the_object_and_little_more() -> None:
    rng, shape = np.random.default_rng(0), ellipse(96)
    crop = np.dstack([np.zeros((96, 96, 3), np.uint8), shape])
    x, y, width, height = cv2.boundingRect(shape)
    box = np.zeros_like(shape)
    box[y : y + height, x : x + width] = 255
    kinds = set()
    for _ in range(20):
        mask = object_mask(crop, rng)
        assert mask is not None
        assert (mask[shape > 0] == 1).all()
        boxed = bool((mask[box > 0] == 1).all())
        kinds.add(boxed)
        # Widened by at most 6% of the picture.
        far = cv2.dilate(box if boxed else shape, np.ones((13, 13), np.uint8)) == 0
        assert not mask[far].any()
    assert kinds == {False, True}
    crop[..., 3] = 0
    assert object_mask(crop, rng) is None


def test_recolouring_keeps_the_order_of_levels_and_black() -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    seen = []
    for seed in range(20):
        out = recolour(ramp, np.random.default_rng(seed))
        assert (np.diff(out.astype(int), axis=1) >= 0).all()
        assert (out[:, 0] == 0).all()
        seen.append(out.astype(float).mean() - ramp.mean())
    assert np.std(seen) > 3
    assert abs(np.mean(seen)) < 25


def test_rendered_pictures_take_their_share(folder: Path, tmp_path: Path) -> None:
    """What tools/render_pairs.py writes is mixed in, with its objects; what is held out is not."""
    pictures = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 4), dtype=np.uint8)
    (tmp_path / "scenes" / "truth").mkdir(parents=True)
    rows = []
    for number, picture in enumerate(pictures):
        name = f"truth/{number:06d}.webp"
        image = Image.fromarray(picture)
        image.save(tmp_path / "scenes" / name, lossless=True, exact=True)
        rows.append(json.dumps({"file_name": name, "text": "a rendering of a mug", "gap": 0.0}))
    (tmp_path / "scenes" / "metadata.jsonl").write_text("\n".join(rows))
    kept = [n for n in range(8) if not is_held_out(f"truth/{n:06d}.webp")]
    corpus = load_corpus(folder, held_out=False)
    asked = TINY.model_copy(
        update={"rendered": str(tmp_path / "scenes"), "rendered_share": 0.2, "steps": 2}
    )
    mixed = with_rendered(corpus, asked)
    assert len(mixed) == len(corpus) + len(kept)
    assert mixed.weights.sum() == pytest.approx(1)
    assert mixed.weights[-len(kept) :].sum() == pytest.approx(0.2)
    assert all(text.startswith("a rendering of a") for text in mixed.captions[-len(kept) :])
    for number, picture in zip(kept, mixed.images[len(corpus) :], strict=True):
        np.testing.assert_array_equal(picture, pictures[number])
    assert with_rendered(corpus, TINY) is corpus
    assert (
        train_folder(EmbeddedTrainer, folder, tmp_path / "out", asked) / "model_index.json"
    ).is_file()


def test_a_number_of_rendered_pictures_is_no_longer_one_of_its_settings() -> None:
    for old in (1500, 0):
        with pytest.raises(ValueError, match="rendered"):
            EmbeddedConfig.model_validate({"rendered": old})


def test_a_run_can_begin_with_earlier_weights(folder: Path, tmp_path: Path) -> None:
    first = train_folder(EmbeddedTrainer, folder, tmp_path / "one", TINY)
    begun = TINY.model_copy(update={"start_from": str(first), "steps": 1, "learning_rate": 1e-12})
    second = train_folder(EmbeddedTrainer, folder, tmp_path / "two", begun)
    for part, name in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        one = load_file(first / part / f"{name}.safetensors")
        two = load_file(second / part / f"{name}.safetensors")
        for key, value in one.items():
            torch.testing.assert_close(value, two[key], atol=1e-3, rtol=1e-2)
    for part in ("vae", "unet", "text_encoder", "tokenizer"):
        for file in (second / part).glob("*.json"):
            assert str(first) not in file.read_text()
    wider = begun.model_copy(update={"block_out_channels": (32, 48)})
    with pytest.raises(InputError, match="same widths"):
        train_folder(EmbeddedTrainer, folder, tmp_path / "three", wider)
    nowhere = begun.model_copy(update={"start_from": str(tmp_path)})
    with pytest.raises(InputError, match=tmp_path.name):
        train_folder(EmbeddedTrainer, folder, tmp_path / "four", nowhere)


def test_batches_are_what_they_say(folder: Path, tmp_path: Path) -> None:
    """The same numbers make the same batch: pictures in [-1, 1], holes of 0 and 1."""
    shares = {"object_mask_share": 0.5, "recolour_share": 0.5, "caption_dropout": 0.5}
    trainer = EmbeddedTrainer(folder, tmp_path, TINY.model_copy(update=shares))
    for step, size in ((0, 32), (3, 64)):
        one, two = (trainer.batch([trainer.draw(step, r) for r in range(24)]) for _ in range(2))
        for name in ("x", "mask", "noise", "t"):
            torch.testing.assert_close(one[name], two[name], rtol=0, atol=0)
        assert one["caption"] == two["caption"] and "" in one["caption"]
        assert one["x"].shape == (24, 3, size, size)
        assert one["mask"].shape == (24, 1, size, size)
        assert one["noise"].shape == (24, 16, size // 4, size // 4)
        assert one["x"].abs().max() <= 1
        assert set(one["mask"].unique().tolist()) == {0.0, 1.0}


def test_holes_of_a_batch_hide_its_objects(tmp_path: Path) -> None:
    """Where all holes shall do so, each is the object's shape or box, or a little more."""
    picture = np.dstack([np.zeros((96, 96, 3), np.uint8), ellipse(96)])
    for seed in range(12):
        mask = masked_crop(picture, 48, np.random.default_rng(seed), ObjectCache(), 1.0, 0.0)[1]
        again = np.random.default_rng(seed)
        # As it is drawn: whether the object is hidden, then the crop.
        again.random()
        shape = random_crop(picture, 48, again)[..., 3] > 127
        assert shape.any() and (mask[shape] == 1).all()
        assert 0.03 <= mask.mean() < 1


def test_what_is_made_ahead_is_the_same() -> None:
    def make(step: int, row: int) -> int:
        return int(np.random.default_rng([step, row]).integers(1 << 30))

    plain, ahead = Ahead(make, 0), Ahead(make, 2)
    for step in (0, 1, 2, 7):
        assert plain.get(step, range(3)) == ahead.get(step, range(3))


def test_a_run_leaves_curves_for_tensorboard(folder: Path, tmp_path: Path) -> None:
    train_folder(EmbeddedTrainer, folder, tmp_path, TINY)
    events = list((tmp_path / "events").glob("events.out.tfevents.*"))
    assert len(events) == 1
    written = events[0].read_bytes()
    for t in (100, 300, 500, 700, 900):
        assert f"validation_v_loss/{t}".encode() in written


def test_timesteps_cover_all_levels_and_lean_to_the_noisy_ones() -> None:
    u = (np.arange(20000) + 0.5) / 20000
    for share in (0.0, 0.35):
        t = favoured_timesteps(u, share, 0.6)
        assert t.min() == 0
        assert t.max() == 999
        assert (t >= 600).mean() == pytest.approx(0.4 + 0.6 * share, abs=0.001)
        # Uniform on either side.
        assert np.median(t[t < 600]) == pytest.approx(300, abs=2)
        assert np.median(t[t >= 600]) == pytest.approx(800, abs=2)


def test_telling_captions_apart_is_trained_where_it_is_asked_for(
    folder: Path, tmp_path: Path
) -> None:
    def trained(weight: float) -> EmbeddedTrainer:
        config = TINY.model_copy(update={"word_contrast": weight, "object_mask_share": 1.0})
        trainer = EmbeddedTrainer(folder, tmp_path / str(weight), config)
        assert np.isfinite([trainer.train_step() for _ in range(2)]).all()
        return trainer

    without, plenty = trained(0.0), trained(5.0)
    (one,), (two,) = (
        [p for n, p in t.network.named_parameters() if n.endswith("token_embedding.weight")]
        for t in (without, plenty)
    )
    assert not torch.equal(one, two)


def test_runs_report_early_and_then_at_every_so_many_steps() -> None:
    told = [step for step in range(1, 1001) if reports(step, 300)]
    assert told == [25, 50, 100, 200, 300, 600, 900]
    assert [step for step in range(1, 60) if reports(step, 20)] == [20, 40]
