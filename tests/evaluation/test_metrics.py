"""Metrics against closed forms, other packages and literal loops; protocols worked by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torchmetrics
from numpy.typing import NDArray
from PIL import Image
from skimage import data, metrics

from evaluation import judges, lookalikes
from inlay.errors import InputError
from inlay.evaluation.figures import measure
from inlay.evaluation.metrics import PROTOCOLS, metrics_of
from inlay.evaluation.networks import find_network
from inlay.evaluation.pairs import Pair
from inlay.pictures.arrays import Box
from inlay.request import Request
from inlay.scene.segment import segment

Array = NDArray[np.uint8]
BICUBIC, LANCZOS = Image.Resampling.BICUBIC, Image.Resampling.LANCZOS
# Of a background of 200 x 150 pixels; at 512 x 512 its edges are at 51.2, 136.53, 307.2, 409.6.
BOX = Box(20, 40, 100, 80)
ROUND, FLOOR = (51, 137, 307, 410), (51, 136, 307, 409)


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return judges.judges(tmp_path_factory.mktemp("judges"))


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """A cat for a launch, with two references, and a truth that is darker in an ellipse."""
    place, (cat, mask) = lookalikes.places()[0], lookalikes.objects()["Cat"]
    references = [tmp_path / "0.png", tmp_path / "1.png"]
    masks = [tmp_path / "m0.png", tmp_path / "m1.png"]
    for path, drawn, photo in zip(references, masks, (cat, cat[:, ::-1]), strict=True):
        lookalikes.save(np.ascontiguousarray(photo), path)
        lookalikes.save(mask if photo is cat else mask[:, ::-1].copy(), drawn)
    lookalikes.save(place, tmp_path / "place.png")
    where = np.asarray(Image.fromarray(mask).resize((200, 150), Image.Resampling.NEAREST))
    lookalikes.save(where, tmp_path / "where.png")
    truth = np.where(where[..., None] > 0, place // 2, place)
    lookalikes.save(truth, tmp_path / "truth.png")
    subject = {"picture": str(references[0]), "box": [BOX.x, BOX.y, BOX.width, BOX.height]}
    told = {"verb": "compose", "background": str(tmp_path / "place.png"), "subjects": [subject]}
    files = tmp_path / "truth.png", tmp_path / "where.png"
    return Pair("a", "Coffee_cup", Request.of(told), tuple(references), tuple(masks), BOX, *files)


@pytest.fixture
def result() -> Image.Image:
    """The launch with a part of the cat, noise in the box's corner, and one change outside it."""
    made = lookalikes.places()[0].copy()
    made[BOX.slices] = lookalikes.objects()["Cat"][0][30:110, 60:160]
    made[100:120, 90:120] = np.random.default_rng(0).integers(0, 256, (20, 30, 3))
    made[5:25, 150:190] = 255 - made[5:25, 150:190]
    return Image.fromarray(made)


def score(protocol: str, name: str, pair: Pair, result: Image.Image, **models: Path) -> float:
    (metric,) = (each for each in metrics_of(protocol, models) if each.name == name)
    assert metric.reason is None
    value = metric(pair, result)
    assert isinstance(value, float)
    return value


def place(pair: Pair) -> Image.Image:
    return Image.open(pair.background).convert("RGB")


def black(image: Image.Image, side: int, how: Image.Resampling, box: tuple[int, ...]) -> Array:
    """A picture at side x side, its box black; the box's end is exclusive."""
    array = np.array(image.resize((side, side), how))
    array[box[1] : box[3], box[0] : box[2]] = 0
    return array


def test_bcmis_ssim_is_torchmetrics_with_the_box_black(pair: Pair, result: Image.Image) -> None:
    one, two = (black(each, 512, BICUBIC, ROUND) for each in (result, place(pair)))
    own = torchmetrics.functional.image.structural_similarity_index_measure(
        *(torch.from_numpy(each).permute(2, 0, 1)[None].double() / 255 for each in (one, two)),
        data_range=1.0,
    )
    assert score("bcmi", "ssim", pair, result) == pytest.approx(float(own), abs=1e-9)


def test_shines_ssim_is_skimages_with_one_row_and_column_more_black(
    pair: Pair, result: Image.Image
) -> None:
    edge = (*FLOOR[:2], FLOOR[2] + 1, FLOOR[3] + 1)
    one, two = (black(each, 512, LANCZOS, edge) for each in (result, place(pair)))
    own = metrics.structural_similarity(one, two, channel_axis=-1, data_range=255)
    assert score("shine", "ssim", pair, result) == pytest.approx(own, abs=1e-9)


