"""learn: an object from a few photos, as a file that stands for it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inlay.cli import options
from inlay.cli.options import DEFAULT_MAX_PIXELS, Json, MaxPixels, Quiet, TrustRemoteCode
from inlay.errors import InputError, show
from inlay.pictures.box import Box


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
    box: Annotated[
        list[str] | None,
        typer.Option("--box", metavar="X,Y,W,H", help="Where it is; once for each photo."),
    ] = None,
    mask: Annotated[
        list[str] | None,
        typer.Option("--mask", metavar="FILE", help="White where it is; once for each photo."),
    ] = None,
    cut: Annotated[
        str | None,
        typer.Option(
            "--cut",
            metavar="HOW",
            help="How it is found without these: alpha, grabcut or a segmentation model.",
            autocompletion=options._completes("alpha", "grabcut"),
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="Checkpoint that it is learnt for.",
            autocompletion=options._model_names,
        ),
    ] = "embedded",
    device: Annotated[
        str,
        typer.Option("--device", metavar="D", help=", ".join(options.DEVICES)),
    ] = "auto",
    full: Annotated[
        bool,
        typer.Option("--full", help="Fine-tune the whole U-Net, as the paper does: a large FILE."),
    ] = False,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of all randomness.")] = 0,
    class_pictures: Annotated[
        str | None,
        typer.Option(
            "--class-pictures",
            metavar="DIR",
            help="Pictures of the class at large, so that it is not forgotten.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the state beside FILE.")
    ] = False,
    set: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any setting of the training."),
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    max_pixels: MaxPixels = DEFAULT_MAX_PIXELS,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Learn one object from a few photos, to be put into any picture later.

    State, log and previews go to a folder beside FILE.
    """
    options.one_of(device, options.DEVICES, "--device")
    if not class_name.strip():
        raise InputError("--class-name is empty; give a word for what the object is.")
    if Path(output).suffix.lower() != ".safetensors":
        raise InputError(f"--output is {show(output)}; expected NAME.safetensors.")
    if len(photos) > 10:
        raise InputError(f"there are {len(photos)} photos; expected 1 to 10.")
    if box and mask:
        raise InputError("--box and --mask exclude each other; give one of them.")
    if cut is not None and (box or mask):
        raise InputError("--cut goes without --box and --mask; leave out one of them.")
    where = [Box.parse(text, "--box") for text in box or ()]

    from inlay.cli.outputs import tell
    from inlay.cli.progress import listening
    from inlay.cli.train import recipe, silent
    from inlay.learning.settings import LearnConfig

    given = [f"model={model}", f"seed={seed}", *(["train=full"] if full else [])]
    config = recipe(LearnConfig, [*given, *(set or [])])
    from inlay.learning.learn import learn as run
    from inlay.learning.loop import Processes
    from inlay.learning.photos import with_places

    with listening(quiet=quiet, bar=False):
        concept = run(
            with_places(photos, where, mask or ()),
            class_name,
            output,
            config,
            cut=cut,
            class_pictures=class_pictures,
            device=device,
            resume=resume,
            trust_remote_code=trust_remote_code,
            max_pixels=max_pixels,
            log=silent if quiet or json else typer.echo,
        )
    if Processes().first:
        record = concept.model_dump(mode="json", exclude={"sights": {"__all__": {"picture"}}})
        tell({**record, "outputs": [output]}, as_json=json, quiet=quiet)
