"""methods, models, schema: what there is, as tables or JSON; none of them loads torch."""

from __future__ import annotations

import json as json_module
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inlay.cli.options import method_names, model_names

if TYPE_CHECKING:
    from inlay.methods.base import Method


Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


def methods(
    name: Annotated[
        str | None, typer.Argument(help="One method.", autocompletion=method_names)
    ] = None,
    model: Annotated[
        str,
        typer.Option(metavar="MODEL", help="Whose defaults are shown.", autocompletion=model_names),
    ] = "embedded",
    json: Json = False,
) -> None:
    """List the methods, or one with its settings.

    Each setting is shown with its bounds and its default for MODEL: the published value, but on
    the embedded checkpoint what was tuned there.
    """
    from inlay.checkpoints.folder import family_of
    from inlay.methods import registry

    family = family_of(model)
    chosen = registry.all_methods() if name is None else {name: registry.get(name)}
    if json:
        text = {key: registry.facts_of(method, family) for key, method in chosen.items()}
        print(json_module.dumps(text, indent=2))
    elif name is None:
        _overview(chosen, family)
    else:
        _details(chosen[name], family)


def models(json: Json = False) -> None:
    """List known checkpoints.

    What each is for, and whether it is on this machine already.
    """
    from inlay.checkpoints.hub import KNOWN, hub_cache, is_cached

    known = [{**row, "cached": is_cached(row["name"])} for row in KNOWN]
    if json:
        print(json_module.dumps(known, indent=2))
        return
    rows = []
    for row in known:
        what, here = f"{row['kind']}, {row['native_size']} px", "yes" if row["cached"] else "no"
        rows.append([row["name"], what, here, row["purpose"]])
    print(table(["model", "kind", "here", "for"], rows))
    print(f"Hub cache: {hub_cache()}")
    print("--model also takes a diffusers folder, a .safetensors file and any other hub id.")


def schema(
    verb: Annotated[str, typer.Argument(help="compose, harmonize, remove, scene; or manifest.")],
) -> None:
    """Print the JSON schema of a request, as inlay run takes it, or of a row, as batch does."""
    from inlay.batch.manifest import schema
    from inlay.request import Request

    told = schema() if verb == "manifest" else Request.schema_of(verb)
    print(json_module.dumps(told, indent=2))


def _overview(found: dict[str, Method], family: str | None) -> None:
    from inlay.methods.registry import defaults

    rows = []
    for name, method in found.items():
        best, of = defaults(method, family), " concepts" * method.concepts
        verbs = ", ".join(verb + of + "*" * (verb in best) for verb in method.verbs)
        model = "yes" if method.needs_model else "no"
        model += f"; a larger one for {', '.join(method.invents)}" if method.invents else ""
        rows.append([name, verbs, model, method.summary])
    print(table(["method", "serves (* by default)", "model", "what it does"], rows))


def _details(method: Method, family: str | None) -> None:
    from inlay.settings import knobs

    print(f"{method.name}: {method.summary}")
    print(f"source: {method.source}")
    print(f"serves: {', '.join(method.verbs)}")
    if method.invents:
        print(f"too much for the embedded checkpoint: {', '.join(method.invents)}")
    rows = [
        [knob.name, knob.type, _text(knob.default), knob.bounds, knob.description]
        for knob in knobs(method.settings_on(family)).values()
    ]
    print(table(["setting", "type", "default", "bounds", "what it is"], rows))
    for preset, values in method.presets.items():
        changed = ", ".join(f"{key}={_text(value)}" for key, value in values.items())
        print(f"preset {preset}: {changed or 'the defaults'}")


def _text(value: Any) -> str:
    from inlay.settings import value_text

    return '""' if value == "" else value_text(value)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None) -> str:
    """A table as wide as the terminal; where there is none, as wide as its text.

    Under a title all columns but the first are figures.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = sum(max(map(len, column)) + 4 for column in zip(heads, *rows, strict=True))
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    for index, head in enumerate(heads):
        figures = title is not None and index > 0
        justify: Any = "right" if figures else "left"
        shown.add_column(head, justify, overflow="fold", no_wrap=index == 0)
    for row in rows:
        shown.add_row(*row)
    with console.capture() as text:
        console.print(shown)
    return text.get().removesuffix("\n")
