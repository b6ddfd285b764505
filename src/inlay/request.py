"""What may be asked of inlay: one model a verb. Whoever asks builds one of these, or reads one.

Python's keywords, the command line, a JSON file and the record inside a picture all become a
request, and whatever can be wrong with it without reading a picture is found here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import model_serializer, model_validator

from inlay.errors import InputError, nearest, show
from inlay.methods.registry import (
    RUN_AS,
    SHARED,
    Count,
    MethodChoice,
    Model,
    Seed,
    Step,
    as_mapping,
    as_phases,
    check_kinds,
    choice_schema,
    default_for,
    family_named,
    main_phase,
)
from inlay.pictures.picture import name_of
from inlay.pictures.read import MAX_JSON_BYTES, read_file
from inlay.scene.shadow import Shadow, ShadowField
from inlay.scene.subject import (
    BoxField,
    Flag,
    PointField,
    Side,
    Source,
    Subject,
    Subjects,
    as_subjects,
)
from inlay.settings import Form, checked


class Request(Form):
    """What every verb asks: a method, a seed, how many pictures, and the checkpoint to make them.

    The k-th picture is made with seed + k. model None is whatever is open. `sources` are the fields
    that name files, `one_of` those of which one at most is given. Raises InputError, one sentence
    for the first thing that is wrong.
    """

    verb: ClassVar[str]
    sources: ClassVar[tuple[str, ...]] = ()
    one_of: ClassVar[tuple[str, ...]] = ()

    method: MethodChoice
    seed: Seed = 0
    num_images: Count = 1
    model: Model | None = None

    @model_validator(mode="before")
    @classmethod
    def _choose(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        verb = values.get("verb", cls.verb)
        if verb != cls.verb:
            raise InputError(f"verb is {show(verb)}; expected {cls.verb}.")
        return cls._chosen({key: value for key, value in values.items() if key != "verb"})

    @classmethod
    def _chosen(cls, values: dict[str, Any]) -> dict[str, Any]:
        """The values with every method looked up and its settings checked."""
        choice = MethodChoice.of(values.get("method"), cls.verb, model=values.get("model"))
        return {**values, "method": choice}

    @model_validator(mode="after")
    def _usable(self) -> Request:
        if sum(getattr(self, name) is not None for name in self.one_of) > 1:
            raise InputError(f"{', '.join(self.one_of)} exclude each other; give one of them.")
        drawn = getattr(self, "control", None) is not None
        for step in self.steps():
            step.choice.settings.check_use(step.verb, drawn)
        return self

    @model_serializer(mode="wrap")
    def _with_verb(self, handler: Any) -> dict[str, Any]:
        return {"verb": self.verb, **handler(self)}

    def steps(self) -> list[Step]:
        """The methods that are run, in their order."""
        return [Step(None, self.verb, self.method)]

    def after(self, step: int) -> Request:
        """The request for the picture after that many steps."""
        return self

    def subjects_of(self) -> Sequence[Subject]:
        """The subjects of a verb that has some."""
        return getattr(self, "subjects", ())

    def kept_names(self) -> list[str]:
        """The phases or stages whose pictures are handed back, in their order."""
        if not getattr(self, "keep_phases", False):
            return []
        phases = [step.phase for step in self.steps() if step.phase]
        return phases or list(self.method.settings.stages(self.verb))

    def inputs(self) -> dict[str, Any]:
        """Every picture that is handed in, by its dotted place: "subjects.0.picture"."""
        found = {name: getattr(self, name) for name in self.sources}
        for number, subject in enumerate(self.subjects_of()):
            found[f"subjects.{number}.picture"] = subject.picture
            found[f"subjects.{number}.mask"] = subject.mask
        return {place: source for place, source in found.items() if source is not None}

    def role(self, place: str) -> str:
        """What a sentence calls the picture at a dotted place: "subject 2"."""
        *above, last = place.split(".")
        if len(above) != 2 or not above[1].isdigit():
            return place.replace("_", " ")
        what = "subject" if last == "picture" else last
        return f"{what} {int(above[1]) + 1}" if len(self.subjects_of()) > 1 else what

    @classmethod
    def of(cls, data: Any) -> Request:
        """A request of any verb from plain data, as JSON holds it; raises InputError."""
        return _kind(data)(**{str(key): value for key, value in data.items()})

    @classmethod
    def choices(cls, data: Mapping[str, Any]) -> dict[str, MethodChoice]:
        """The methods that a request of plain data would run, by their word in it."""
        values = _kind(data)._chosen(dict(data))
        return {word: values[word] for word in ("method", "remove", "repose") if values.get(word)}

    @classmethod
    def schema_of(cls, verb: str) -> dict[str, Any]:
        """The JSON schema of a verb's request; raises InputError for an unknown verb."""
        if verb not in KINDS:
            raise InputError(f"verb is {show(verb)}; {nearest(verb, KINDS)}")
        schema = KINDS[verb].model_json_schema()
        properties = schema["properties"]
        properties["verb"] = {"const": verb}
        for name, of in (("method", verb), ("remove", "remove"), ("repose", "compose")):
            if name in properties:
                properties[name] = choice_schema(of)
        schema["required"] = ["verb", *(n for n in schema["required"] if n != "method")]
        schema["$defs"].pop("MethodChoice", None)
        return schema

    @classmethod
    def read(cls, path: str | Path) -> Request:
        """A request from a JSON file; raises InputError."""
        name = name_of(path)
        text = read_file(path, name, MAX_JSON_BYTES)
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):
            raise InputError(f"{name} is no JSON; expected a request, see inlay schema.") from None
        return cls.of(data)


