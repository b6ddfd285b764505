"""Checkpoints by hub id: out of the local cache where it has them, else downloaded."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from inlay.errors import InputError

__all__ = ["hub_folder", "is_hub_id"]

_TIMEOUT = 10.0
_REASON = {
    "GatedRepoError": "asks you to accept its terms and log in on the Hugging Face hub first",
    "RepositoryNotFoundError": "is not on the Hugging Face hub, or not visible to you",
}


def is_hub_id(name: str) -> bool:
    """Whether a name has the form owner/name."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name) is not None


def hub_folder(
    repo_id: str,
    complete: Callable[[Path], bool],
    wanted: Callable[[Sequence[str]], list[str]],
    what: str = "model",
) -> Path:
    """The local folder of a hub repository, of the files wanted(all its file names) alone.

    A cached copy that is complete(folder) is used without asking the network. HF_HUB_OFFLINE is
    respected. `what` is what messages call it. Raises InputError where it cannot be had.
    """
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        # The index alone is asked for: whether the rest is there, complete() knows better.
        cached = Path(
            snapshot_download(repo_id, local_files_only=True, allow_patterns=["model_index.json"])
        )
        if complete(cached):
            return cached
    except LocalEntryNotFoundError:
        pass
    except HFValidationError as error:
        raise InputError(f"The {what} {repo_id!r} is not a hub id, such as owner/name.") from error
    if constants.HF_HUB_OFFLINE:
        raise InputError(
            f"The {what} {repo_id} is not in the local cache and HF_HUB_OFFLINE forbids to "
            "fetch it: unset it or name a folder."
        )
    try:
        info = HfApi().model_info(repo_id, timeout=_TIMEOUT)
        names = wanted([file.rfilename for file in info.siblings or []])
        return Path(snapshot_download(repo_id, allow_patterns=names, etag_timeout=_TIMEOUT))
    except HfHubHTTPError as error:
        kinds = [_REASON[c.__name__] for c in type(error).__mro__ if c.__name__ in _REASON]
        reason = kinds[0] if kinds else "could not be fetched from the Hugging Face hub"
        raise InputError(f"The {what} {repo_id} {reason}.") from error
    except InputError:
        raise
    except Exception as error:
        # Whatever the network library of the day raises: there is nothing to be done about it here.
        raise InputError(
            f"The {what} {repo_id} is not in the local cache and the Hugging Face hub could not be "
            "reached: connect, or name a folder."
        ) from error
