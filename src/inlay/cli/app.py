"""The typer application: commands and their options, interrupts, and errors as exit statuses.

0 done; 2 the input or the request is wrong; 1 it failed on our side; 130 interrupted. Here alone
errors become sentences.
"""

from __future__ import annotations

import functools
import gc
import inspect
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperGroup

from inlay.batch.command import augment, batch
from inlay.batch.order import Batch
from inlay.cli import bench, cut, listing, make, train
from inlay.cli.options import OutFolder, Quiet
from inlay.cli.outputs import HEARD, Order, listening, printing, say
from inlay.cli.train import made_folder
from inlay.errors import Cancelled, InputError, __version__, nearest, plain, show
from inlay.server.command import serve

# typer exports BadParameter only; its parents are click's, in whichever copy typer uses.
ClickException: type[Exception] = typer.BadParameter.__mro__[2]

_INTERRUPTED = 130
# Libraries below us must not write to the terminal, unless INLAY_DEBUG=1 lets them.
_HUSH = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Threads that have nothing to do sleep in place of turning: others want the cores.
    "OMP_WAIT_POLICY": "passive",
    # numpy's own cannot, and its products here are too small for two.
    "OPENBLAS_NUM_THREADS": "1",
    "OPENCV_LOG_LEVEL": "SILENT",
    # Looking for some among all that is installed takes longer than most commands.
    "PYDANTIC_DISABLE_PLUGINS": "1",
}


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


@app.callback(invoke_without_command=True)
def _root(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Put an object into a photograph, make it belong there, or take it out.

    Outside the region a command reports, no pixel of the photograph changes; WebP, AVIF and JPEG
    (without inlay[jpeg]) encode all of it again, so that there pixels may be some levels off.
    """
    if version:
        typer.echo(f"inlay {__version__}")
        raise typer.Exit()
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


def grouped(function: Callable[..., Any]) -> Callable[..., Any]:
    """The command with the options of a function's group `given`; see inlay.cli.options.flag."""
    signature = inspect.signature(function, eval_str=True)
    parameters = {
        name: each.replace(kind=each.KEYWORD_ONLY) for name, each in signature.parameters.items()
    }
    if "given" not in parameters:
        return function
    group = parameters.pop("given").annotation
    hints = get_type_hints(group)
    for own in fields(group):
        parameters[own.name] = inspect.Parameter(
            own.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=own.default,
            annotation=Annotated[hints[own.name], own.metadata["option"]],
        )

    @functools.wraps(function)
    def command(**values: Any) -> Any:
        told = {own.name: values.pop(own.name) for own in fields(group)}
        return function(**values, given=group(**told))

    command.__annotations__ = {name: each.annotation for name, each in parameters.items()}
    shown = signature.replace(parameters=[*parameters.values()])
    command.__signature__ = shown  # type: ignore[attr-defined]
    return command


def demo(given: Quiet, output: OutFolder = "demo") -> None:
    """Offline tour on real photos; ends with a contact sheet."""
    from inlay.cli.demo import run

    with made_folder(output) as folder, listening(quiet=given.quiet, bar=False):
        run(folder, functools.partial(say, quiet=given.quiet))


for _function in (
    demo, make.compose, make.harmonize, make.remove, make.scene, cut.cut, train.learn,
    listing.methods, listing.models, make.run, make.rerun, listing.schema, train.train,
    bench.bench, bench.study, batch, augment, serve,
):  # fmt: skip
    app.command()(grouped(_function))


@contextmanager
def interrupts() -> Iterator[Callable[[], None]]:
    """Within it SIGINT and SIGTERM raise KeyboardInterrupt; a handler of somebody else's stays.

    Python drops an exception that is raised while an object is finalised, and a command that frees
    pictures all the time would go on as if nobody had pressed Ctrl-C: what is yielded raises it
    again, and so does a listener's next step.
    """
    before = dict[int, Any]()
    HEARD.clear()

    def hear(number: int, frame: Any) -> None:
        HEARD.append(number)
        raise KeyboardInterrupt

    def check() -> None:
        if HEARD:
            raise KeyboardInterrupt

    try:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL):
                    before[number] = signal.signal(number, hear)
        yield check
    finally:
        HEARD.clear()
        for caught, handler in before.items():
            signal.signal(caught, handler)


