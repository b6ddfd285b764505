"""A study: people rank the methods of a benchmark, blind; its page, its server, what comes of it.

The page knows pictures by random names alone; which method made which is in key.json beside it.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from operator import methodcaller
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, FiniteFloat, PositiveInt, StringConstraints, ValidationError

from inlay.errors import InputError
from inlay.evaluation.protocols import photo
from inlay.evaluation.tables import Table, interval, write_tables
from inlay.pictures.write import replace_file

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse

QUESTIONS = {
    "compatibility": "Which picture looks most like a real photograph?",
    "fidelity": "In which picture is the object most like the one in the reference photos?",
}
_PAGE = Path(__file__).with_name("page")
# The longer side of pictures; a check for so many trials, and the share of them that may fail.
_SIDE, _EVERY, _FAILURES = 720, 8, 0.25
_ROUNDS = 1000

Id = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
Values = NDArray[np.float64]


class Rating(BaseModel, extra="forbid"):
    """What one person says to one question of a trial: its pictures, the best first."""

    annotator: Annotated[str, StringConstraints(pattern=r"^[\w .@-]{1,60}$")]
    trial: Id
    question: Literal["compatibility", "fidelity"]
    order: list[Id]
    seconds: FiniteFloat = 0.0


@dataclass(frozen=True)
class Trial:
    """A pair as it is asked about: the method behind each picture. Of a check the methods are
    "whole" and "broken".
    """

    pair: str
    methods: Mapping[str, str]
    check: bool = False


class _Key(BaseModel):
    """What key.json holds: the options that a study was begun with, and its trials."""

    asked: list[Any]
    trials: dict[Id, Trial]


class _Pair(BaseModel):
    """A line of a benchmark's pairs.jsonl; of each method the first picture."""

    name: str
    background: Path
    references: list[Path]
    box: tuple[int, int, PositiveInt, PositiveInt]
    pictures: dict[str, Path]