class ComposeRequest(Request):
    """Put subjects into a background.

    Each is composed into what came before; `together` pastes all first and runs the method once
    on one crop round them all. phases chains remove, paste, harmonize and repose, or some of
    them: remove takes out what is in the boxes, or under remove_mask; `method` is harmonize's,
    remove and repose are those phases' own. keep_phases hands back each phase's picture, or
    without phases each stage's of a method that has some. control is a drawing, white lines on
    black, that freecompose's variant "semantic" (the phase repose) redraws the subjects by.
    shadow is what each subject gives what lies below it.
    """

    verb: ClassVar[str] = "compose"
    sources: ClassVar[tuple[str, ...]] = ("background", "remove_mask", "control")

    background: Source
    subjects: Subjects
    together: Flag = False
    phases: Annotated[tuple[str, ...], checked(as_phases)] = ()
    remove: MethodChoice | None = None
    remove_mask: Source = None
    repose: MethodChoice | None = None
    shadow: ShadowField = Shadow()
    control: Source = None
    keep_phases: Flag = False

    @classmethod
    def _chosen(cls, values: dict[str, Any]) -> dict[str, Any]:
        subjects = as_subjects(values.get("subjects"))
        phases = as_phases(values.get("phases"), "phases")
        for word in ("remove", "repose", "remove_mask"):
            phase = word.removesuffix("_mask")
            if values.get(word) is not None and phase not in phases:
                right = f"the phase {phase}; add that phase." if phases else "phases; say which."
                raise InputError(f"{word} goes with {right}")
        method, model = as_mapping(values.get("method"), "method"), values.get("model")
        made = {**values, "subjects": subjects, "phases": phases}
        if not phases:
            concept = all(subject.concept for subject in subjects)
            default = {"name": default_for("compose", concept, family_named(model))}
            return {**made, "method": MethodChoice.of(method, "compose", default, model)}
        main = main_phase(phases)
        words = [word for word in ("remove", "repose") if values.get(word) is not None]
        own = {word: as_mapping(values[word], word) for word in words}
        fixed = RUN_AS[main][1]
        for key, word in (("name", "method"), ("preset", "preset")):
            if fixed and method.get(key) not in (None, fixed.get(key)):
                raise InputError(f"{word} goes with the phase harmonize; add that phase.")
        if "repose" in phases and main != "repose":
            shared = {key: method[key] for key in SHARED if key in method}
            own["repose"] = {**shared, **own.get("repose", {})}
        own[main] = {**method, **own.get(main, {})}
        choices = {each: MethodChoice.of(own.get(each), *RUN_AS[each], model) for each in phases}
        made["method"] = choices.pop(main)
        return {**made, "remove": choices.get("remove"), "repose": choices.get("repose")}

    @model_validator(mode="after")
    def _fits(self) -> ComposeRequest:
        joint = self.together and len(self.subjects) > 1
        if self.keep_phases and not self.phases:
            if not self.method.settings.stages("compose"):
                raise InputError("keep_phases goes with phases; say which.")
            if len(self.subjects) > 1 and not joint:
                raise InputError("the stages of one subject can be kept; set several in together.")
        check_kinds(self.subjects, self.steps(), joint)
        settings = [step.choice.settings for step in self.steps()]
        if len(self.subjects) > 1 and not joint and any(s.works_on_background() for s in settings):
            raise InputError(
                "the background is to change, which several subjects share; set them in together."
            )
        return self

    def steps(self) -> list[Step]:
        if not self.phases:
            return super().steps()
        own = {"remove": self.remove, "repose": self.repose, main_phase(self.phases): self.method}
        return [
            Step(phase, verb, own.get(phase) or MethodChoice.of(default, verb, {}))
            for phase in self.phases
            for verb, default in [RUN_AS[phase]]
        ]

    def after(self, step: int) -> Request:
        steps = self.steps()[:step]
        if not self.phases or len(steps) == len(self.phases):
            return self
        phases = self.phases[:step]
        choices = {each.phase: each.choice for each in steps}
        method = choices.pop(main_phase(phases))
        changed = {"phases": phases, "method": method, "repose": None}
        changed |= {"remove": choices.get("remove")}
        if not any(each.choice.settings.follows_control() for each in steps):
            # The drawing is for a phase that is yet to come.
            changed |= {"control": None}
        return self.model_copy(update=changed)


