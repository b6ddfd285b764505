"""The options of compose about its phases, and the calls that they come to.

Nothing here may import numpy, torch or pydantic before it is called: `inlay --help` reads it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import typer

from inlay.cli import options
from inlay.cli.options import Common
from inlay.errors import InputError

__all__ = ["Phased", "kept_stages"]

Phases = Annotated[
    str | None,
    typer.Option(
        "--phases",
        metavar="NAMES",
        help="Some of remove,paste,harmonize,repose: take out what is in the box, paste, run the "
        "method, re-draw by freecompose's preset semantic. --set PHASE.KEY=VALUE sets another's.",
    ),
]
RemoveMethod = Annotated[
    str | None,
    typer.Option("--remove-method", metavar="NAME", help="Method of the phase remove."),
]
RemoveMask = Annotated[
    str | None,
    typer.Option(
        "--remove-mask", metavar="FILE", help="What the phase remove takes out, in white."
    ),
]
KeepPhases = Annotated[
    bool,
    typer.Option(
        "--keep-phases",
        help="Write each phase's picture too, as OUT-1-remove; without --phases each stage's of "
        "the method phd.",
    ),
]


# (label, keywords) of each call, and notes.
Plan = tuple[list[tuple[str, dict[str, Any]]], list[str]]


def kept_stages(verb: str, common: Common, settings: dict[str, Any]) -> list[str]:
    """The names of the stages that a call's method keeps; raises InputError where it has none."""
    from inlay.request import Request

    request = Request(verb, common.method, common.preset, common.seed, 1, settings)
    names = list(request.settings.stages(verb))
    if not names:
        raise InputError("--keep-phases goes with --phases; say which.")
    return names


@dataclass(frozen=True)
class Phased:
    """The options about phases, with their names checked."""

    names: tuple[str, ...]
    remove_method: str | None
    remove_mask: str | None
    keep: bool

    @classmethod
    def of(
        cls, phases: str | None, remove_method: str | None, remove_mask: str | None, keep: bool
    ) -> Phased | None:
        """None where none are asked for; raises InputError."""
        from inlay.phases import named

        if phases is not None:
            return cls(named(phases), remove_method, remove_mask, keep)
        for option, value in (
            ("--remove-method", remove_method is not None),
            ("--remove-mask", remove_mask is not None),
        ):
            if value:
                raise InputError(f"{option} goes with --phases; say which.")
        return None

    def keywords(self) -> dict[str, Any]:
        """For Composer.compose."""
        return {
            "phases": self.names,
            "remove_method": self.remove_method,
            "remove_mask": self.remove_mask,
            "keep_phases": self.keep,
        }

    def plan(self, common: Common, plan_one: Callable[[str, Common], Plan]) -> Plan:
        """The (label, keywords) of each call, and notes; `plan_one` does so for one method.

        A --set whose key begins with a phase and a dot is that phase's; lists multiply over all
        phases. Raises InputError.
        """
        from inlay import methods
        from inlay.phases import SHARED, main_phase, misplaced, run_as
        from inlay.sweep import check_count, parse_sets

        misplaced(
            self.names,
            method=common.method,
            preset=common.preset,
            remove_method=self.remove_method,
            remove_mask=self.remove_mask,
        )
        main = main_phase(self.names)
        sets = self._sets(common.set or [], main)
        verb, method, preset = run_as(main, common.method, common.preset, self.remove_method)
        own = replace(common, method=method, preset=preset, set=sets[main])
        shared: dict[str, Any] = {}
        if "repose" in self.names and main != "repose":
            # What harmonize's method has no use for is still said to the re-posing.
            shared = {key: getattr(common, key) for key in SHARED}
            shared = {key: value for key, value in shared.items() if value is not None}
            if "prompt" not in methods.get(method, verb).settings.model_fields:
                own = replace(own, prompt=None, negative_prompt=None)
        variants, notes = plan_one(verb, own)
        series = [[(main, label, values) for label, values in variants]]
        for name in self.names:
            if name == main:
                continue
            verb, method, preset = run_as(name, None, None, self.remove_method)
            made_by = methods.get(method, verb)
            base = {} if preset is None else made_by.presets.get(preset, {})
            given = shared if name == "repose" else {}
            items = parse_sets(sets[name], made_by.settings, {**base, **given})
            series.append([(name, label, {**given, **values}) for label, values in items])
        calls = [_call(main, chosen) for chosen in itertools.product(*series)]
        check_count(len(calls) * common.num_images)
        return calls, notes

    def _sets(self, items: Sequence[str], main: str) -> dict[str, list[str]]:
        """Each phase's --set items, without its name; plain ones are the main phase's."""
        from inlay.phases import PHASES

        sets: dict[str, list[str]] = {name: [] for name in self.names}
        for item in items:
            key = item.partition("=")[0]
            name, dot, _ = key.strip().partition(".")
            if not dot or name not in PHASES:
                sets[main].append(item)
            elif name in self.names:
                sets[name].append(item.strip().removeprefix(name + "."))
            else:
                raise InputError(
                    f"--set {options.short(key)} is for the phase {name}; add that phase."
                )
        return sets


def _call(
    main: str, chosen: Sequence[tuple[str, str, dict[str, Any]]]
) -> tuple[str, dict[str, Any]]:
    """The label and the keywords of one call, from what was chosen for each phase."""
    labels, keywords = [], {}
    own: dict[str, dict[str, Any]] = {}
    for name, label, values in chosen:
        if name == main:
            keywords.update(values)
            labels.append(label)
        else:
            labels += [f"{name}.{part}" for part in label.split(",") if part]
            own[name] = values
    return ",".join(filter(None, labels)), {**keywords, "phase_settings": own}
