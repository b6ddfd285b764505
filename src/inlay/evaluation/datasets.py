"""Data sets of composition as their authors lay them out: pairs of a request and what judges it.

What a layout lacks is left out, and `Dataset.problems` says so in a sentence each.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from inlay.errors import InputError, __version__, nearest, show
from inlay.evaluation.pairs import (
    Beside,
    Pair,
    Problems,
    below,
    box_of,
    compose_pair,
    drawn_box,
    files_of,
    folders,
    harmonize_pair,
    kept_images,
    listed_boxes,
    marked,
    mask_beside,
    photos_of,
    pictures_of,
    read_items,
    read_words,
    rows_of,
    scaled,
    size_of,
    slug,
)
from inlay.evaluation.photos import BUNDLED, bundled_set
from inlay.learning.folder import SUFFIXES
from inlay.pictures.arrays import Box

# Of DreamEditBench: the side its boxes are said in, and the classes that hold other subjects, too.
_SQUASHED, _SHINE = 512, 768
_CLASSES = {"backpack_dog": "backpack", "shiny_sneaker": "sneaker", "colorful_sneaker": "sneaker"}
_SUBJECTS = ("subjects", "dreambooth", "dreambooth/dataset", "data/subjects", "dataset")


@dataclass(frozen=True)
class Dataset:
    """A data set below a folder; protocol is the one that its authors' tables follow."""

    name: str
    protocol: str
    root: Path
    layout: Callable[[Path, Problems], Iterator[Pair]] = field(repr=False)
    expected: int | None = None

    def pairs(self) -> Iterator[Pair]:
        """Pair by pair, in one order for ever; raises InputError where there is none."""
        some = False
        for pair in self.layout(self.root, []):
            some = True
            yield pair
        if not some:
            reason = next(iter(self.problems()), "it is empty.")
            raise InputError(f"{show(str(self.root))} holds no pair of {self.name}: {reason}")

    def problems(self) -> list[str]:
        """What is missing or odd, a sentence each; every file is looked at, none is decoded."""
        problems: Problems = []
        names = Counter[str]()
        for pair in self.layout(self.root, problems):
            names[pair.name] += 1
            if names[pair.name] == 2:
                problems.append(f"the name {pair.name} stands for two pairs; the first one counts.")
            sizes = {path: size_of(path, problems) for path in files_of(pair)}
            if (size := sizes[pair.background]) and not pair.box.intersect(Box.of_size(size)):
                problems.append(f"{pair.name}: the box lies outside {pair.background.name}.")
            masks = *zip(pair.references, pair.reference_masks, strict=True), (pair.truth, None)
            for photo, mask in masks:
                other = pair.background if photo == pair.truth else mask
                if photo and other and sizes[photo] and sizes[photo] != (sizes[other] or ()):
                    problems.append(f"{other} is not as large as {photo.name}.")
        if (count := names.total()) and self.expected not in (None, count):
            problems.append(f"{self.name} has {count} pairs here; all of it has {self.expected}.")
        return list(dict.fromkeys(problems))


def open_dataset(name: str, root: str | Path) -> Dataset:
    """A data set by its name, one of NAMES, and its folder; of "manifest" the file. The folder
    scikit-image is the set that comes along, as MureCom has it, in the user's cache.

    Raises InputError for an unknown name, or where nothing is at root.
    """
    if name not in _LAYOUTS:
        raise InputError(f"there is no data set {show(name)}; {nearest(name, _LAYOUTS)}")
    protocol, layout, expected = _LAYOUTS[name]
    # A manifest of the pairs lies elsewhere.
    path = Path(root).absolute()
    if str(root) == BUNDLED and name.startswith("murecom"):
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        path = bundled_set(Path(cache, "inlay", f"scikit-image-{__version__}"))
    if "\0" in str(root) or not (path.exists() if name == "manifest" else path.is_dir()):
        what = "file of requests" if name == "manifest" else f"folder as {name} has it"
        raise InputError(f"{show(str(root))} does not exist; expected a {what}.")
    return Dataset(name, protocol, path, layout, expected)


