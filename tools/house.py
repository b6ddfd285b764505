"""Measure the structure of src/inlay against its bounds; exit 1 where one is broken.

    python tools/house.py               the table: what, now, bound, ok
    python tools/house.py --files       the files that one compose calls functions of, with counts
    python tools/house.py --frames      our frames from the command down to the U-Net's forward
    python tools/house.py --functions   the longest functions, and those with too many parameters
    python tools/house.py --largest     the longest files
    python tools/house.py --imports     import circles, upward imports, names on no floor

A test can call `measure(root)` and hold it against `BOUNDS`; `structure(root)` is the part of it
that only reads the source.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

# The floors from top to bottom, as names directly under inlay. A module may import from its own
# floor and from lower ones. inlay itself and inlay.__main__ stand on none.
LAYERS = [
    ["cli"],
    ["server", "evaluation"],
    ["batch"],
    ["training"],
    ["learning"],
    ["composer"],
    ["run"],
    ["result", "plan"],
    ["request"],
    ["methods"],
    ["scene"],
    ["checkpoints"],
    ["diffusion"],
    ["settings"],
    ["pictures"],
    ["errors", "_version"],
]

MAX_PARAMETERS = 12
# The public methods of Composer are the front door: what one can ask for is named there.
MAX_COMPOSER_PARAMETERS = 16

# What may be measured at most.
BOUNDS = {
    "modules at the root": 9,
    "files": 122,
    # 18,000 were the redesign's; what came after it are kinds of files and of LoRA, soft and
    # thin masks, defaults by checkpoint, the cutter and shadows with their trainings, the
    # benchmarks of light and of removal, filling by patches, views of concepts, batches of
    # pictures with a file of their own, partial imports, checkpoints of few steps, weights in
    # prompts, families of transformers, offloading and IP-Adapters, and a benchmark of nine
    # data sets and six protocols with its report and study, which alone are 2,600. It may fall,
    # and must not rise unexplained.
    "lines": 25100,
    "longest file": 350,
    "longest function": 80,
    "functions with too many parameters": 0,
    "import circles": 0,
    "upward imports": 0,
    "names on no floor": 0,
    "frames to the network": 9,
    # 25 were the redesign's; the shadow's file and the conditions' came after it.
    "files called in a compose": 27,
    # Two doors were built after the redesign, with budgets of their own. Of batch, 8 files with 900
    # lines were planned; more are a worker that the server shares, Parquet, object stores and Ray
    # beside JSON, folders and processes, the ground of photos, and labels in six formats.
    "files of batch": 11,
    "lines of batch": 2445,
    # Of server 1,200 lines were planned; more are batches of jobs alike, helpers that may die, a
    # preview, an API that describes itself, and sentences for all that may be wrong.
    "files of server": 9,
    "lines of server": 1890,
}
DOORS = ("batch", "server")

LISTED = 15
# Python 3.12 gives these no frame any more; the count must not depend on the version.
INLINED = {"<listcomp>", "<setcomp>", "<dictcomp>"}


@dataclass(frozen=True)
class Function:
    """One function of the package, as its source has it."""

    place: str
    lines: int
    parameters: int
    allowed: int


@dataclass(frozen=True)
class Run:
    """What one compose called."""

    stack: list[str]
    calls: dict[str, int]


class Source:
    """The package's source: its files, their functions and what they import."""

    def __init__(self, root: Path) -> None:
        self.package = root / "src" / "inlay"
        self.texts = {
            path: path.read_text(encoding="utf-8") for path in sorted(self.package.rglob("*.py"))
        }
        if not self.texts:
            raise FileNotFoundError(f"there is no package in {self.package}.")
        self.trees = {path: ast.parse(text) for path, text in self.texts.items()}
        self.modules = {self._module(path): path for path in self.texts}

    def name(self, path: Path) -> str:
        """A file's name inside the package."""
        return path.relative_to(self.package).as_posix()

    def lengths(self) -> list[tuple[int, str]]:
        """(lines, file), the longest first; lines as `wc -l` counts them."""
        return sorted(((t.count("\n"), self.name(p)) for p, t in self.texts.items()), reverse=True)

    def functions(self) -> list[Function]:
        """Every function and method, nested ones too, the longest first."""
        found = [
            function
            for path, tree in self.trees.items()
            for function in _functions(tree, self.name(path), "")
        ]
        return sorted(found, key=lambda each: -each.lines)

    def imports(self) -> dict[str, set[str]]:
        """The modules of the package that each one imports, at its head or in a function.

        The packages that a module lies in are loaded with it, but are not counted as imported.
        """
        return {
            module: self._imported(module, path) - {module} for module, path in self.modules.items()
        }

    def _module(self, path: Path) -> str:
        parts = path.relative_to(self.package.parent).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def _imported(self, module: str, path: Path) -> set[str]:
        found: set[str] = set()
        nodes = list(_at_run_time(self.trees[path]))
        # The names that import_module is given stand in tables and f-strings.
        dynamic = any(_called(node) in ("import_module", "__import__") for node in nodes)
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        for node in nodes:
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    above = package.split(".")[: len(package.split(".")) + 1 - node.level]
                    base = ".".join([*above, *filter(None, [node.module])])
                # A name that is no module of its own is in the package's __init__.
                names = {f"{base}.{alias.name}" for alias in node.names}
                found |= names & self.modules.keys()
                if names - self.modules.keys():
                    found.add(base)
            elif dynamic and isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
            elif dynamic and isinstance(node, ast.JoinedStr):
                start = node.values[0].value if isinstance(node.values[0], ast.Constant) else None
                if isinstance(start, str) and start.startswith("inlay."):
                    found.update(name for name in self.modules if name.startswith(start))
        return found & self.modules.keys()