def test_ssim_without_the_box_is_the_mean_over_windows_that_do_not_touch_it(
    pair: Pair, result: Image.Image
) -> None:
    one, two = np.asarray(result), np.asarray(place(pair))
    weights = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    told = {"channel_axis": -1, "data_range": 255, "full": True}
    found = metrics.structural_similarity(one, two, **told, **weights)[1].mean(-1)
    total, count = 0.0, 0
    for y in range(5, 145):
        for x in range(5, 195):
            beside = x + 5 < BOX.x or x - 5 >= BOX.right
            if beside or y + 5 < BOX.y or y - 5 >= BOX.bottom:
                total, count = total + found[y, x], count + 1
    own = score("inlay", "ssim_outside", pair, result)
    assert own == pytest.approx(total / count, abs=1e-12) and own < 0.99
    # What is in the box counts for nothing, in either form.
    inside = place(pair).copy()
    inside.paste((255, 0, 255), (BOX.x, BOX.y, BOX.right, BOX.bottom))
    assert score("inlay", "ssim_outside", pair, inside) == pytest.approx(1, abs=1e-12)
    assert score("dreamcom", "ssim", pair, result) < 0.99
    # Resampled it reaches a few pixels beyond.
    assert 0.99 < score("dreamcom", "ssim", pair, inside) < 1


def test_excluding_the_box_and_blackening_it_are_two_figures(
    pair: Pair, result: Image.Image
) -> None:
    excluded, filled = score("dreamcom", "ssim", pair, result), score("bcmi", "ssim", pair, result)
    assert excluded < filled


def test_iharmony4s_figures_are_its_scripts(pair: Pair, result: Image.Image) -> None:
    assert pair.truth and pair.truth_mask
    two, one = (
        np.array(each.convert("RGB").resize((256, 256), BICUBIC), np.float32)
        for each in (Image.open(pair.truth), result)
    )
    mask = np.array(Image.open(pair.truth_mask).convert("1").resize((256, 256), BICUBIC))
    area, marked = int(mask.sum()), mask.astype(np.uint8)[..., None]
    expected = {
        "mse": metrics.mean_squared_error(one, two),
        "fmse": metrics.mean_squared_error(one * marked, two * marked) * 256 * 256 / area,
        "psnr": metrics.peak_signal_noise_ratio(two, one, data_range=one.max() - one.min()),
    }
    for name, value in expected.items():
        assert score("iharmony4", name, pair, result) == pytest.approx(float(value), rel=1e-6)
    # A flat pair by hand: 10 levels apart everywhere.
    for path, level in ((pair.truth, 100), (pair.background, 110)):
        lookalikes.save(np.full((150, 200, 3), level, np.uint8), path)
    flat = Image.open(pair.background)
    assert score("iharmony4", "mse", pair, flat) == score("iharmony4", "fmse", pair, flat) == 100


def test_our_figures_against_a_truth(pair: Pair, result: Image.Image) -> None:
    assert pair.truth and pair.truth_mask
    one, two = np.asarray(result), np.asarray(Image.open(pair.truth))
    mask = (np.asarray(Image.open(pair.truth_mask)) > 127).astype(np.float32)
    for name, value in measure(one, two, mask).items():
        assert score("inlay", f"truth_{name}", pair, result) == value
    whole = metrics.peak_signal_noise_ratio(two, one, data_range=255)
    assert score("inlay", "truth_psnr", pair, result) == pytest.approx(whole)
    weights = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    like = metrics.structural_similarity(one, two, channel_axis=-1, data_range=255, **weights)
    assert score("inlay", "truth_ssim", pair, result) == pytest.approx(like, abs=1e-9)


def test_a_pair_without_a_truth_or_references_has_no_figure(
    pair: Pair, result: Image.Image, networks: dict[str, Path]
) -> None:
    bare = Pair(pair.name, pair.category, pair.request, (), (), BOX)
    needs = {"truth_psnr", "truth_ssim", "truth_fmse", "mse", "fmse", "psnr", "dinov2", "dreamedit"}
    for protocol in ("inlay", "iharmony4", "shine", "dreamedit"):
        for metric in metrics_of(protocol, networks):
            if metric.name in needs:
                assert metric(bare, result) == {}