@dataclass(frozen=True)
class Study:
    """A study in a folder: its page in `page/`, key.json, and in *.jsonl files what was rated."""

    folder: Path
    choice: bool
    trials: Mapping[str, Trial]

    @classmethod
    def open(
        cls, bench: Path, choice: bool = False, most: int | None = None, seed: int = 0
    ) -> Study:
        """The study of a benchmark's folder, begun where there is none.

        choice: two pictures a trial in place of all. most: how many trials, drawn by the seed.
        Raises InputError where there is nothing to compare, or another study was begun.
        """
        folder, asked = bench / "study", [choice, most, seed]
        if (folder / "key.json").is_file():
            try:
                begun = _Key.model_validate_json((folder / "key.json").read_bytes())
            except ValidationError:
                raise InputError(f"{folder}/key.json is damaged; move {folder} away.") from None
            if begun.asked != asked:
                raise InputError(f"{folder} was begun with other options; move it away first.")
            return cls(folder, choice, begun.trials)
        try:
            lines = (bench / "pairs.jsonl").read_bytes().splitlines()
            pairs = [_Pair.model_validate_json(line) for line in lines]
        except (OSError, ValidationError):
            raise InputError(
                f"{bench} holds no pairs, or their list is damaged; give a folder of inlay bench."
            ) from None
        pairs = [pair for pair in pairs if len(pair.pictures) > 1]
        if not pairs:
            raise InputError(f"{bench} has no pair that two methods made, so nothing to rank.")
        sets = [
            (pair, labels)
            for pair in pairs
            for labels in (combinations(pair.pictures, 2) if choice else [[*pair.pictures]])
        ]
        count = min(most or len(sets), len(sets))
        sets = [sets[n] for n in sorted(random.Random(seed).sample(range(len(sets)), count))]
        shutil.rmtree(folder / "page", ignore_errors=True)
        try:
            (folder / "page" / "pictures").mkdir(parents=True)
        except OSError as error:
            raise InputError(f"{folder} cannot be written to ({error.strerror}).") from None
        trials, shown = dict[str, Trial](), list[dict[str, Any]]()
        for number, (pair, labels) in enumerate(sets):
            files = {label: pair.pictures[label] for label in labels}
            _add(folder, pair, files, False, trials, shown)
            if number % _EVERY == 0:
                both = dict.fromkeys(("whole", "broken"), files[labels[0]])
                _add(folder, pair, both, True, trials, shown)
        for file in ("index.html", "study.css", "study.js"):
            shutil.copyfile(_PAGE / file, folder / "page" / file)
        told = {"study": secrets.token_hex(8), "choice": choice, "trials": shown}
        told["questions"] = [{"id": key, "text": text} for key, text in QUESTIONS.items()]
        text = f"const STUDY = {json.dumps(told)};\n"
        replace_file(folder / "page" / "trials.js", methodcaller("write", text.encode()))
        key = {"asked": asked, "trials": {name: vars(trial) for name, trial in trials.items()}}
        replace_file(folder / "key.json", methodcaller("write", json.dumps(key, indent=1).encode()))
        return cls(folder, choice, trials)

    def check(self, data: bytes) -> Rating:
        """A rating from JSON, which fits one of the trials; raises InputError."""
        try:
            rating = Rating.model_validate_json(data)
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"])) or "its JSON"
            raise InputError(f"the rating is wrong in {where}; send what the page does.") from None
        trial = self.trials.get(rating.trial)
        if trial is None or sorted(rating.order) != sorted(trial.methods):
            raise InputError("the rating is of no trial here; load the page again.")
        return rating

    def save(self, rating: Rating) -> None:
        """Add a rating to ratings.jsonl; it is on the disk when this returns."""
        with (self.folder / "ratings.jsonl").open("ab+") as file:
            # The last line may have been cut.
            if file.tell():
                file.seek(-1, os.SEEK_END)
            cut = file.read(1) not in (b"", b"\n")
            file.write(b"\n" * cut + rating.model_dump_json().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def ratings(self) -> list[Rating]:
        """All ratings of *.jsonl; of an annotator's several of one trial and question the last."""
        found: dict[tuple[str, str, str], Rating] = {}
        for path in sorted(self.folder.glob("*.jsonl")):
            for line in path.read_bytes().splitlines():
                # A line may have been cut, or be of another study.
                with suppress(InputError):
                    rating = self.check(line)
                    found[rating.annotator, rating.trial, rating.question] = rating
        return list(found.values())

    def tables(self) -> list[Table]:
        """What was rated so far, a table a question: mean ranks (or shares of choices) with 95%
        intervals over trials, Bradley-Terry scores, and in a note Krippendorff's alpha. Whoever
        fails more than a quarter of the checks is left out.
        """
        ratings = self.ratings()
        failed = {name for name in {r.annotator for r in ratings} if self._fails(ratings, name)}
        kept = [r for r in ratings if r.annotator not in failed and not self.trials[r.trial].check]
        return [
            self._table(question, [r for r in kept if r.question == question], failed)
            for question in QUESTIONS
        ]

    def _fails(self, ratings: Sequence[Rating], annotator: str) -> bool:
        found = [
            self.trials[r.trial].methods[r.order[0]] == "broken"
            for r in ratings
            if r.annotator == annotator and self.trials[r.trial].check
        ]
        return bool(found) and sum(found) / len(found) > _FAILURES

    def _table(self, question: str, ratings: Sequence[Rating], failed: set[str]) -> Table:
        trials = [trial.methods.values() for trial in self.trials.values() if not trial.check]
        methods = list(dict.fromkeys(method for own in trials for method in own))
        # By trial and method, or of a choice by trial alone: what each person says.
        said, units = dict[tuple[str, str], list[float]](), dict[Any, dict[str, float]]()
        wins = np.zeros((len(methods), len(methods)))
        for rating in ratings:
            trial, own = rating.trial, self.trials[rating.trial].methods
            names = [own[each] for each in rating.order]
            for place, name in enumerate(names):
                value = float(place == 0) if self.choice else place + 1.0
                said.setdefault((trial, name), []).append(value)
                worse = [methods.index(other) for other in names[place + 1 :]]
                wins[methods.index(name), worse] += 1
                if not self.choice:
                    units.setdefault((trial, name), {})[rating.annotator] = value
            if self.choice:
                units.setdefault(trial, {})[rating.annotator] = float(rating.order[0] == min(own))
        scores, rows = bradley_terry(wins), list[list[str]]()
        for method, score in zip(methods, scores, strict=True):
            means = np.array([np.mean(each) for (_, name), each in said.items() if name == method])
            low, high = interval(means)
            mean = f"{means.mean():.2f} [{low:.2f}, {high:.2f}]" if len(means) else "–"
            rows.append([method, str(len(means)), mean, f"{score:+.2f}"])
        people = sorted({rating.annotator for rating in ratings})
        table = np.array([[unit.get(name, np.nan) for unit in units.values()] for name in people])
        table = table.reshape(len(people), len(units))
        alpha = krippendorff(table, "nominal" if self.choice else "ordinal")
        notes = [f"{len(ratings)} ratings by {len(people)}; Krippendorff's alpha {alpha:.3f}."]
        notes += [f"Left out, failing checks: {', '.join(sorted(failed))}."] if failed else []
        what = "chosen ↑" if self.choice else "mean rank ↓"
        heads = ["method", "trials", what, "Bradley–Terry ↑"]
        return Table(question.capitalize(), heads, rows, notes=notes)

    def write(self) -> tuple[list[Table], list[Path]]:
        """The tables, and the files they go to: results.md, .tex and .csv."""
        tables = self.tables()
        return tables, write_tables(self.folder, "results", tables, "# Study\n\n")

    def app(self) -> Starlette:
        """The page, and what keeps ratings: POST /api/ratings, and GET /api/ratings?annotator=NAME
        for what is done. Whoever serves it sees to hosts, origins and sizes.
        """
        from starlette.applications import Starlette
        from starlette.responses import JSONResponse
        from starlette.routing import Mount, Route
        from starlette.staticfiles import StaticFiles

        async def add(request: Request) -> JSONResponse:
            try:
                self.save(self.check(await request.body()))
            except InputError as error:
                return JSONResponse({"error": str(error)}, 422)
            return JSONResponse({}, 201)

        async def done(request: Request) -> JSONResponse:
            name = request.query_params.get("annotator", "")
            own = [rating for rating in self.ratings() if rating.annotator == name]
            return JSONResponse([{"trial": r.trial, "question": r.question} for r in own])

        pages = StaticFiles(directory=self.folder / "page", html=True)
        routes = [Route("/api/ratings", add, methods=["POST"]), Route("/api/ratings", done)]
        return Starlette(routes=[*routes, Mount("/", pages)])


def _add(
    folder: Path,
    pair: _Pair,
    files: Mapping[str, Path],
    check: bool,
    trials: dict[str, Trial],
    shown: list[dict[str, Any]],
) -> None:
    """Add a trial, its pictures under random names."""

    def put(file: Path, broken: bool = False) -> str:
        name = secrets.token_hex(8)
        picture = photo(file)
        if file in files.values():
            # Of one size, so that the box is where it is and no size tells of a method.
            picture = picture.resize(place.size, Image.Resampling.LANCZOS)
        picture = picture.copy()
        if broken:
            x, y, width, height = pair.box
            noise = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
            picture.paste(Image.fromarray(noise).resize((width, height), 0), (x, y))
        picture.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
        # Written anew, without the record of what made it.
        picture.save(folder / "page" / "pictures" / f"{name}.jpg", quality=90)
        return name

    trial, place = secrets.token_hex(8), photo(pair.background)
    methods = {put(file, label == "broken" and check): label for label, file in files.items()}
    trials[trial] = Trial(pair.name, methods, check)
    told = {"id": trial, "background": put(pair.background), "candidates": sorted(methods)}
    shown.append({**told, "references": [put(file) for file in pair.references[:5]]})


def krippendorff(table: Values, metric: Literal["nominal", "ordinal", "interval"]) -> float:
    """Krippendorff's alpha of a table (people, units) of values, NaN where one says nothing.

    1 is agreement, 0 as much as chance has; 1 - D_o / D_e of the coincidences of values in units
    that two or more people value (Krippendorff 2011, Computing Krippendorff's Alpha-Reliability).
    NaN where nothing can be compared or all values are the same.
    """
    units = [column[~np.isnan(column)] for column in table.T]
    units = [unit for unit in units if len(unit) > 1]
    if not units:
        return float("nan")
    values = np.unique(np.concatenate(units))
    count = len(values)
    pairs = np.zeros((count, count))
    for unit in units:
        places = np.searchsorted(values, unit)
        own = np.bincount(places, minlength=count).astype(float)
        pairs += (np.outer(own, own) - np.diag(own)) / (len(unit) - 1)
    total = pairs.sum(0)
    if metric == "nominal":
        distance = 1.0 - np.eye(count)
    elif metric == "interval":
        distance = (values[:, None] - values) ** 2
    else:
        # Between two ranks lie all values from one to the other, the ends by half.
        middle = np.cumsum(total) - total / 2
        distance = (middle[:, None] - middle) ** 2
    expected = (np.outer(total, total) * distance).sum() / (total.sum() - 1)
    return float(1 - (pairs * distance).sum() / expected) if expected else float("nan")


def bradley_terry(wins: Values) -> Values:
    """Scores (n,) of n players from how often one has beaten another (n, n): the logarithms of the
    strengths under which i beats j with p_i / (p_i + p_j), their mean 0 (Bradley and Terry 1952),
    by Hunter's minorisation (2004, eq. 3). Everyone has also won and lost half a game against each,
    so that nobody is without bounds.
    """
    games = wins + 0.5 * (1 - np.eye(len(wins)))
    strength = np.ones(len(wins))
    for _ in range(_ROUNDS):
        met = (games + games.T) / (strength[:, None] + strength)
        np.fill_diagonal(met, 0)
        strength = games.sum(1) / np.maximum(met.sum(1), 1e-12)
        strength /= np.exp(np.log(strength).mean())
    return np.asarray(np.log(strength))