@contextmanager
def few_imports() -> Iterator[None]:
    """Inside, torch and diffusers are imported without what no picture needs, which takes as long
    as all the rest; each is there once something of it is used.
    """
    spec = find_spec("torch")
    names = ("scipy.stats", "scipy.optimize", "scipy.integrate", "torch._dynamo")
    later: dict[str, Any] = {name: _Later(name) for name in names}
    later["scipy.optimize"].linear_sum_assignment = None
    # Of the compiler there are marks on functions, and a module that stands alone.
    dynamo = later["torch._dynamo"]
    homes = spec.submodule_search_locations if spec else None
    dynamo.__path__ = [f"{home}/_dynamo" for home in homes or ()]
    dynamo.allow_in_graph = dynamo.assume_constant_result = lambda function: function
    dynamo.disable = lambda function=None, *_, **__: function or (lambda given: given)
    later = {name: later.get(name) for name in {*later, "peft"} - sys.modules.keys()}
    sys.modules.update(later)
    # What is imported stays: there is nothing to be collected.
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        for name, module in later.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


class _Later(ModuleType):
    """A module that is imported when something of it is first used."""

    def __getattr__(self, word: str) -> Any:
        if word.startswith("__"):
            raise AttributeError(word)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), word)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status; never raises for what a user can do."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = os.environ.get("INLAY_DEBUG") == "1"
    if not debug:
        warnings.filterwarnings("ignore")
        for name, value in _HUSH.items():
            os.environ.setdefault(name, value)
    _open_streams()
    command = typer.main.get_command(app)
    try:
        with interrupts() as check:
            status = command.main(args=arguments, prog_name="inlay", standalone_mode=False)
            if isinstance(status, Order):
                # Where others share the process, they may need what is left out.
                status.write(check, few_imports if argv is None else nullcontext)
            elif isinstance(status, Batch):
                status = status.write(check)
        with printing(sys.stdout):
            pass
        if status == _INTERRUPTED:
            return _end("interrupted; nothing was written.", _INTERRUPTED)
        return status if isinstance(status, int) else 0
    except InputError as error:
        return _end(str(error), 2)
    except ClickException as error:
        return _end(usage_sentence(error), 2)
    except (KeyboardInterrupt, typer.Abort, Cancelled) as error:
        return _end(str(error) or "interrupted; nothing was written.", _INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output has left, as in `inlay methods | head`.
        return 1
    except Exception as error:
        if debug:
            import traceback

            traceback.print_exc()
        return _end(_failure(error), 1)


def _open_streams() -> None:
    """Open the standard streams that were closed on nothing: no picture may take their numbers."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))


def _end(sentence: str, status: int) -> int:
    say(plain(sentence), sys.stderr)
    return status


def _failure(error: Exception) -> str:
    kind, text = type(error).__name__, str(error)
    if isinstance(error, MemoryError) or kind == "OutOfMemoryError":
        return "out of memory; give --memory low, a smaller box or --num-images 1."
    return f"inlay failed with {kind}: {text[:300] or 'no message'}; INLAY_DEBUG=1 shows where."


def usage_sentence(error: Exception) -> str:
    """One sentence for an error of the command line's syntax."""
    context: Any = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "inlay"
    option = getattr(error, "option_name", None)
    if type(error).__name__ == "NoSuchOption" and option:
        items = context.command.get_params(context) if context is not None else ()
        known = [name for item in items for name in item.opts if name.startswith("--")]
        near = nearest(str(option), known)
        end = near if near.startswith("did") else f"see {path} --help."
        return f"{path} has no option {show(str(option))}; {end}"
    parameter: Any = getattr(error, "param", None)
    message = str(getattr(error, "message", error)).strip().rstrip(".")
    if type(error).__name__ == "MissingParameter" and parameter is not None:
        return f"{path} needs {_shown(parameter)}; see {path} --help."
    choice = re.search(r"'(.*)' is not one of (.*)", message, re.DOTALL)
    if choice is not None:
        known = re.findall(r"'([^']*)'", choice[2])
        return f"{_shown(parameter)} is {show(choice[1])}; {nearest(choice[1], known)}"
    if parameter is not None:
        for word, kind in (("valid integer", "a whole number"), ("valid number", "a number")):
            if word in message:
                return f"{_shown(parameter)} cannot be read; expected {kind}."
        return f"{_shown(parameter)} is wrong: {message[:1].lower()}{message[1:]}."
    extra = re.search(r"unexpected extra argument.*? \((\S+)", message)
    if extra is not None:
        return f"{path} takes no argument {show(extra[1].rstrip(')'))} here; see {path} --help."
    return f"{message[:1].lower()}{message[1:]}; see {path} --help."


def _shown(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name).upper()
    longest: str = max(parameter.opts, key=len)
    return f"{longest} {parameter.metavar}" if parameter.metavar else longest
