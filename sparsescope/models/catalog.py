"""The names under which a subject can be asked for, without importing torch.

A name is, in this order: a registered name (write ``./name`` for a folder of that name), an existing folder,
an existing ``.gguf`` file, or a hub id ``organization/model``; ``NAME@REVISION`` is short for ``revision=``.
``KIND@ARGS:NAME`` is a variant of any of these (``variants.py``), as ``shuffled:NAME``, a control. Anything
else is refused at once, with near matches and without touching the network. What third parties need to add a
subject is exported here: ``SubjectEntry``, ``LoadRequest``, ``LoadedModel``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from sparsescope.core.files import given_path
from sparsescope.errors import SpecError, SubjectError, near_matches, unknown_name
from sparsescope.models.entries import LoadedModel as LoadedModel
from sparsescope.models.entries import LoadRequest as LoadRequest
from sparsescope.models.entries import SubjectEntry as SubjectEntry
from sparsescope.models.variants import VariantRequest, read_name
from sparsescope.models.zoo.registered import registered_subjects as registered_subjects

DTYPES = ("float32", "bfloat16", "float16")
ATTENTION = ("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3", "flash_attention_4")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_DEVICE = re.compile(r"cpu|cuda(:\d+)?|mps")


@dataclass(frozen=True, slots=True)
class Reference:
    """What a name was found to mean: the way to load it, and the request to load it with.

    Attributes:
        kind: The kind of place that the weights come from.
        request: What to load from there.
        entry: The registered subject, for that kind.
        variants: What to make of it, the outermost first; nothing for the subject as it is.
    """

    kind: Literal["registered", "folder", "gguf", "hub"]
    request: LoadRequest
    entry: SubjectEntry | None = None
    variants: tuple[VariantRequest, ...] = ()


def resolve(
    name: str | Path,
    revision: str | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
) -> Reference:
    """Say what ``name`` means. Looks at the disk and the registered names, never at the network.

    Raises:
        SpecError: A parameter has a wrong type or value.
        SubjectError: The name is no existing path, no registered name and no possible hub id, or of
            no kind of variant.
        DependencyError: The plug-in of a kind of variant cannot be used.
    """
    if not isinstance(name, str | Path) or not str(name).strip():
        raise SpecError(
            "a subject is loaded by name",
            where="load(name)",
            allowed="registered name, organization/model, folder, .gguf file",
            got=repr(name) if isinstance(name, str) else type(name).__name__,
            next_step="for a model that is already in memory call sparsescope.wrap(model, tokenizer)",
        )
    check_dtype(dtype)
    check_device_name(device)
    check_attention_name(attn_implementation)
    variants, text = read_name(str(name))
    if variants:
        return replace(
            resolve(text, revision, dtype, device, attn_implementation, trust_remote_code), variants=variants
        )
    path = given_path(text, "name of a subject")
    if not path.exists() and "@" in text:
        text, _, at_revision = text.rpartition("@")
        if revision not in (None, at_revision):
            raise SpecError(
                "the name and the parameter ask for different revisions",
                where="load(name, revision)",
                got=f"{name!s} and revision={revision!r}",
                next_step="give the revision once",
            )
        revision, path = at_revision, given_path(text, "name of a subject")
    request = LoadRequest(text, revision, dtype, device, attn_implementation, trust_remote_code)
    entries = registered_subjects()
    if text in entries:
        return Reference("registered", request, entries[text])
    if path.is_dir():
        return Reference("folder", request)
    if path.is_file():
        if path.suffix.lower() == ".gguf":
            return Reference("gguf", request)
        raise SubjectError(
            "this file is not a model that can be loaded",
            where=str(path),
            allowed="a .gguf file, or the folder that holds config.json",
            got=path.suffix or "a file without extension",
            next_step="give the folder written by save_pretrained",
        )
    if text.lower().endswith(".gguf") or text.startswith((".", "/", "~")) or "\\" in text:
        raise SubjectError(
            "there is no such file or folder",
            where=text,
            allowed="an existing model folder or .gguf file",
            next_step=_path_hint(path),
        )
    if HUB_ID.fullmatch(text) and ".." not in text:
        return Reference("hub", request)
    raise unknown_name(
        "subject",
        text,
        entries,
        next_step="`sparsescope list subjects` lists them; hub models are named organization/model, "
        "variants KIND@ARGS:NAME",
        error=SubjectError,
    )


def _path_hint(path: Path) -> str:
    """Return a hint that names the closest neighbors of a missing path."""
    parent = path.parent
    try:
        siblings = sorted(child.name for child in parent.iterdir())[:1000]
    except OSError:
        return f"the folder {parent} cannot be read either: check the path"
    near = near_matches(path.name, siblings)
    return f"did you mean {' or '.join(near)}?" if near else "check the path"


def check_dtype(dtype: object) -> None:
    """Refuse a dtype that is not one of ``DTYPES``.

    Raises:
        SpecError: Always, when it is not.
    """
    if dtype not in DTYPES:
        raise SpecError(
            "unknown dtype",
            where="load(dtype)",
            allowed=DTYPES,
            got=repr(dtype),
            next_step='give the name as a string, for example dtype="float32"',
        )


def check_device_name(device: object) -> None:
    """Refuse a device that is not written as ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises:
        SpecError: Always, when it is not.
    """
    if not isinstance(device, str) or not _DEVICE.fullmatch(device):
        raise SpecError(
            "unknown device",
            where="load(device)",
            allowed="cpu, cuda, cuda:N, mps",
            got=repr(device),
            next_step='give the name as a string, for example device="cpu"',
        )


def check_attention_name(name: object) -> None:
    """Refuse an attention implementation that is not in ``ATTENTION``; None is allowed.

    transformers also takes names of kernels on the hub and fetches them; we do not, because code
    is fetched only on explicit demand.

    Raises:
        SpecError: Always, when it is not.
    """
    if name is not None and name not in ATTENTION:
        raise SpecError(
            "unknown attention implementation",
            where="load(attn_implementation)",
            allowed=ATTENTION,
            got=repr(name),
            next_step="leave it out to take the default of transformers",
        )
