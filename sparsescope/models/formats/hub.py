"""Load a model of the Hugging Face hub: the local cache first, then one short look online.

A complete cached snapshot is used without asking the network, so a repeated run is quick and
gives the same weights; the revision that it holds is recorded as a commit hash. Without a
route to the hub the answer comes after one connection attempt of at most 1.5 seconds. Code
of a repository is fetched only with ``trust_remote_code``, pickled weights only when the
repository has no safetensors.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sparsescope.errors import DependencyError, SubjectError, near_matches
from sparsescope.models.entries import LoadedModel, LoadRequest
from sparsescope.models.formats.config_checks import check_room
from sparsescope.models.formats.folder import check_layout, load_folder

PROBE_TIMEOUT_SECONDS = 1.5
_FLOATS = {"F64", "F32", "F16", "BF16"}  # as safetensors names them
_ALWAYS = ["*.json", "*.txt", "*.model", "*.jinja"]


def load_hub(
    request: LoadRequest, repository: str | None = None, registered: Iterable[str] = ()
) -> LoadedModel:
    """Load a hub model.

    Args:
        request: The parameters of ``load``; its name is the hub id unless ``repository`` is given.
        repository: Hub id ``organization/model``.
        registered: Names of subjects; where the hub has no such model, the error names those that are close.

    Raises:
        DependencyError: It is not in the local cache and the hub cannot be reached.
        SubjectError: The hub has no such model or revision, access to it is restricted, or it is larger than
            the free memory: this is said before anything is downloaded.
    """
    repository = repository or request.name
    folder = cached_snapshot(repository, request.revision)
    if folder is None:
        folder = _download(repository, request, registered)
    return load_folder(request, folder, revision=folder.name)


def cached_snapshot(repository: str, revision: str | None) -> Path | None:
    """Return the complete snapshot of a model in the local hub cache, or None. Never goes online."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repository, revision=revision, local_files_only=True))
        check_layout(folder)
    except (OSError, ValueError, SubjectError):  # LocalEntryNotFoundError is both of the first two
        return None
    return folder


def _download(repository: str, request: LoadRequest, registered: Iterable[str]) -> Path:
    """Fetch the files of a model and return the snapshot folder, named by its commit."""
    from huggingface_hub import snapshot_download

    info = _probe(repository, request.revision, registered)
    known = getattr(getattr(info, "safetensors", None), "parameters", None) or {}
    if known and all(name in _FLOATS for name in known):  # of quantized weights their number says little
        check_room(sum(known.values()), request.dtype, repository)
    names = [sibling.rfilename for sibling in info.siblings or []]
    weights = (
        "*.safetensors" if any(name.endswith(".safetensors") for name in names) else "pytorch_model*.bin"
    )
    code = ["*.py"] if request.trust_remote_code else []
    try:
        folder = snapshot_download(repository, revision=info.sha, allow_patterns=[*_ALWAYS, weights, *code])
    except Exception as error:  # network, disk and access errors of several libraries
        raise DependencyError(
            "the download from the model hub failed",
            where=repository,
            got=f"{type(error).__name__}: {str(error).strip()[:200]}",
            next_step="run the command again; finished files are kept",
        ) from error
    return Path(folder)


def _probe(repository: str, revision: str | None, registered: Iterable[str]) -> Any:
    """Ask the hub once, briefly, what it knows about a model.

    Returns:
        ``huggingface_hub.ModelInfo`` with the commit and the file names.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        raise _unreachable(repository, "HF_HUB_OFFLINE is set")
    try:
        return HfApi().model_info(repository, revision=revision, timeout=PROBE_TIMEOUT_SECONDS)
    except GatedRepoError as error:
        raise SubjectError(
            "access to this model is restricted by its owner",
            where=repository,
            next_step="accept the conditions on its hub page, then log in with `hf auth login`",
        ) from error
    except RevisionNotFoundError as error:
        raise SubjectError(
            "the model has no such revision",
            where=repository,
            got=repr(revision),
            next_step="look at the branches and commits on its hub page",
        ) from error
    except RepositoryNotFoundError as error:
        near = near_matches(repository, registered)
        raise SubjectError(
            "the hub has no such model, or it is private",
            where=repository,
            allowed="a public model, or a private one after `hf auth login`",
            next_step=f"check the spelling; registered names that are close: {', '.join(near) or 'none'}",
        ) from error
    except Exception as error:  # connection errors of httpx, and of whatever follows it
        raise _unreachable(repository, f"{type(error).__name__}: {str(error).strip()[:120]}") from error


def _unreachable(repository: str, reason: str) -> DependencyError:
    """Build the error for a model that is not cached while the hub cannot be reached."""
    return DependencyError(
        "the model hub cannot be reached, and the model is not in the local cache",
        where=repository,
        allowed="a cached model, a local folder, a .gguf file, or a registered subject",
        got=reason,
        next_step="go online once to fetch it, or copy the model and give its folder; "
        "`sparsescope report glassllm` works without a hub",
    )