def _murecom(root: Path, problems: Problems, truths: bool = False) -> Iterator[Pair]:
    """MureCom (Lu et al. 2023, arXiv 2309.15508): each background with each object of a category.

    Boxes are in bbox.txt, corners inclusive, else in {i}_bbox.png. With `truths` the pairs are
    those that have one: an object taken out of its photo, {i}_rmobj.jpg, is put back as another
    photo shows it: of the same object where that is a photo of fg*, else of the same category.
    """
    for home in folders(root):
        if not (home / "bg").is_dir() and not truths:
            problems.append(f"{home.name} has no folder bg.")
            continue
        objects = {each.name: photos_of(each, problems) for each in folders(home, "fg[0-9]*")}
        objects = {name: photos for name, photos in objects.items() if photos}
        if not objects:
            problems.append(f"{home.name} has no folder fg1 with photos.")
        boxes = listed_boxes(home / "bg" / "bbox.txt", problems)
        for photo in photos_of(home / "bg", problems, masks=False):
            place = photo.with_name(f"{photo.stem}_rmobj.jpg") if truths else photo
            if truths and not place.is_file():
                continue
            corners = boxes.get(photo.stem)
            box = scaled(corners, None, photo, problems) if corners else drawn_box(photo, problems)
            if box:
                for name, photos in objects.items():
                    labels, truth = (home.name, photo.stem, name), photo if truths else None
                    yield compose_pair(labels, place, photos, box, truth=truth)
        for name, photos in objects.items() if truths else ():
            for number, photo in enumerate(photos):
                place = photo.with_name(f"{photo.stem}_rmobj.jpg")
                others = photos[number + 1 :] + photos[:number]
                if not place.is_file() or not others:
                    continue
                if box := drawn_box(photo, problems):
                    labels, mask = (home.name, name, photo.stem), mask_beside(photo)
                    yield compose_pair(labels, place, others, box, truth=photo, truth_mask=mask)


def _dreamedit(root: Path, problems: Problems) -> Iterator[Pair]:
    """DreamEditBench (Li et al. 2023, arXiv 2306.12624): folders, or the hub's Parquet files.

    Boxes are of the picture squashed to 512 x 512, their end exclusive. Subjects are DreamBooth's;
    one whose name has no class goes into that of its name without the number.
    """
    if tables := sorted(root.rglob("*.parquet")):
        yield from _dreamedit_rows(root, tables, problems)
        return
    homes = [root / name for name in _SUBJECTS if (root / name).is_dir()]
    if not homes:
        problems.append(f"{root.name} has no folder of subjects: {', '.join(_SUBJECTS)}.")
        return
    data = root / "data" if (root / "data").is_dir() else root
    for task in ("addition", "replacement"):
        for subject in folders(homes[0]):
            name = subject.name
            classes = name, re.sub(r"\d+$", "", name), _CLASSES.get(name, name)
            homes_of = (data / f"{task}_source" / each for each in classes)
            folder = next((each for each in homes_of if each.is_dir()), None)
            if folder is None:
                problems.append(f"{task}_source has no class for the subject {name}.")
                continue
            boxes = read_items(folder / "bbox.json", problems)
            photos = photos_of(subject, problems, masks=False)
            for number, photo in enumerate(photos_of(folder, problems, masks=False)):
                told = boxes.get(photo.name, boxes.get(photo.stem, boxes.get(str(number))))
                box = scaled(told, (_SQUASHED, _SQUASHED), photo, problems)
                if box and photos:
                    yield compose_pair((task, name, photo.stem), photo, photos, box, category=name)


