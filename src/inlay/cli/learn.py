"""learn: an object from a few photos, as a file that stands for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from inlay.cli import options
from inlay.cli.options import Reading, flag, grouped
from inlay.errors import InputError, show
from inlay.pictures.box import Box


@dataclass(frozen=True)
class Learning(Reading):
    """The options of learn."""

    box: list[str] | None = flag("Where it is; once for each photo.", "X,Y,W,H")
    mask: list[str] | None = flag("White where it is; once for each photo.", "FILE")
    cut: str | None = flag(
        "How it is found without these: alpha, grabcut or a segmentation model.", "HOW",
        words=("alpha", "grabcut"),
    )  # fmt: skip
    model: str = flag(
        "Checkpoint that it is learnt for.", "MODEL", default="embedded", words=options.model_names
    )
    device: str = flag(", ".join(options.DEVICES), "D", default="auto", words=options.DEVICES)
    full: bool = flag("Fine-tune the whole U-Net, as the paper does: a large FILE.", default=False)
    seed: int = flag("Of all randomness.", "N", default=0)
    class_pictures: str | None = flag(
        "Pictures of the class at large, so that it is not forgotten.", "DIR"
    )
    resume: bool = flag("Go on from the state beside FILE.", default=False)
    set: list[str] | None = flag("Any setting of the training.", "KEY=VALUE")


@grouped
def learn(
    photos: Annotated[
        list[str], typer.Argument(metavar="PHOTO...", help="1 to 10 photos of one object.")
    ],
    class_name: Annotated[
        str,
        typer.Option("--class-name", metavar="C", help="What it is, in a word or two: backpack."),
    ],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="File to write: .safetensors.")
    ],
    given: Learning,
) -> None:
    """Learn one object from a few photos, to be put into any picture later.

    State, log and previews go to a folder beside FILE.
    """
    options.one_of(given.device, options.DEVICES, "--device")
    if not class_name.strip():
        raise InputError("--class-name is empty; give a word for what the object is.")
    if Path(output).suffix.lower() != ".safetensors":
        raise InputError(f"--output is {show(output)}; expected NAME.safetensors.")
    if len(photos) > 10:
        raise InputError(f"there are {len(photos)} photos; expected 1 to 10.")
    if given.box and given.mask:
        raise InputError("--box and --mask exclude each other; give one of them.")
    if given.cut is not None and (given.box or given.mask):
        raise InputError("--cut goes without --box and --mask; leave out one of them.")
    boxes = [Box.parse(text, "--box") for text in given.box or ()]

    from inlay.cli.outputs import tell
    from inlay.cli.progress import listening
    from inlay.cli.train import recipe, silent
    from inlay.learning.settings import LearnConfig

    asked = [f"model={given.model}", f"seed={given.seed}"]
    asked += ["train=full"] if given.full else []
    config = recipe(LearnConfig, [*asked, *(given.set or [])])
    from inlay.learning.learn import learn as run
    from inlay.learning.loop import Processes
    from inlay.learning.photos import with_places

    with listening(quiet=given.quiet, bar=False):
        concept = run(
            with_places(photos, boxes, given.mask or ()),
            class_name,
            output,
            config,
            cut=given.cut,
            class_pictures=given.class_pictures,
            device=given.device,
            resume=given.resume,
            trust_remote_code=given.trust_remote_code,
            max_pixels=given.max_pixels,
            log=silent if given.quiet or given.json else typer.echo,
        )
    if Processes().first:
        record = concept.model_dump(mode="json", exclude={"sights": {"__all__": {"picture"}}})
        tell({**record, "outputs": [output]}, as_json=given.json, quiet=given.quiet)