def test_a_seam_is_what_it_stands_out_by(pair: Pair) -> None:
    flat = np.full((150, 200, 3), 90, np.uint8)
    lookalikes.save(flat, pair.background)
    brighter = flat.copy()
    brighter[BOX.slices] += 37
    assert score("inlay", "seam", pair, Image.fromarray(brighter)) == pytest.approx(37, abs=1e-4)
    # On a ramp of a level a pixel along x steps beside the seam are 1 in rows, 0 in columns; those
    # across it 37 + 1 on the left, 37 - 1 on the right, 37 above and below.
    made = np.ascontiguousarray(flat - 90 + np.arange(200, dtype=np.uint8)[None, :, None])
    made[BOX.slices] += 37
    across = (80 * (37 + 1) + 80 * (37 - 1) + 2 * 100 * 37) / 360
    beside = 80 * 8 * 1 / (80 * 8 + 100 * 8)
    assert score("inlay", "seam", pair, Image.fromarray(made)) == pytest.approx(
        across - beside, abs=1e-4
    )
    for photo in (data.astronaut(), data.coffee(), data.chelsea()):
        part = np.ascontiguousarray(photo[:150, :200])
        lookalikes.save(part, pair.background)
        assert abs(score("inlay", "seam", pair, Image.fromarray(part))) < 3


def test_bytes_that_changed_outside_are_counted(pair: Pair) -> None:
    made = np.array(place(pair))
    assert score("inlay", "changed_outside", pair, Image.fromarray(made)) == 0
    made[BOX.slices] = 255 - made[BOX.slices]
    assert score("inlay", "changed_outside", pair, Image.fromarray(made)) == 0
    made[BOX.bottom, BOX.x] ^= 1
    made[BOX.y, BOX.right, 1] ^= 1
    assert score("inlay", "changed_outside", pair, Image.fromarray(made)) == 4


def test_a_result_of_another_size_is_refused_where_pixels_are_compared(
    pair: Pair, result: Image.Image
) -> None:
    smaller = result.resize((100, 75))
    for name in ("ssim_outside", "changed_outside", "truth_psnr"):
        with pytest.raises(InputError, match=r"has \(100, 75\) pixels; expected \(200, 150\)"):
            score("inlay", name, pair, smaller)
    assert 0 < score("shine", "ssim", pair, smaller) < 1


def vector(net: judges.Network, image: Image.Image, short: int | None, take: str) -> torch.Tensor:
    """Of a network the vector of a picture, prepared by hand as torchvision would."""
    return net(judges.pixels(image, short, net.clip), take)


def cosine(one: torch.Tensor, two: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(one, two, dim=0))


def test_a_vision_transformer_is_what_its_equations_say(networks: dict[str, Path]) -> None:
    image = Image.fromarray(data.chelsea())
    own = find_network("dino", networks).look(image, "crop")
    # 300 x 451 pixels: the shorter side to 256 * 32 / 224 = 36, then the middle 32 x 32.
    small = image.resize((int(36 * 451 / 300), 36), BICUBIC)
    left = round((small.width - 32) / 2)
    values = np.asarray(small.crop((left, 2, left + 32, 34)), np.float64) / 255
    mean, spread = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    tokens = judges.literal_vit(networks["dino"], (values - mean) / spread)
    assert np.allclose(own.numpy(), tokens[0], atol=2e-4)


def test_lpips_is_what_its_equations_say(networks: dict[str, Path]) -> None:
    one = Image.fromarray(data.chelsea()[100:163, 100:163])
    two = Image.fromarray(data.coffee()[100:163, 100:163])
    for name in ("alexnet", "vgg16"):
        size = (63, 63) if name == "alexnet" else (16, 16)
        pictures = [each.resize(size) for each in (one, two)]
        arrays = [np.asarray(each, np.float64) for each in pictures]
        expected = judges.literal_lpips(networks[name], name, *arrays)
        net = find_network(name, networks)
        assert net(*pictures) == pytest.approx(expected, rel=1e-4)
        assert net(pictures[0], pictures[0]) == 0