def _dreamedit_rows(root: Path, tables: Sequence[Path], problems: Problems) -> Iterator[Pair]:
    """The hub's form: rows whose pictures are bytes, which go into root/pictures, each once."""
    number, size = -1, (_SQUASHED, _SQUASHED)
    columns = {"subject_name", "subject_images", "source_images", "add_bounding_box"}
    for row in (row for table in tables for row in rows_of(table, columns, problems)):
        number, name = number + 1, str(row["subject_name"])
        photos = kept_images(root, row["subject_images"], f"{name}-", problems)
        sources = kept_images(root, row["source_images"], f"{number:04d}-", problems)
        labels = str(row.get("task_type") or "addition"), name
        prompt = str(row.get("target_prompt") or "")
        for source in sources if photos else ():
            if box := scaled(row["add_bounding_box"], size, source, problems):
                named: dict[str, Any] = {"category": name, "prompt": prompt}
                yield compose_pair((*labels, source.stem), source, photos, box, **named)


def _shine(root: Path, problems: Problems) -> Iterator[Pair]:
    """Shine-DreamEditBench (arXiv 2509.21278): boxes of bg/content.json are of 768 x 768 pixels."""
    for home in folders(root):
        photo, told = home / "fg" / "03.jpg", home / "bg" / "content.json"
        if not photo.is_file():
            problems.append(f"{home.name} has no fg/03.jpg.")
            continue
        items = read_items(told, problems).values()
        for item in (each for each in items if isinstance(each, dict)):
            image = item.get("image") or os.path.basename(str(item.get("bg_img_path", "")))
            place = home / "bg" / Path(str(image)).name
            box = scaled(item.get("bbox"), (_SHINE, _SHINE), place, problems)
            if box:
                prompt = str(item.get("source_prompt", ""))
                yield compose_pair((home.name, place.stem), place, [photo], box, prompt=prompt)


def _tf_icon(root: Path, problems: Problems) -> Iterator[Pair]:
    """TF-ICON's benchmark (Lu et al. 2023, arXiv 2307.12493): DOMAIN/PROMPT/{bg, fg, …}."""
    for domain in folders(root):
        for home in folders(domain):
            found: dict[str, Path] = {}
            for path in pictures_of(home):
                words = path.stem.lower()
                kind = "place" if words.startswith("mask_bg_fg") else words[:2]
                found.setdefault("fg_mask" if kind == "fg" and "mask" in words else kind, path)
            if lost := {"bg", "fg", "place"} - found.keys():
                names = ", ".join(sorted(lost)).replace("place", "mask_bg_fg")
                problems.append(f"{domain.name}/{home.name} has no {names}.")
                continue
            if box := marked(found["place"], found["bg"], problems):
                labels, photo, masks = (domain.name, home.name), found["fg"], [found.get("fg_mask")]
                named: dict[str, Any] = {"masks": masks, "prompt": home.name}
                yield compose_pair(labels, found["bg"], [photo], box, **named)


def _cocoee(root: Path, problems: Problems) -> Iterator[Pair]:
    """COCOEE (Yang et al. 2022, arXiv 2211.13227): ID_GT, ID_ref and ID_mask in three folders."""
    homes = [root / f"{name}_3500" for name in ("GT", "Ref", "Mask_bbox")]
    found = [{path.stem.rpartition("_")[0]: path for path in pictures_of(home)} for home in homes]
    for number, place in found[0].items():
        if lost := [home.name for home, own in zip(homes, found, strict=True) if number not in own]:
            problems.append(f"{number} is not in {', '.join(lost)}.")
        elif box := marked(found[2][number], place, problems):
            yield compose_pair((number,), place, [found[1][number]], box, category="object")


def _iharmony4(root: Path, problems: Problems) -> Iterator[Pair]:
    """iHarmony4 (Cong et al. 2020, arXiv 1911.13239), all of it or one of its four parts.

    A composite A_B_C.jpg goes with masks/A_B.png and real_images/A.jpg. Where a part has a list
    *_test.txt of composites, those alone are taken.
    """
    parts = [root] if (root / "composite_images").is_dir() else folders(root)
    for part in parts:
        composites = pictures_of(part / "composite_images")
        lists = sorted(part.glob("*_test.txt"))
        test = {Path(line).name for each in lists[:1] for line in read_words(each)}
        for path in (each for each in composites if not test or each.name in test):
            stem = path.stem.rpartition("_")[0]
            mask = part / "masks" / f"{stem}.png"
            truth = part / "real_images" / f"{stem.rpartition('_')[0]}.jpg"
            if lost := [each.name for each in (mask, truth) if not each.is_file()]:
                problems.append(f"{part.name}: {path.name} goes with {' and '.join(lost)}.")
            elif pair := harmonize_pair((part.name, path.stem), path, mask, truth, None, problems):
                yield pair


