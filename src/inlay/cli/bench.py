"""bench and study: how well methods do, by known truths, by papers' protocols, by people."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from operator import methodcaller
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from inlay.batch.command import Running
from inlay.cli.listing import table
from inlay.cli.options import Checkpoint, OutFolder, Quiet, flag
from inlay.cli.outputs import listening, say
from inlay.cli.train import made_folder
from inlay.errors import Cancelled, InputError, nearest, show

if TYPE_CHECKING:
    from inlay.evaluation.bench import Bench, Variant
    from inlay.evaluation.benchmark import Benchmark
    from inlay.evaluation.study import Study

# What is measured by a truth of our own, and the data sets of papers.
Name = Literal[
    "harmony", "relight", "removal",
    "murecom", "murecom-rmobj", "dreameditbench", "shine-dreameditbench", "tf-icon", "cocoee",
    "iharmony4", "libcom", "manifest",
]  # fmt: skip
_TRUTHS = ("harmony", "relight", "removal")
# What must be as it was for a benchmark to go on.
_ABOUT = "bench.json"


@dataclass(frozen=True)
class Benching(Checkpoint, Running):
    """The options of bench."""

    methods: str | None = flag(
        "Methods; NAME:KEY=VALUE:KEY=VALUE is one with settings, or with shadow=KIND.", "A,B"
    )
    ablation: str | None = flag(
        "Variants from a YAML file, or one that comes along: dreamcom-attention, "
        "dreamcom-references, cdc-grid, phd-stages.", "FILE",
    )  # fmt: skip
    results: list[str] | None = flag(
        "Pictures of another tool, called by the pairs; may be repeated.", "DIR"
    )
    protocol: str | None = flag("How papers' data sets are scored; by default as theirs.", "NAME")
    metric: list[str] | None = flag(
        "A metric's network, in a folder or on the hub; may be repeated.", "NAME=MODEL"
    )
    samples: int = flag("Pictures of each pair, with consecutive seeds.", "K", default=1, least=1)
    learn: list[str] | None = flag("How methods' concepts are learnt.", "KEY=VALUE")
    cases: int | None = flag("How many; else 100 known truths, all of a data set.", "N", least=1)
    harmless: int | None = flag("Of these, undisturbed ones to run on; all by default.", "N")
    seed: int = flag("Of all randomness.", "N", default=0)
    split: Literal["held-out", "training", "all"] | None = flag(
        "Which pictures; held-out is the default where metadata.jsonl has any."
    )
    include: list[str] | None = flag("Only such names or categories; repeatable.", "PATTERN")
    short_side: int = flag("Reduce pictures to this short side.", "N", default=384, least=1)
    set: list[str] | None = flag("A setting of one of the methods.", "METHOD.KEY=VALUE")
    resume: bool = flag("Go on with what is in DIR.", default=False)
    workers: int | None = flag("Processes that make pictures; else this one does.", "N", least=1)
    json: bool = flag("Print what was found as JSON.", default=False)

    @property
    def fields(self) -> dict[str, Any]:
        """Of a request's model."""
        own = {"name": self.model, "device": self.device, "dtype": self.dtype}
        return {**own, "memory": self.memory}

    @property
    def running(self) -> Running:
        """How pictures are made; --memory is the checkpoint's here, not a worker's."""
        names = ("engine", "address", "workers", "timeout", "batch_size")
        return Running(**{name: getattr(self, name) for name in names})


def bench(
    benchmark: Annotated[Name, typer.Argument(help="Which benchmark.")],
    folder: Annotated[
        list[str],
        typer.Argument(help="Folders of pictures, scikit-image means its photos; or a data set's."),
    ],
    output: OutFolder,
    given: Benching,
) -> int:
    """Measure methods on known truths, or as papers do on their data sets.

    harmony: objects of photos, disturbed on purpose. relight: rendered objects that come from
    another light, of tools/render_pairs.py. removal: holes in photos. All others are data sets, see
    docs/bench.md. Writes report.html, tables, and every score as Parquet.
    """
    kind = _truths if benchmark in _TRUTHS else _pairs
    return kind(benchmark, folder, output, given)


