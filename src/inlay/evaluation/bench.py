"""Methods on the pairs of a data set: pictures made as a batch, each scored once, resumable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, fields, replace
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from PIL import Image as PILImage
from pydantic import Field, TypeAdapter, ValidationError

from inlay.batch.command import Running
from inlay.batch.engine import Alone, Crew, work
from inlay.batch.order import Batch
from inlay.batch.runner import Job
from inlay.errors import InputError, __version__, nearest, show
from inlay.evaluation.pairs import Pair, files_of, results_of, size_of, slug
from inlay.evaluation.tables import Kept
from inlay.methods.registry import MethodChoice
from inlay.pictures.read import file_sha256, read_picture, read_record
from inlay.pictures.write import replace_file
from inlay.request import Request
from inlay.settings import as_batch_size

if TYPE_CHECKING:
    from inlay.batch.ledger import Ledger
    from inlay.evaluation.metrics import Metric

# What of a variant is the request's and not the method's.
OF_REQUEST = ("shadow",)
# What of a pair's subject does not go with a concept in its place.
_OF_PICTURES = ("picture", "mask", "cut", "cut_box", "cut_points")
# So many pictures are scored at once: one is decoded while another's figures are taken.
_AT_ONCE = 2
# Ablations that come along, as YAML.
ABLATIONS = Path(__file__).with_name("ablations")


@dataclass(frozen=True)
class Variant:
    """A method under a label, with its settings as in a request, other fields of the request, and
    for concepts the settings they are learnt with, from so many references; None is all.
    """

    label: str
    method: Mapping[str, Any]
    request: Mapping[str, Any] = field(default_factory=dict)
    learn: Mapping[str, Any] = field(default_factory=dict)
    references: Annotated[int, Field(ge=1, strict=True)] | None = None

    @property
    def folder(self) -> str:
        """Its label as the name of a folder."""
        return slug(self.label, keep="=,+")

    def learnt(self, settings: Mapping[str, Any]) -> Variant:
        """The same, with what it does not say itself of how concepts are learnt."""
        return replace(self, learn={**settings, **self.learn})

    def choice(self, verb: str) -> MethodChoice:
        """The method with its settings checked; raises InputError."""
        return MethodChoice.of(dict(self.method), verb)


def read_ablation(name: str) -> tuple[dict[str, Any], list[Variant]]:
    """An ablation, a YAML file or one that comes along: what it says of itself (title, and perhaps
    protocol), and its variants.

    Under `variants` each label has a method (its name and settings) and may have request, learn
    and references. Raises InputError.
    """
    import yaml

    own = {path.stem: path for path in sorted(ABLATIONS.glob("*.yaml"))}
    path = own.get(name, Path(name))
    try:
        told = yaml.safe_load(path.read_text(encoding="utf-8"))
        variants = [Variant(str(label), **each) for label, each in told["variants"].items()]
        if not variants:
            raise LookupError
        says = {key: str(told[key]) for key in ("title", "protocol") if key in told}
        checked = TypeAdapter(list[Variant]).validate_python([vars(each) for each in variants])
        return {"title": path.stem, **says}, checked
    except ValidationError as error:
        number, *where = error.errors()[0]["loc"]
        label, place = variants[int(number)].label, ".".join(map(str, where))
        raise InputError(
            f"{place} of the variant {show(label)} is wrong; expected settings with their values, "
            "and of references a number from 1 on."
        ) from None
    except OSError:
        raise InputError(f"the ablation {show(name)} is no file; {nearest(name, own)}") from None
    except (yaml.YAMLError, UnicodeError, LookupError, TypeError, ValueError, AttributeError):
        raise InputError(
            f"the ablation {show(name)} is no YAML with variants, each a label with a method."
        ) from None


class Pairs(Protocol):
    """A data set, be it of a benchmark or in a folder."""

    def pairs(self) -> Iterable[Pair]:
        """Its pairs, each under a name of its own."""

    def problems(self) -> list[str]:
        """What is missing or odd, a sentence each."""


@dataclass(frozen=True)
class _Running(Running):
    """As a batch runs, but in this process unless something else is asked for."""

    def crew(self) -> Crew:
        here = self.workers is self.timeout is self.memory is None and self.engine == "local"
        return Alone(as_batch_size(self.batch_size)) if here else super().crew()


class Bench(Batch):
    """What was ordered: the variants' pictures of a data set in a folder, `samples` of each pair
    with the seeds from `seed` on, and beside them those that other tools made. progress(done,
    total) is told of pictures made, then of those scored, and may raise.

    results are folders of the latter, one a method, in which a file is called by its pair, and its
    number behind it. `chosen` says which pairs count; `most` is how many do. After write() `pairs`
    are the data set's, `problems` what is missing or odd.
    """

    def __init__(
        self,
        dataset: Pairs,
        variants: Sequence[Variant],
        output: str | Path,
        given: Running | None = None,
        *,
        samples: int = 1,
        seed: int = 0,
        model: Mapping[str, Any] | None = None,
        results: Sequence[str] = (),
        chosen: Callable[[Pair], bool] = lambda pair: True,
        most: int | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.out, self.progress = Path(output).absolute(), progress
        told = {each.name: getattr(given, each.name) for each in fields(Running) if given}
        running = _Running(**{**told, "quiet": True, "json": False})
        super().__init__(str(self.out / "manifest.jsonl"), str(self.out / "pictures"), running)
        self.dataset, self.variants, self.samples, self.seed = dataset, variants, samples, seed
        self.model, self.chosen, self.most = model, chosen, most
        self.results = [Path(folder).absolute() for folder in results]
        self.pairs, self.problems = list[Pair](), list[str]()
        # Label and pair to the files of the samples and the seconds that one took.
        self.files = dict[tuple[str, str], tuple[list[str], float | None]]()
        self.labels = [*(v.label for v in variants), *(folder.name for folder in self.results)]
        if len({Variant(label, {}).folder for label in self.labels}) < len(self.labels):
            raise InputError(f"two methods are called the same: {', '.join(self.labels)}.")

    def write(self, check: Callable[[], None]) -> int:
        """Make what is missing; the exit status is 1 where a picture failed. Raises InputError."""
        named: dict[str, Pair] = {}
        for pair in filter(self.chosen, self.dataset.pairs()):
            named.setdefault(pair.name, pair)
        self.pairs = [*named.values()][: self.most]
        if not self.pairs:
            raise InputError("the data set has no pairs that --include and --cases leave.")
        for variant in self.variants:
            # What is wrong with all of them is said before anything is made.
            Request.of(self._order(self.pairs[0], variant, "first.safetensors"))
        self.out.mkdir(parents=True, exist_ok=True)
        self.problems = list(self.dataset.problems())
        self._read_results()
        if not self.variants:
            return 0
        concepts, lines = self._learn(check), list[str]()
        for pair in self.pairs:
            for variant in self.variants:
                concept = concepts.get((pair.name, variant.label), "")
                if concept is not None:
                    row = self._order(pair, variant, concept)
                    name = f"{variant.folder}/{pair.name}.png"
                    lines.append(json.dumps({"name": name, **row}) + "\n")
        replace_file(self.manifest, methodcaller("write", "".join(lines).encode()))
        try:
            return super().write(check)
        except KeyboardInterrupt:
            said = f"interrupted; {self.said()}; with --resume the same command goes on from there."
            raise KeyboardInterrupt(said) from None

    def _tell(self, seconds: float, live: Any) -> None:
        self.progress(sum(self.counts.values()), self.total)

    def _report(self, ledger: Ledger) -> None:
        super()._report(ledger)
        labels = {variant.folder: variant.label for variant in self.variants}
        for row in ledger.rows("done"):
            folder, _, name = row["name"].partition("/")
            key = labels[folder], name.removesuffix(".png")
            self.files[key] = row["paths"], row["seconds"] / len(row["paths"])
        for row in ledger.rows("refused", "failed", "died", "late"):
            self.problems.append(f"{row['name']}: {row['sentence']}")

    def _order(self, pair: Pair, variant: Variant, concept: str) -> dict[str, Any]:
        """The request of a pair's picture, as plain data; a concept stands in for its subjects."""
        told, method = pair.request.model_dump(mode="json"), dict(variant.method)
        choice = variant.choice(pair.request.verb)
        if choice.method.concepts:
            for subject in told.get("subjects", ()):
                subject |= {**dict.fromkeys(_OF_PICTURES), "picture": concept}
        elif "prompt" in type(choice.settings).model_fields and pair.prompt:
            method = {"prompt": pair.prompt, **method}
        own = {"method": method, "seed": self.seed, "num_images": self.samples}
        return {**told, **own, "model": self.model, **variant.request}

    def _learn(self, check: Callable[[], None]) -> dict[tuple[str, str], str | None]:
        """Learn the objects that variants need as concepts; the file for each pair and variant
        that needs one, None where that failed.
        """
        jobs, files = dict[str, Job](), dict[tuple[str, str], str | None]()
        model = dict(self.model or {})
        for pair in self.pairs:
            for variant in self.variants:
                if not variant.choice(pair.request.verb).method.concepts:
                    continue
                photos = [str(photo) for photo in pair.references][: variant.references or 10]
                masks = [str(mask) for mask in pair.reference_masks if mask][: len(photos)]
                name = pair.category.replace("_", " ").lower()
                settings = {"model": model.get("name", "embedded"), **variant.learn}
                told: dict[str, Any] = {"verb": "learn", "photos": photos, "class_name": name}
                told |= {"settings": settings, "device": model.get("device")}
                told |= {"masks": masks} if len(masks) == len(photos) else {}
                state = [file_sha256(Path(file)) for file in (*photos, *told.get("masks", ()))]
                key = hashlib.sha256(json.dumps([state, told, __version__]).encode()).hexdigest()
                path = self.out / "concepts" / f"{Variant(name, {}).folder}-{key[:12]}.safetensors"
                files[pair.name, variant.label] = str(path)
                if not path.exists():
                    jobs[str(path)] = Job(path.name, told, str(path))
        if jobs:
            (self.out / "concepts").mkdir(parents=True, exist_ok=True)
            with closing(self.given.crew()) as crew:
                for ended in work(iter(jobs.values()), crew):
                    check()
                    if ended is not None and ended[2].kind != "done":
                        self.problems.append(f"{ended[1].name}: {ended[2].sentence}")
                        self.counts[ended[2].kind] += 1
        return {key: path if Path(str(path)).exists() else None for key, path in files.items()}

    def _read_results(self) -> None:
        """The pictures that other tools made."""
        names = {pair.name for pair in self.pairs}
        for folder in self.results:
            found, odd = results_of(names, folder)
            for name, samples in found.items():
                self.files[folder.name, name] = [samples[n] for n in sorted(samples)], None
            if odd:
                self.problems.append(f"{odd} pictures in {folder} are called by no pair.")

    def score(self, metrics: Sequence[Metric]) -> Scores:
        """What metrics say of all pictures: a row for each, in the order of pairs, methods and
        samples; what was scored before is kept beside them. The figures of other protocols than the
        first are called "NAME · PROTOCOL".
        """
        groups: dict[str, list[Metric]] = {}
        for metric in metrics:
            if metric.reason is None:
                groups.setdefault(metric.protocol, []).append(metric)
        main = next(iter(groups), "")
        rows, kept = list[dict[str, Any]](), Kept(self.out / "scores.jsonl")
        files = [
            (pair, label, sample, file, seconds)
            for pair in self.pairs
            for label in self.labels
            for made, seconds in [self.files.pop((label, pair.name), ([], None))]
            for sample, file in enumerate(made)
        ]

        def score(pair: Pair, label: str, sample: int, file: str, took: Any) -> dict[str, Any]:
            row: dict[str, Any] = {"pair": pair.name, "category": pair.category}
            row |= {"method": label, "sample": sample, "picture": file, "seconds": took}
            try:
                judged = [_state(pair), label, sample, file_sha256(Path(file))]
                for protocol, own in groups.items():
                    about = [[metric.name, metric.source, metric.models] for metric in own]
                    key = [*judged, protocol, about]
                    values = kept.values(key, partial(self._values, own, pair, file))
                    end = "" if protocol == main else f" · {protocol}"
                    row |= {f"{name}{end}": value for name, value in values.items()}
            except (InputError, OSError) as error:
                self.problems.append(f"{label}, {pair.name}: {error}")
                return {}
            return row

        with closing(kept), ThreadPoolExecutor(_AT_ONCE) as pool:
            try:
                for row in filter(None, pool.map(score, *zip(*files, strict=True))):
                    key = row["method"], row["pair"]
                    self.files.setdefault(key, ([], row["seconds"]))[0].append(row["picture"])
                    rows.append(row)
                    self.progress(len(rows), len(files))
            finally:
                pool.shutdown(cancel_futures=True)
        for label in self.labels:
            missing = [p.name for p in self.pairs if (label, p.name) not in self.files]
            said = f"{label} has no picture for {len(missing)} of {len(self.pairs)} pairs, like"
            self.problems += [f"{said} {name}." for name in missing[:1]]
        self.problems = list(dict.fromkeys(self.problems))
        return rows

    def _values(self, metrics: Sequence[Metric], pair: Pair, file: str) -> dict[str, float]:
        """Of one picture; one of another size than its background is brought to that."""
        picture = read_picture(file).to_pil().convert("RGB")
        size = size_of(pair.background, self.problems)
        if size is not None and picture.size != size:
            picture = picture.resize(size, PILImage.Resampling.LANCZOS)
        values: dict[str, float] = {}
        for metric in metrics:
            try:
                found = metric(pair, picture)
            except InputError as error:
                self.problems.append(f"{pair.name}, {file}: {error}")
                continue
            values |= found if isinstance(found, dict) else {metric.name: found}
        return values

    def about(self) -> dict[str, dict[str, Any]]:
        """What was run under each label, as the record in its first picture says."""
        told: dict[str, dict[str, Any]] = {}
        for label in self.labels:
            files = next((self.files[key][0] for key in self.files if key[0] == label), [])
            record = json.loads((files and read_record(files[0])) or '{"request": {}}')
            request, own = record["request"], record["request"].get("method", {})
            told[label] = {key: record.get(key) for key in ("method", "model", "device", "dtype")}
            told[label] |= {key: request[key] for key in OF_REQUEST if key in request}
            told[label]["settings"] = {k: own[k] for k in own if k not in ("name", "preset")}
        return told


def _state(pair: Pair) -> list[Any]:
    """What a result's figures come of beside it."""
    files = [(str(path), file_sha256(path)) for path in files_of(pair) if path.is_file()]
    box = pair.box.x, pair.box.y, pair.box.width, pair.box.height
    return [pair.name, pair.category, pair.prompt, box, files]


Scores = list[dict[str, Any]]