def test_dreamcoms_likeness_is_the_mean_over_crops_of_references(
    pair: Pair, result: Image.Image, networks: dict[str, Path]
) -> None:
    crop = result.crop((20, 40, 120, 120))
    for name, short in (("dino", 36), ("clip", 32)):
        net, values = judges.Network(networks[name]), []
        for path, drawn in zip(pair.references, pair.reference_masks, strict=True):
            where = np.asarray(Image.open(drawn)) > 127
            rows, columns = np.flatnonzero(where.any(1)), np.flatnonzero(where.any(0))
            near = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            reference = Image.open(path).crop(tuple(int(n) for n in near))
            vectors = (vector(net, each, short, "cls") for each in (crop, reference))
            values.append(cosine(*vectors))
        own = score("dreamcom", {"dino": "dino", "clip": "clip_i"}[name], pair, result, **networks)
        assert own == pytest.approx(np.mean(values), abs=1e-5)
        assert abs(values[0] - values[1]) > 1e-4


def test_shines_likeness_has_one_reference_on_black(
    pair: Pair, result: Image.Image, networks: dict[str, Path]
) -> None:
    crop = result.resize((512, 512), LANCZOS).crop(FLOOR)
    cat = np.asarray(Image.open(pair.references[0]))
    where = (np.asarray(Image.open(pair.reference_masks[0])) > 127)[..., None]
    reference = Image.fromarray(np.where(where, cat, 0))
    clip, dinov2 = (judges.Network(networks[name]) for name in ("clip", "dinov2"))
    likeness = cosine(*(vector(clip, each, 32, "cls") for each in (crop, reference)))
    assert score("shine", "clip_i", pair, result, **networks) == pytest.approx(likeness, abs=1e-5)
    likeness = cosine(*(vector(dinov2, each, 36, "mean") for each in (crop, reference)))
    own = score("shine", "dinov2", pair, result, **networks)
    assert own == pytest.approx((likeness + 1) / 2, abs=1e-5)
    parts = [judges.Network(networks["dreamsim"] / n) for n in ("dino", "clip", "open_clip")]
    vectors = []
    for image in (crop, reference):
        whole = torch.cat([vector(part, image, None, "raw") for part in parts])
        vectors.append(whole / whole.norm() - (whole / whole.norm()).mean())
    own = score("shine", "dreamsim", pair, result, **networks)
    assert own == pytest.approx(1 - cosine(*vectors), abs=1e-5)


def test_shines_lpips_is_at_256_with_the_box_black(
    pair: Pair, result: Image.Image, networks: dict[str, Path]
) -> None:
    edge = (*FLOOR[:2], FLOOR[2] + 1, FLOOR[3] + 1)
    arrays = (black(each, 512, LANCZOS, edge) for each in (result, place(pair)))
    how = Image.Resampling.BILINEAR
    pictures = [Image.fromarray(each).resize((256, 256), how) for each in arrays]
    own = score("shine", "lpips", pair, result, **networks)
    assert own == find_network("alexnet", networks)(*pictures) > 0


def test_lpips_at_512_by_vgg(pair: Pair, networks: dict[str, Path]) -> None:
    made = np.array(place(pair).resize((512, 512), BICUBIC))
    lookalikes.save(made, pair.background)
    box = Box(*ROUND[:2], ROUND[2] - ROUND[0], ROUND[3] - ROUND[1])
    squashed = Pair(pair.name, "", pair.request, (), (), box)
    made[box.slices] = 255 - made[box.slices]
    # In neither form what is in the box counts.
    for protocol in ("dreamcom", "bcmi"):
        assert score(protocol, "lpips", squashed, Image.fromarray(made), **networks) == 0


def test_lpips_over_a_mask_is_the_mean_of_its_map(networks: dict[str, Path]) -> None:
    one, two = (Image.fromarray(photo[:64, :64]) for photo in (data.chelsea(), data.coffee()))
    net, everywhere = find_network("alexnet", networks), np.ones((64, 64), np.bool_)
    left, right = everywhere.copy(), everywhere.copy()
    left[:, 16:], right[:, :16] = False, False
    whole = net(one, two, everywhere)
    assert whole == pytest.approx(net(one, two, left) / 4 + net(one, two, right) * 3 / 4, rel=1e-5)


def test_bcmis_likeness_multiplies_by_masks_and_squashes(
    pair: Pair, result: Image.Image, networks: dict[str, Path]
) -> None:
    rgb = (np.asarray(result) / np.float32(255)).astype(np.float32)
    mask = segment(rgb, str(networks["sam"]), box=BOX)[0][BOX.slices]
    assert 0 < mask.mean() < 1
    crop = np.asarray(result)[BOX.slices]
    shown = Image.fromarray((crop * mask[..., None]).astype(np.uint8))
    net, values = judges.Network(networks["dino"]), []
    for path, drawn in zip(pair.references, pair.reference_masks, strict=True):
        image, levels = (
            np.asarray(Image.open(each).resize((100, 80), BICUBIC)) for each in (path, drawn)
        )
        reference = (image * (levels / np.float32(255))[..., None]).astype(np.uint8)
        vectors = (vector(net, each, None, "cls") for each in (shown, Image.fromarray(reference)))
        values.append(cosine(*vectors))
    own = score("bcmi", "dino", pair, result, **networks)
    assert own == pytest.approx(np.mean(values), abs=1e-5)