class HarmonizeRequest(Request):
    """Make an object that is already pasted belong.

    mask is white where the object is; without one it is looked for inside a box, else the
    picture's alpha serves, or the record in a picture that inlay made. background is the picture
    before pasting, where there is one.
    """

    verb: ClassVar[str] = "harmonize"
    sources: ClassVar[tuple[str, ...]] = ("picture", "mask", "background")
    one_of: ClassVar[tuple[str, ...]] = ("mask", "box")

    picture: Source
    mask: Source = None
    background: Source = None
    box: BoxField = None


class RemoveRequest(Request):
    """Take out what a mask (white) covers, or the thing inside a box or at a point, in pixels."""

    verb: ClassVar[str] = "remove"
    sources: ClassVar[tuple[str, ...]] = ("picture", "mask")
    one_of: ClassVar[tuple[str, ...]] = ("mask", "box", "point")

    picture: Source
    mask: Source = None
    box: BoxField = None
    point: PointField | None = None

    @classmethod
    def _chosen(cls, values: dict[str, Any]) -> dict[str, Any]:
        # One that was handed over in memory is null in JSON, but is there.
        if "picture" in values and not values.keys() & set(cls.one_of):
            raise InputError("mask is missing; give a mask, a box or a point of what is to go.")
        return super()._chosen(values)


class SceneRequest(Request):
    """Make a scene of size (width, height), sides of 64 to 8192 pixels, round subjects.

    Places are in pixels of the scene; without one a subject stands in the lower middle, its longer
    side half of the scene's shorter one. keep_phases hands back the method's stages.
    """

    verb: ClassVar[str] = "scene"

    subjects: Subjects
    size: tuple[Side, Side]
    keep_phases: Flag = False

    @classmethod
    def _chosen(cls, values: dict[str, Any]) -> dict[str, Any]:
        return super()._chosen({**values, "subjects": as_subjects(values.get("subjects"))})

    @model_validator(mode="after")
    def _fits(self) -> SceneRequest:
        if not str(getattr(self.method.settings, "prompt", "")).strip():
            raise InputError("a scene needs a prompt; say what the picture should show.")
        check_kinds(self.subjects, self.steps(), joint=False)
        return self


KINDS: dict[str, type[Request]] = {
    kind.verb: kind for kind in (ComposeRequest, HarmonizeRequest, RemoveRequest, SceneRequest)
}


def _kind(data: Any) -> type[Request]:
    """The model of plain data's verb; raises InputError."""
    if not isinstance(data, Mapping):
        raise InputError("the request is no JSON object; expected one with verb and method.")
    verb = str(data.get("verb"))
    if verb not in KINDS:
        raise InputError(f"verb is {show(data.get('verb'))}; expected one of {', '.join(KINDS)}.")
    return KINDS[verb]
