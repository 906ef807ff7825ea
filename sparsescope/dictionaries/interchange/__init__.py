"""Dictionaries of other tools: read from their files, and written as those of SAELens.

Which layout a folder has is known by the file of its weights:

- SAELens: ``sae_weights.safetensors`` with ``cfg.json``, of version 6 and of those before it.
- sparsify: ``sae.safetensors`` with ``cfg.json``.
- dictionary_learning: ``ae.pt`` with ``config.json``.
- Gemma Scope: ``params.npz``, or ``params.safetensors``.

What would not be read exactly is refused by its name. Importing this, and ``detect_format``, need no torch.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from sparsescope.core.files import given_path
from sparsescope.dictionaries.architectures import ALIASES, ARCHITECTURES
from sparsescope.errors import ArtifactError, SpecError

if TYPE_CHECKING:
    from sparsescope.dictionaries.autoencoder import SparseAutoencoder
    from sparsescope.dictionaries.base import Dictionary

#: Layouts with the names of the files that hold their weights.
FORMATS = {
    "saelens": ("sae_weights.safetensors",),
    "sparsify": ("sae.safetensors",),
    "dictionary_learning": ("ae.pt",),
    "gemma_scope": ("params.npz", "params.safetensors"),
}
_SHOWN = 3


def detect_format(path: str | Path) -> str:
    """Say which layout a folder or file has, one of ``FORMATS``, by its names alone.

    Args:
        path: The folder, or a file of weights in it.

    Raises:
        SpecError: There is nothing at this path.
        ArtifactError: It has none of the layouts, or several.
    """
    place = given_path(path, "dictionary")
    if not place.exists():
        raise SpecError(
            "there is no such file or folder",
            where="dictionary",
            allowed=_tried(),
            got=str(place),
            next_step="check the path",
        )
    if place.is_file():
        named = [form for form, names in FORMATS.items() if place.name in names]
        named = named or [
            form
            for ends, form in ((".pt", "dictionary_learning"), (".npz", "gemma_scope"))
            if place.suffix == ends
        ]
        if named:
            return named[0]
    else:
        found = _formats_in(place)
        if len(found) == 1:
            return found[0]
        if found:
            files = sorted(name for form in found for name in FORMATS[form] if (place / name).exists())
            raise ArtifactError(
                "the folder holds dictionaries of several layouts; which of them is meant cannot be said",
                where=str(place),
                allowed="one of: " + _tried(),
                got=f"{', '.join(found)} ({', '.join(files)})",
                next_step="give the file of the weights instead of the folder",
            )
    raise ArtifactError(
        "no layout of a dictionary fits",
        where=str(place),
        allowed="tried " + _tried(),
        got=_seen(place),
        next_step=_hint(place),
    )


def load_dictionary(
    path: str | Path, *, architecture: str | None = None, dtype: str | None = None
) -> SparseAutoencoder:
    """Read a dictionary that any of the tools wrote.

    Args:
        path: Its folder, or the file of its weights.
        architecture: What it must be, for example ``topk``; needed where files do not say it (``ae.pt``
            without its configuration).
        dtype: Type of the parameters, for example ``float32``; None for the one of the file.

    Raises:
        SpecError: There is nothing at this path, or architecture or type are unknown, or it is another
            architecture.
        ArtifactError: No layout fits, or a file is missing, damaged, or cannot be read exactly.

    Example:
        >>> from tempfile import mkdtemp
        >>> import sparsescope.dictionaries as d
        >>> folder = d.save_saelens(d.TopKSAE(8, 32, k=4), mkdtemp())
        >>> d.load_dictionary(folder).architecture
        'topk'
    """
    wanted = None if architecture is None else ALIASES.get(architecture, architecture)
    if wanted is not None and wanted not in ARCHITECTURES:
        raise SpecError(
            "this architecture is unknown",
            where="load_dictionary(architecture)",
            allowed=[*ARCHITECTURES, *ALIASES],
            got=repr(architecture)[:80],
        )
    place = given_path(path, "dictionary")
    form = detect_format(place)
    reader = import_module(f"{__name__}.{form}")
    if form in ("saelens", "sparsify") and place.is_file():
        place = place.parent
    more = [wanted] if form == "dictionary_learning" else []
    found: SparseAutoencoder = reader.load(place, dtype, *more)
    # A rule over a batch is exported as thresholds
    fits = {found.architecture} | (
        {"batch_topk", "matryoshka", "feature_choice"} if found.architecture == "jumprelu" else set()
    )
    if found.d_out != found.d_in or found.site_out:
        fits.add("transcoder")
    if wanted is not None and wanted not in fits:
        raise SpecError(
            "the dictionary has another architecture",
            where=str(place),
            allowed=found.architecture,
            got=architecture,
            next_step="leave architecture out, or give the path of another dictionary",
        )
    return found


def load_saelens(folder: str | Path) -> SparseAutoencoder:
    """Read a folder of SAELens, of any version.

    Raises:
        SpecError: There is nothing at this path.
        ArtifactError: A file is missing or damaged, or cannot be read exactly.
    """
    place = given_path(folder, "load_saelens(folder)")
    if not place.is_dir():
        raise SpecError(
            "there is no such folder",
            where="load_saelens(folder)",
            allowed="a folder with cfg.json and sae_weights.safetensors",
            got=str(place),
            next_step="check the path",
        )
    from sparsescope.dictionaries.interchange import saelens

    return saelens.load(place)


def save_saelens(dictionary: Dictionary, folder: str | Path) -> Path:
    """Write a dictionary as a folder that SAELens loads, with the rule that is exported.

    Args:
        dictionary: A sparse autoencoder or transcoder.
        folder: A new folder, or one that is empty.

    Returns:
        The folder.

    Raises:
        SpecError: SAELens has no dictionary of this kind, its thresholds are not set, or its metadata are no
            JSON.
        ArtifactError: The folder has files, or the disk refuses; nothing is left behind.
    """
    from sparsescope.dictionaries.interchange import saelens

    return saelens.save(dictionary, folder)


def _formats_in(folder: Path) -> list[str]:
    return [form for form, names in FORMATS.items() if any((folder / name).exists() for name in names)]


def _tried() -> str:
    return "; ".join(f"{form} ({' or '.join(names)})" for form, names in FORMATS.items())


def _seen(place: Path) -> str:
    if place.is_file():
        return place.name
    names = sorted(entry.name for entry in place.iterdir())
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more or "an empty folder"


def _hint(place: Path) -> str:
    """What to give instead: folders in it that have a layout, where there are some."""
    if (place / "snmf.safetensors").is_file():
        return "this is a factorization: load it with sparsescope.dictionaries.SNMF.load"
    if place.is_dir():
        inner = [entry.name for entry in sorted(place.iterdir()) if entry.is_dir() and _formats_in(entry)]
        if inner:
            more = f" and {len(inner) - _SHOWN} more" if len(inner) > _SHOWN else ""
            return f"give the folder of one dictionary: {', '.join(inner[:_SHOWN])}{more}"
    return "give the folder that the tool wrote, with its configuration and its weights"