def _called(node: ast.AST) -> str:
    """The name of the function that a node calls, without what stands before its dot."""
    if not isinstance(node, ast.Call):
        return ""
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else ""


def _at_run_time(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes of a tree but those that only a type checker sees."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in (
            getattr(child.test, "id", ""),
            getattr(child.test, "attr", ""),
        ):
            for other in child.orelse:
                yield from _at_run_time(other)
        else:
            yield from _at_run_time(child)


def _functions(node: ast.AST, file: str, inside: str, of_class: bool = False) -> Iterator[Function]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield from _functions(child, file, f"{inside}{child.name}.", True)
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            given = child.args
            names = [each.arg for each in [*given.posonlyargs, *given.args]]
            count = len(names) + len(given.kwonlyargs) - (names[:1] in (["self"], ["cls"]))
            front = of_class and inside == "Composer." and Path(file).name == "composer.py"
            yield Function(
                f"{file}:{child.lineno} {inside}{child.name}",
                (child.end_lineno or child.lineno) - child.lineno + 1,
                count,
                MAX_COMPOSER_PARAMETERS
                if front and not child.name.startswith("_")
                else MAX_PARAMETERS,
            )
            yield from _functions(child, file, f"{inside}{child.name}.")
        else:
            yield from _functions(child, file, inside, of_class)


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one module (Tarjan's algorithm)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    open_: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        order[module] = low[module] = len(order)
        open_.append(module)
        for other in sorted(graph[module]):
            if other not in order:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in open_:
                low[module] = min(low[module], order[other])
        if low[module] == order[module]:
            start = open_.index(module)
            circle = sorted(open_[start:])
            del open_[start:]
            if len(circle) > 1:
                found.append(circle)

    for module in sorted(graph):
        if module not in order:
            visit(module)
    return found


def _top(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def upward(graph: dict[str, set[str]]) -> list[tuple[str, str]]:
    """(importer, imported) where the second stands on a higher floor."""
    floor = {name: number for number, names in enumerate(LAYERS) for name in names}
    return [
        (module, other)
        for module, others in sorted(graph.items())
        for other in sorted(others)
        if _top(module) in floor
        and _top(other) in floor
        and floor[_top(other)] < floor[_top(module)]
    ]


def homeless(graph: dict[str, set[str]]) -> list[str]:
    """The names directly under inlay that LAYERS lacks; their imports would go unchecked."""
    known = {name for names in LAYERS for name in names}
    return sorted({_top(module) for module in graph} - known - {"", "__main__"})


def too_many(functions: list[Function]) -> list[Function]:
    """The functions with more parameters than they may have, the worst first."""
    over = [each for each in functions if each.parameters > each.allowed]
    return sorted(over, key=lambda each: -each.parameters)


def structure(root: Path) -> dict[str, int]:
    """What the source alone says."""
    source = Source(root)
    lengths, functions, graph = source.lengths(), source.functions(), source.imports()
    doors = {
        door: [lines for lines, name in lengths if name.startswith(f"{door}/")] for door in DOORS
    }
    house = [lines for lines, name in lengths if not name.startswith(tuple(f"{d}/" for d in DOORS))]
    return {
        "modules at the root": sum("/" not in name for _, name in lengths),
        "files": len(house),
        "lines": sum(house),
        "longest file": lengths[0][0],
        "longest function": functions[0].lines if functions else 0,
        "functions with too many parameters": len(too_many(functions)),
        "import circles": len(circles(graph)),
        "upward imports": len(upward(graph)),
        "names on no floor": len(homeless(graph)),
        **{f"files of {door}": len(own) for door, own in doors.items()},
        **{f"lines of {door}": sum(own) for door, own in doors.items()},
    }


def measure(root: Path = ROOT) -> dict[str, int]:
    """Everything that BOUNDS bounds; runs one compose, in a process of its own."""
    run = traced(root)
    return {
        **structure(root),
        "frames to the network": len(run.stack),
        "files called in a compose": len(run.calls),
    }


def traced(root: Path) -> Run:
    """One compose under a profile hook, in a fresh process.

    Fresh, as what a caller has imported, or has hooked in itself, would change the counts.
    """
    root = root.resolve()
    paths = [str(root / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    with tempfile.TemporaryDirectory() as folder:
        answer = subprocess.run(
            [sys.executable, str(Path(__file__).resolve()), "--trace", str(root)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        if answer.returncode:
            raise RuntimeError(f"the compose failed:\n{answer.stderr.strip()[-3000:]}")
        told = json.loads((Path(folder) / "trace.json").read_text(encoding="utf-8"))
    return Run(told["stack"], told["calls"])


class Hook:
    """A profile hook: which of our files had functions called, and the stack at the U-Net."""

    def __init__(self, package: Path) -> None:
        self.prefix = str(package) + os.sep
        self.calls: Counter[str] = Counter()
        self.stack: list[str] = []

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if event != "call":
            return
        code = frame.f_code
        if code.co_filename.startswith(self.prefix):
            # The bodies of modules and classes are called too, but are not functions.
            if code.co_flags & inspect.CO_OPTIMIZED:
                self.calls[self._name(code.co_filename)] += 1
        elif (
            not self.stack
            and code.co_name == "forward"
            and Path(code.co_filename).name == "unet_2d_condition.py"
        ):
            self.stack = self._ours(frame)

    def _ours(self, frame: FrameType | None) -> list[str]:
        """Our frames above this one, from the command line's function on."""
        found: list[str] = []
        while frame is not None:
            # What lies before the command line's library is `main`, not the command.
            if frame.f_globals.get("__name__", "").split(".")[0] in ("click", "typer"):
                break
            code = frame.f_code
            if code.co_filename.startswith(self.prefix) and code.co_name not in INLINED:
                name = getattr(code, "co_qualname", code.co_name)
                found.append(f"{self._name(code.co_filename)}:{frame.f_lineno} {name}")
            frame = frame.f_back
        return found[::-1]

    def _name(self, path: str) -> str:
        return path[len(self.prefix) :].replace(os.sep, "/")


def trace(root: Path) -> None:
    """Compose two photographs in the current folder and leave trace.json there."""
    import numpy as np

    # Importing these under the hook takes longer than all else.
    from diffusers import UNet2DConditionModel  # noqa: F401
    from PIL import Image
    from skimage import data
    from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401

    Image.fromarray(data.astronaut()[:256, :256]).save("bg.png")
    cup = data.coffee()[60:260, 180:420]
    rows, columns = np.ogrid[-1 : 1 : cup.shape[0] * 1j, -1 : 1 : cup.shape[1] * 1j]
    alpha = np.where(rows**2 + columns**2 < 0.9, 255, 0).astype(np.uint8)
    Image.fromarray(np.dstack([cup, alpha])).save("cup.png")

    import inlay
    from inlay.cli import main

    package = Path(inlay.__file__).resolve().parent
    if package != root / "src" / "inlay":
        raise SystemExit("another inlay than the measured one was imported.")
    arguments = ["compose", "bg.png", "cup.png", "--box", "80,120,96,80", "-o", "out.png"]
    arguments += ["--method", "cdc", "--set", "num_inference_steps=1", "--quiet"]
    hook = Hook(Path(inlay.__file__).parent)
    threading.setprofile(hook)
    sys.setprofile(hook)
    try:
        status = main(arguments)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    if status or not hook.stack:
        raise SystemExit(status or "the U-Net was never called.")
    told = {"stack": hook.stack, "calls": hook.calls}
    Path("trace.json").write_text(json.dumps(told), encoding="utf-8")


def table(measured: dict[str, int]) -> bool:
    """Print what was measured beside its bounds; True where all of them hold."""
    width = max(map(len, BOUNDS))
    print(f"{'what':{width}}  {'now':>6}  {'bound':>6}  ok")
    for what, bound in BOUNDS.items():
        answer = "yes" if measured[what] <= bound else "NO"
        print(f"{what:{width}}  {measured[what]:6}  {bound:6}  {answer}")
    return all(measured[what] <= bound for what, bound in BOUNDS.items())


def show_run(run: Run, files: bool, frames: bool) -> None:
    """Print the files that were called, or the stack at the U-Net."""
    if files:
        print(f"{len(run.calls)} files (with calls; a generator's resumptions count as such)")
        for name, count in sorted(run.calls.items(), key=lambda item: (-item[1], item[0])):
            print(f"{count:7}  {name}")
    if frames:
        print(f"{len(run.stack)} frames, the command's first")
        for line in run.stack:
            print(f"  {line}")


def show_functions(functions: list[Function]) -> None:
    print(f"the {LISTED} longest functions")
    for each in functions[:LISTED]:
        print(f"{each.lines:7}  {each.place}")
    above = [each for each in functions if each.parameters > MAX_PARAMETERS]
    print(f"functions with more than {MAX_PARAMETERS} parameters (and how many they may have)")
    for each in sorted(above, key=lambda each: -each.parameters):
        print(f"{each.parameters:7}  {each.place} ({each.allowed})")


def show_imports(graph: dict[str, set[str]]) -> None:
    for circle in circles(graph):
        print(f"circle of {len(circle)}: {', '.join(circle)}")
    for module, other in upward(graph):
        print(f"upward: {module} imports {other}")
    for name in homeless(graph):
        print(f"on no floor: {name}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the structure of src/inlay.")
    for name, what in (
        ("files", "the files that one compose calls functions of"),
        ("frames", "our frames from the command to the U-Net"),
        ("functions", "the longest functions and those with too many parameters"),
        ("largest", "the longest files"),
        ("imports", "import circles, upward imports, names on no floor"),
    ):
        parser.add_argument(f"--{name}", action="store_true", help=f"list {what}")
    parser.add_argument("--trace", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.trace:
        trace(options.trace)
        return 0
    if options.files or options.frames:
        show_run(traced(ROOT), options.files, options.frames)
    if options.functions:
        show_functions(Source(ROOT).functions())
    if options.largest:
        for lines, name in Source(ROOT).lengths()[:LISTED]:
            print(f"{lines:7}  {name}")
    if options.imports:
        show_imports(Source(ROOT).imports())
    if any(vars(options).values()):
        return 0
    return 0 if table(measure(ROOT)) else 1


if __name__ == "__main__":
    sys.exit(main())
