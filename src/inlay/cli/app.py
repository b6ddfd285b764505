"""The typer application, and the one place where errors become sentences and exit statuses.

0 done; 2 the input or the request is wrong; 1 it failed on our side; 130 interrupted.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from inlay.cli import bench, cut, listing, make, progress, train
from inlay.cli.options import OutFolder
from inlay.cli.outputs import Order
from inlay.errors import Cancelled, InputError, nearest, show

# typer exports BadParameter only; its parents are click's, in whichever copy typer uses.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]
ClickException: type[Exception] = UsageError.__mro__[1]

_INTERRUPTED = 130


class _Group(TyperGroup):
    """A group whose unknown commands are answered with the nearest known one."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands:
            known = self.list_commands(ctx)
            raise InputError(
                f"{ctx.command_path} has no command {show(args[0])}; {nearest(args[0], known)}"
            )
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_Group,
    name="inlay",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        from inlay.errors import __version__

        typer.echo(f"inlay {__version__}")
        raise typer.Exit()


@app.callback(invoke_without_command=True)
def _root(
    ctx: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Put an object into a photograph, make it belong there, or take it out.

    Outside the region a command reports, no pixel of the photograph changes.
    """
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


@app.command()
def demo(
    output: OutFolder = "demo",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")] = False,
) -> None:
    """Offline tour on real photos; ends with a contact sheet."""
    from inlay.cli.demo import run
    from inlay.cli.train import made_folder

    with made_folder(output) as folder, progress.listening(quiet=quiet, bar=False):
        run(folder, (lambda line: None) if quiet else typer.echo)


app.command()(make.compose)
app.command()(make.harmonize)
app.command()(make.remove)
app.command()(make.scene)
app.command()(cut.cut)
app.command()(train.learn)
app.command()(listing.methods)
app.command()(listing.models)
app.command()(make.run)
app.command()(make.rerun)
app.command()(listing.schema)
app.command()(train.train)
app.command()(bench.bench)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status; never raises for what a user can do."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    progress.hush()
    command = typer.main.get_command(app)
    try:
        with progress.interruptible():
            status = command.main(args=arguments, prog_name="inlay", standalone_mode=False)
            if isinstance(status, Order):
                status.write()
        _flush()
        if status == _INTERRUPTED:
            return _say("interrupted; nothing was written.", _INTERRUPTED)
        return status if isinstance(status, int) else 0
    except InputError as error:
        return _say(str(error), 2)
    except ClickException as error:
        return _say(usage_sentence(error), 2)
    except (KeyboardInterrupt, typer.Abort, Cancelled):
        return _say("interrupted; nothing was written.", _INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output has left, as in `inlay methods | head`.
        return 1
    except Exception as error:
        if os.environ.get("INLAY_DEBUG") == "1":
            import traceback

            traceback.print_exc()
        return _say(_failure(error), 1)


def _flush() -> None:
    """Write out what was printed; where that fails, it must not fail once more at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _say(sentence: str, status: int) -> int:
    line = " ".join(sentence.split())
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
    print(shown, file=sys.stderr)
    return status


def _failure(error: Exception) -> str:
    kind, text = type(error).__name__, str(error)
    if isinstance(error, MemoryError) or kind == "OutOfMemoryError":
        return "out of memory; give a smaller box, --num-images 1 or --dtype float16."
    if len(text) > 300:
        text = text[:297] + "..."
    return f"inlay failed with {kind}: {text or 'no message'}; INLAY_DEBUG=1 shows where."


def usage_sentence(error: Exception) -> str:
    """One sentence for an error of the command line's syntax."""
    context: Any = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "inlay"
    option = getattr(error, "option_name", None)
    if type(error).__name__ == "NoSuchOption" and option:
        known = [name for name in _option_names(context) if name.startswith("--")]
        end = nearest(str(option), known)
        if end.startswith("known"):
            end = f"see {path} --help."
        return f"{path} has no option {show(str(option))}; {end}"
    parameter: Any = getattr(error, "param", None)
    message = str(getattr(error, "message", error)).strip().rstrip(".")
    if type(error).__name__ == "MissingParameter" and parameter is not None:
        return f"{path} needs {_shown(parameter)}; see {path} --help."
    if parameter is not None:
        for word, kind in (("valid integer", "a whole number"), ("valid number", "a number")):
            if word in message:
                return f"{_shown(parameter)} cannot be read; expected {kind}."
        return f"{_shown(parameter)} is wrong: {message}."
    extra = re.search(r"unexpected extra argument.*? \((\S+)", message)
    if extra is not None:
        return f"{path} takes no argument {show(extra[1].rstrip(')'))} here; see {path} --help."
    if message == "Missing command":
        commands = ", ".join(context.command.list_commands(context))
        return f"{path} needs a command: {commands}."
    return f"{message[:1].lower()}{message[1:]}; see {path} --help."


def _option_names(context: Any) -> list[str]:
    if context is None:
        return []
    return [name for item in context.command.get_params(context) for name in item.opts]


def _shown(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name).upper()
    longest: str = max(parameter.opts, key=len)
    return f"{longest} {parameter.metavar}" if parameter.metavar else longest