def _truths(name: str, folder: Sequence[str], output: str, given: Benching) -> int:
    """harmony, relight, removal."""
    from inlay.evaluation.benchmark import run
    from inlay.evaluation.harmony import Harmony
    from inlay.evaluation.photos import find_photos
    from inlay.evaluation.relight import Relight, find_triples
    from inlay.evaluation.removal import Removal
    from inlay.evaluation.report import as_dict, truth_tables, write_report

    kinds: dict[str, type[Benchmark]] = {"harmony": Harmony, "relight": Relight, "removal": Removal}
    include = given.include or []
    sources = (find_triples if name == "relight" else find_photos)(folder, given.split, include)
    count = 100 if given.cases is None else given.cases
    chosen = kinds[name](sources, count, given.seed, given.harmless, given.short_side)
    named = chosen.methods if given.methods is None else given.methods
    variants = _variants(named, given.set or [], str(chosen.blank["verb"]))
    told = dict[str, tuple[str, dict[str, Any]]]()
    for each in variants:
        choice = {**each.method, **each.request}
        told[each.label] = choice.pop("name"), choice
    about: dict[str, Any] = {"benchmark": name, "folders": folder, "split": given.split}
    about["include"] = include
    about |= {"cases": given.cases, "seed": given.seed, "model": given.model}
    with made_folder(output) as out, listening(quiet=given.quiet, bar=not given.json) as heard:
        heard.label = "measuring"
        with _claimed(out, {**about, "short_side": given.short_side}, given.resume):
            report = run(chosen, told, out, given.running, heard.step, given.fields)
        report.settings |= {"folders": folder, "split": given.split, "include": include}
        report.settings["model"] = given.model
        written = write_report(report, out)
    if given.json:
        say(json.dumps(as_dict(report), allow_nan=False, indent=1))
    elif not given.quiet:
        for shown in truth_tables(report):
            say(table(shown.headers, shown.rows, shown.title))
        for path in written:
            say(path)
    return 0


def _pairs(name: str, folder: Sequence[str], output: str, given: Benching) -> int:
    """The data sets of papers, and those in their form."""
    from inlay.evaluation.bench import Bench, read_ablation
    from inlay.evaluation.datasets import open_dataset
    from inlay.evaluation.metrics import metrics_of
    from inlay.evaluation.report import write_results
    from inlay.learning.settings import LearnConfig
    from inlay.settings import parse_values

    if len(folder) > 1:
        raise InputError(f"{name} is one folder; there are {len(folder)}.")
    dataset = open_dataset(name, folder[0])
    about: dict[str, Any] = {"title": name}
    if given.ablation is not None and given.methods is not None:
        raise InputError("--methods and --ablation exclude each other; give one of them.")
    if given.ablation is not None:
        told, variants = read_ablation(given.ablation)
        about |= {**told, "ablation": given.ablation}
    else:
        named = given.methods or ("" if given.results else "paste,poisson,phd")
        verb = next(iter(dataset.pairs())).request.verb
        variants = _variants(named, given.set or [], verb, concepts=True) if named else []
    learn = parse_values(given.learn or [], LearnConfig)
    variants = [each.learnt(learn) for each in variants]
    for item in given.metric or []:
        if not all(item.partition("=")):
            raise InputError(f"--metric {show(item)} is wrong; expected NAME=MODEL.")
    models = {name: model for name, _, model in (i.partition("=") for i in given.metric or [])}
    protocol = given.protocol or str(about.get("protocol", dataset.protocol))
    metrics = metrics_of(protocol, models or None)
    # Ours need no truth and no network, so they are told of all.
    metrics += metrics_of("inlay", models or None) if protocol != "inlay" else []
    patterns = given.include or ["*"]
    about |= {"benchmark": name, "folder": str(Path(folder[0]).absolute()), "protocol": protocol}
    about |= {"samples": given.samples, "seed": given.seed, "model": given.model}
    order = Bench(
        dataset, variants, output, given.running,
        samples=given.samples, seed=given.seed, model=given.fields, results=given.results or (),
        chosen=lambda p: any(fnmatchcase(n, x) for x in patterns for n in (p.name, p.category)),
        most=given.cases,
    )  # fmt: skip
    with made_folder(output) as out, listening(quiet=given.quiet, bar=not given.json) as heard:
        heard.label, order.progress = "measuring", heard.step
        with _claimed(out, about, given.resume):
            status = order.write(lambda: None)
            scores = order.score(metrics)
            tables, written = write_results(order, scores, metrics, about)
    _tell(given, order, tables, written)
    return status


def _tell(given: Benching, order: Bench, tables: Sequence[Any], written: Sequence[Path]) -> None:
    """What was found, on standard output."""
    if given.json:
        say(json.dumps({"tables": [vars(each) for each in tables], "problems": order.problems}))
    elif not given.quiet:
        for each in tables:
            say(table(each.headers, each.rows, each.title))
        notes = tables[0].notes if tables else []
        rest = [problem for problem in order.problems if problem not in notes]
        for line in (*notes, *rest[:20]):
            say(line)
        for path in written:
            say(path)