def _libcom(root: Path, problems: Problems) -> Iterator[Pair]:
    """Folders as libcom (bcmi/libcom) has them: composite, composite_mask, and truth or real; or
    background, foreground, foreground_mask and bbox.txt with x1 y1 x2 y2, their end exclusive.
    """
    for home in sorted({path.parent for path in root.rglob("*") if path.suffix in SUFFIXES}):
        own = {path.stem: path for path in sorted(home.iterdir()) if path.suffix in SUFFIXES}
        where = home.relative_to(root).as_posix() if home != root else root.name
        truth, place = own.get("truth", own.get("real")), own.get("background")
        if {"composite", "composite_mask"} <= own.keys():
            args = (own["composite"], own["composite_mask"], truth, place, problems)
            if pair := harmonize_pair((where,), *args):
                yield pair
        elif place and "foreground" in own and (home / "bbox.txt").is_file():
            told = read_words(home / "bbox.txt")[:4]
            photo, masks = own["foreground"], [own.get("foreground_mask")]
            if box := scaled(told, None, place, problems):
                yield compose_pair((where,), place, [photo], box, masks=masks, truth=truth)
        elif "composite" in own or place:
            problems.append(f"{where} has neither composite_mask nor foreground and bbox.txt.")


def _manifest(path: Path, problems: Problems) -> Iterator[Pair]:
    """Requests in a manifest (inlay.batch.manifest), or manifest.jsonl of a folder; a row may say
    category, prompt, references, reference_masks, truth and truth_mask, too.
    """
    from inlay.batch.manifest import read_rows

    file = path / "manifest.jsonl" if path.is_dir() else path
    for row in read_rows(str(file), [*Beside.model_fields]):
        try:
            beside = Beside.of(row.beside)
            box = box_of(row.request) if row.request else None
            problem = row.problem or "it says no box and no mask of where the object is."
        except InputError as error:
            box, problem = None, str(error)
        if row.request is None or not box:
            problems.append(f"row {row.line}: {problem}")
            continue
        told = {key: below(file.parent, value) for key, value in beside if value is not None}
        subjects = [subject for subject in row.request.subjects_of() if subject.picture]
        references = told.get("references", [Path(each.picture) for each in subjects])
        masks = [each.mask and Path(each.mask) for each in subjects]
        masks = told.get("reference_masks", [] if "references" in told else masks)
        masks = masks or [None] * len(references)
        if len(references) != len(masks):
            problems.append(f"row {row.line}: references and reference_masks differ in number.")
            continue
        yield Pair(
            name=slug(row.name.rpartition(".")[0]),
            category=beside.category,
            request=row.request,
            references=tuple(references),
            reference_masks=tuple(masks),
            box=box,
            truth=told.get("truth"),
            truth_mask=told.get("truth_mask"),
            prompt=beside.prompt,
        )


_LAYOUTS: dict[str, tuple[str, Callable[[Path, Problems], Iterator[Pair]], int | None]] = {
    "murecom": ("dreamcom", _murecom, 1920),
    "murecom-rmobj": ("inlay", partial(_murecom, truths=True), None),
    "dreameditbench": ("dreamcom", _dreamedit, None),
    "shine-dreameditbench": ("shine", _shine, 220),
    "tf-icon": ("inlay", _tf_icon, 332),
    "cocoee": ("bcmi", _cocoee, 3500),
    "iharmony4": ("iharmony4", _iharmony4, None),
    "libcom": ("iharmony4", _libcom, None),
    "manifest": ("inlay", _manifest, None),
}
NAMES = tuple(_LAYOUTS)