def test_dreamedit_looks_at_whole_pictures(
    pair: Pair, result: Image.Image, networks: dict[str, Path]
) -> None:
    (metric,) = metrics_of("dreamedit", networks)
    own = metric(pair, result)
    assert isinstance(own, dict)
    expected = {}
    for name, short in (("dino", 36), ("clip", 32)):
        net = judges.Network(networks[name])
        pictures = [Image.open(path) for path in pair.references]
        one, back, *rest = (
            vector(net, each.resize((512, 512), BICUBIC), short, "cls")
            for each in (result, place(pair), *pictures)
        )
        expected[f"{name}_sub"] = np.mean([cosine(one, each) for each in rest])
        expected[f"{name}_back"] = cosine(one, back)
    parts = [expected[name] for name in ("dino_sub", "clip_sub", "dino_back", "dino_back")]
    expected["overall"] = math.prod(part if part >= 0 else 0.001 for part in parts) ** 0.25
    assert own == pytest.approx(expected, abs=1e-5)


def test_clip_t_reads_the_prompt(
    pair: Pair, result: Image.Image, networks: dict[str, Path]
) -> None:
    from transformers import AutoTokenizer

    net = judges.Network(networks["clip"])
    tokens = AutoTokenizer.from_pretrained(networks["clip"])(
        ["a photo of a coffee cup"], return_tensors="pt"
    )
    with torch.inference_mode():
        text = net.net.get_text_features(**tokens).pooler_output[0]
    expected = cosine(vector(net, result, 32, "cls"), text)
    own = score("inlay", "clip_t", pair, result, **networks)
    assert own == pytest.approx(expected, abs=1e-5)


def test_efficientnet_knows_a_cat_from_a_cup(pair: Pair, networks: dict[str, Path]) -> None:
    cat = Image.open(pair.references[0])
    like = place(pair).copy()
    like.paste(cat.resize((100, 80)), (BOX.x, BOX.y))
    unlike = place(pair).copy()
    cup = Image.fromarray(lookalikes.objects()["Coffee_cup"][0])
    unlike.paste(cup.resize((100, 80)), (BOX.x, BOX.y))
    name = "efficientnet_lite0"
    scores = [score("inlay", name, pair, each, **networks) for each in (like, unlike)]
    assert scores[0] > scores[1] + 0.2


def test_what_cannot_be_had_has_a_reason_and_no_number(
    pair: Pair, result: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    models = {"vgg16": tmp_path / "empty", "clip": tmp_path / "empty"}
    known = {
        ("dreamcom", "dino"): "is not in the local cache",
        ("dreamcom", "clip_i"): "empty could not be loaded",
        ("dreamcom", "lpips"): "is no vgg16 of torchvision",
        ("shine", "dreamsim"): "is on no hub in a form that is safe to read; give a folder",
        ("shine", "lpips"): "alexnet is on no hub",
        ("shine", "irf"): "no network for it",
    }
    for (protocol, name), reason in known.items():
        (metric,) = (each for each in metrics_of(protocol, models) if each.name == name)
        assert metric.reason and reason in metric.reason
        with pytest.raises(InputError, match="is not available: "):
            metric(pair, result)
    with pytest.raises(InputError, match="did you mean dreamcom"):
        metrics_of("dreamcon")


def test_every_metric_says_where_it_comes_from(networks: dict[str, Path]) -> None:
    for protocol in PROTOCOLS:
        found = metrics_of(protocol, networks)
        assert len({each.name for each in found}) == len(found)
        assert all(each.protocol == protocol and each.source for each in found)
    lower = {"lpips", "dreamsim", "mse", "fmse", "seam", "changed_outside"}
    lower |= {"truth_fmse", "truth_delta_e", "truth_lpips"}
    for protocol in PROTOCOLS:
        for metric in metrics_of(protocol, networks):
            assert metric.higher_is_better == (metric.name not in lower)
