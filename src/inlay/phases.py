"""A composition in phases: remove what is there, paste, harmonize, re-pose.

    remove     takes out what is in the boxes, or under a mask of its own
    paste      lays the subjects over that by their alpha
    harmonize  sets them into it by a method for compose; it begins anew from what remove left,
               so that the method knows both pictures, and pasted colours are never rounded twice
    repose     re-draws the subjects where they lie, by freecompose's preset "semantic"

Each phase is a request, checked before any picture is read, and then a link of a chain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from inlay import methods
from inlay.chain import Link, SceneOf
from inlay.errors import InputError
from inlay.pictures.picture import Picture
from inlay.request import Request
from inlay.scene.placement import layer_scene
from inlay.scene.scene import Layer, Region, Scene, merge
from inlay.sweep import nearest, show

__all__ = [
    "PHASES",
    "SHARED",
    "asked",
    "described",
    "linked",
    "main_phase",
    "misplaced",
    "named",
    "run_as",
]

PHASES = ("remove", "paste", "harmonize", "repose")
# What each phase is run as: verb, method and preset; None is the verb's default.
_RUN_AS: dict[str, tuple[str, str | None, str | None]] = {
    "remove": ("remove", None, None),
    "paste": ("compose", "paste", None),
    "harmonize": ("compose", None, None),
    "repose": ("compose", "freecompose", "semantic"),
}
# What the settings of the main phase say to the re-posing too, unless it is told otherwise.
SHARED = ("prompt", "negative_prompt")


def named(phases: Any) -> tuple[str, ...]:
    """The phases that were asked for, as a tuple of names or comma-separated text.

    Raises InputError for unknown names and for an order that makes no sense.
    """
    if isinstance(phases, str):
        phases = [name.strip() for name in phases.split(",")]
    if not isinstance(phases, (list, tuple)) or not all(isinstance(name, str) for name in phases):
        raise InputError(
            f"phases is {show(phases)}; expected names out of {', '.join(PHASES)}, in this order."
        )
    for name in phases:
        if name not in PHASES:
            raise InputError(f"phase {show(name)} is unknown; {nearest(name, PHASES)}")
    ordered = [name for name in PHASES if name in phases]
    if (
        list(phases) != ordered
        or not ordered
        or ("paste" not in ordered and ordered[-1] != "remove")
    ):
        raise InputError(
            f"phases is {show(','.join(phases))}; expected some of {', '.join(PHASES)}, each once "
            "and in this order, with paste before harmonize and repose."
        )
    return tuple(phases)


def main_phase(names: Sequence[str]) -> str:
    """The phase that the method, the preset and the settings of a call are for."""
    return "harmonize" if "harmonize" in names else names[-1]


def run_as(
    name: str, method: str | None, preset: str | None, remove_method: str | None
) -> tuple[str, str, str | None]:
    """What a phase is run as, given harmonize's method and preset: verb, method and preset."""
    verb, by, own = _RUN_AS[name]
    if name == "harmonize":
        by, own = method, preset
    elif name == "remove":
        by = remove_method
    return verb, methods.default_for(verb) if by is None else by, own


def misplaced(
    names: Sequence[str], *, method: Any, preset: Any, remove_method: Any, remove_mask: Any
) -> None:
    """Raises InputError where one of these is given and its phase is not."""
    for word, value, phase in (
        ("method", method, "harmonize"),
        ("preset", preset, "harmonize"),
        ("remove_method", remove_method, "remove"),
        ("remove_mask", remove_mask, "remove"),
    ):
        if value is not None and phase not in names:
            raise InputError(f"{word} goes with the phase {phase}; add that phase.")


def asked(
    phases: Any,
    *,
    method: str | None,
    preset: str | None,
    seed: int,
    num_images: int,
    settings: Mapping[str, Any],
    remove_method: str | None = None,
    phase_settings: Any = None,
    **more: Any,
) -> dict[str, Request]:
    """A checked request for each phase, by its name, in their order.

    Without phases there is one, under the empty name. method and preset are harmonize's,
    `settings` those of the main phase (harmonize, else the last one), prompts also repose's;
    phase_settings maps a phase to settings of its own. more are arguments that only make sense
    with phases, or only with remove. Raises InputError.
    """
    if phases is None:
        plain = Request("compose", method, preset, seed, num_images, settings)
        if plain.settings.stages("compose"):
            # A method's own stages can be kept likewise.
            more.pop("keep_phases", None)
        more |= {"remove_method": remove_method, "phase_settings": phase_settings}
        for word, value in more.items():
            if value is not None and value is not False:
                raise InputError(f"{word} goes with phases; say which.")
        return {"": plain}
    names = named(phases)
    main = main_phase(names)
    misplaced(
        names,
        method=method,
        preset=preset,
        remove_method=remove_method,
        remove_mask=more.get("remove_mask"),
    )
    own = _own_settings(phase_settings, names)
    requests = {}
    for name in names:
        values: dict[str, Any] = {}
        if name == main:
            values.update(settings)
        elif name == "repose":
            values.update({key: settings[key] for key in SHARED if key in settings})
        values.update(own.get(name, {}))
        verb, by, own_preset = run_as(name, method, preset, remove_method)
        requests[name] = Request(verb, by, own_preset, seed, num_images, values)
    return requests


def linked(
    requests: Mapping[str, Request], layers: Sequence[Layer], together: bool, hole: Region | None
) -> list[Link]:
    """The links that requests by phase come to, with the subjects as they are placed.

    A request under the empty name composes. hole is what remove takes out.
    """
    laid = [merge(layers)] if together else layers
    if len(laid) > 1 and any(each.settings.works_on_background() for each in requests.values()):
        raise InputError(
            "the background is to change, which several subjects share; set them in together."
        )
    over: list[SceneOf] = [partial(_over, layer) for layer in laid]
    links: list[Link] = []
    below = "remove" if "remove" in requests else ""
    for name, request in requests.items():
        if name == "remove" and hole is not None:
            links.append(Link(name, request, [partial(_hole, hole)]))
        elif name == "repose":
            again: list[SceneOf] = [partial(_again, layer, below) for layer in laid]
            links.append(Link(name, request, again, links[-1].name))
        else:
            links.append(Link(name, request, over, below or None))
    return links


def described(name: str, request: Request, seed: int) -> dict[str, Any]:
    """A phase of one picture, for the record."""
    return {
        "phase": name,
        "verb": request.verb,
        "method": request.method.name,
        "preset": request.preset,
        "settings": request.settings.model_dump(mode="json"),
        "seed": seed,
    }


def _own_settings(phase_settings: Any, names: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    if phase_settings is None:
        return {}
    if not isinstance(phase_settings, Mapping) or not all(
        isinstance(values, Mapping) for values in phase_settings.values()
    ):
        raise InputError(
            f"phase_settings is {show(phase_settings)}; expected a mapping from phases to settings."
        )
    for name in phase_settings:
        if name not in names:
            raise InputError(
                f"settings are given for {show(name)}, which is not one of the phases."
            )
    return dict(phase_settings)


def _over(layer: Layer, picture: Picture, pictures: Mapping[str, Picture]) -> Scene:
    return layer_scene(picture, layer)


def _hole(hole: Region, picture: Picture, pictures: Mapping[str, Picture]) -> Scene:
    return Scene(picture, None, hole)


def _again(layer: Layer, below: str, picture: Picture, pictures: Mapping[str, Picture]) -> Scene:
    """The scene for a subject that is in the picture already, on a background that is known."""
    return Scene(picture, None, Region(layer.box, layer.alpha), pictures[below])