@contextmanager
def _claimed(out: Path, about: Mapping[str, Any], resume: bool) -> Iterator[None]:
    """See that nothing in a folder is overwritten but what the same benchmark began; where it
    could not begin, the folder is as it was.
    """
    from inlay.pictures.write import replace_file

    asked, path = json.loads(json.dumps(about, default=str)), out / _ABOUT
    if not resume and any(out.iterdir()):
        raise InputError(f"{out} is not empty; give a new folder, or --resume to go on there.")
    if any(out.iterdir()) and not path.is_file():
        raise InputError(f"{out} holds no benchmark to go on with; give another folder.")
    try:
        known = dict(json.loads(path.read_bytes())) if path.is_file() else asked
    except (ValueError, TypeError):
        raise InputError(f"{path} is damaged; give a new folder.") from None
    for key in (key for key in asked if known.get(key) != asked[key]):
        raise InputError(
            f"{out} was begun with {key} {show(known.get(key))}, not {show(asked[key])}; give a "
            "new folder."
        )
    text = json.dumps(asked, indent=1).encode()
    replace_file(path, methodcaller("write", text))
    try:
        yield
    except InputError:
        if [*out.iterdir()] == [path]:
            path.unlink()
        raise
    except KeyboardInterrupt as error:
        # Typer would forget what it says.
        said = f"interrupted; with --resume the same command goes on in {out}."
        raise Cancelled(str(error) or said) from None


def _variants(text: str, sets: Sequence[str], verb: str, concepts: bool = False) -> list[Variant]:
    """Read --methods and --set; the text of each variant is its label. concepts: whether there are
    photos of objects to learn.
    """
    from inlay.evaluation.bench import OF_REQUEST, Variant
    from inlay.methods import registry as methods
    from inlay.settings import parse_values

    known = [
        name
        for name, method in methods.all_methods().items()
        if verb in method.verbs and (concepts or not method.concepts)
    ]
    labels = [label.strip() for label in text.split(",") if label.strip()]
    if not labels:
        raise InputError(f"--methods is {show(text)}; expected names like reinhard,cdc.")
    names = {label: label.split(":")[0] for label in labels}
    for name in names.values():
        if name not in known:
            raise InputError(f"--methods is {show(name)}; {nearest(name, known)}")
    for item in sets:
        name, dot, _ = item.partition(".")
        if not dot or "=" in name:
            raise InputError(f"--set {show(item)} is wrong; expected METHOD.KEY=VALUE.")
        if name not in names.values():
            near = nearest(name, names.values())
            raise InputError(f"--set {show(item)} is for a method that is not run; {near}")
    variants = []
    for label, name in names.items():
        own = (item.partition(".")[2] for item in sets if item.startswith(f"{name}."))
        items = [item.partition("=") for item in (*label.split(":")[1:], *own)]
        request = {key: value for key, _, value in items if key in OF_REQUEST}
        rest = ["".join(item) for item in items if item[0] not in OF_REQUEST]
        found = parse_values(rest, methods.get(name).settings)
        variants.append(Variant(label, {"name": name, **found}, request))
    return variants


@dataclass(frozen=True)
class Studying(Quiet):
    """The options of study."""

    serve: bool = flag(
        "Serve the page here, and keep what people say as they say it.", default=False
    )
    port: int = flag("Port to listen on; 0 is a free one.", "N", default=8001, least=0)
    choice: bool = flag("Ask for the better of two, in place of a ranking.", default=False)
    trials: int | None = flag("Pairs to ask about at most.", "N", least=1)
    seed: int = flag("Of the choice of pairs and of what is compared.", "N", default=0)


def study(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="What inlay bench has written.")],
    given: Studying,
) -> None:
    """Have people rank the methods of a benchmark, blind, for compatibility and fidelity.

    Writes DIR/study/page, which works by itself, and what was rated so far as tables. With --serve
    the page is at an address of this machine alone, and every rating is kept at once.
    """
    from inlay.evaluation.study import Study

    opened = Study.open(Path(folder), given.choice, given.trials, given.seed)
    if given.serve:
        _serve(opened, given.port)
    tables, written = opened.write()
    if not given.quiet:
        for each in tables:
            say(table(each.headers, each.rows, each.title))
            for note in each.notes:
                say(note)
        for path in (opened.folder / "page" / "index.html", *written):
            say(path)


def _serve(opened: Study, port: int) -> None:
    """Serve the page to this machine until somebody interrupts it."""
    try:
        import uvicorn

        from inlay.server.limits import Limits
        from inlay.server.safety import Guard, Metrics
    except ImportError as error:
        raise InputError(f"--serve needs {error.name}; pip install inlay[server].") from None
    try:
        listener = socket.create_server(("127.0.0.1", port))
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", "it is greater than 65535")
        reason = f"port {port} cannot be listened on ({why})"
        raise InputError(f"{reason}; give another --port.") from None
    app = Guard(opened.app(), Limits(), Metrics())
    config = uvicorn.Config(app, log_config=None, access_log=False, server_header=False)
    say(f"the study is at http://127.0.0.1:{listener.getsockname()[1]}; Ctrl-C ends it.")
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run([listener])
