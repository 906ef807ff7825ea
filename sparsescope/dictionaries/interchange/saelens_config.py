"""The configuration of a SAELens folder: what version 6 writes, and what older versions wrote.

Which fields there are is that of SAELens 6.54.12 (``saes/*.py``), the move to version 6 that of its
``loading/pretrained_sae_loaders.py::handle_pre_6_0_config``. What SAELens drops without a word is kept here,
and what would compute something else than is read is refused by its name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from sparsescope.dictionaries.autoencoder import DTYPES
from sparsescope.dictionaries.interchange.reading import Config
from sparsescope.errors import near_matches

#: Version of SAELens whose layout is written.
VERSION = "6.54.12"
CONFIG, WEIGHTS, SPARSITY = "cfg.json", "sae_weights.safetensors", "sparsity.safetensors"
SCALER = "activation_scaler.json"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Architecture strings that are read, with the class that they are here.
READ = {
    "standard": "relu",
    "gated": "gated",
    "topk": "topk",
    "abstopk": "abstopk",
    "jumprelu": "jumprelu",
    "batchtopk": "jumprelu",
    "matryoshka_batchtopk": "jumprelu",
    "transcoder": "relu",
    "skip_transcoder": "relu",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
}
#: Those of training, which SAELens exports as jumprelu.
OF_BATCHES = ("batchtopk", "matryoshka_batchtopk")
_REFUSED = {
    "matching_pursuit": "its codes are found feature by feature from the residual, not by one encoder",
    "temporal": "its codes depend on earlier positions",
}
_NOT_NORMALIZED = {
    "constant_norm_rescale": "each row would be scaled to one norm, which codes alone do not say",
    "covariance_whitening": "the whitening is folded by SAELens when training ends, and is not in this file",
}

#: What SAELens keeps under ``metadata``.
METADATA = _words(
    "model_name hook_name model_class_name hook_head_index model_from_pretrained_kwargs prepend_bos "
    "exclude_special_tokens neuronpedia_id context_size seqpos_slice dataset_path sae_lens_version "
    "sae_lens_training_version hook_name_out hook_head_index_out hf_hook_name hf_hook_name_out "
    "sequence_separator_token disable_concat_sequences training_architecture "
    "training_architecture_details"
)
_COMMON = _words(
    "d_in d_sae dtype device apply_b_dec_to_input normalize_activations reshape_activations metadata "
    "architecture finetuning_scaling_factor"
)
_TRAINING = _words(
    "decoder_init_norm l1_coefficient l1_warm_up_steps lp_norm use_sparse_activations aux_loss_coefficient "
    "topk_threshold_lr matryoshka_widths use_matryoshka_aux_loss jumprelu_init_threshold jumprelu_bandwidth "
    "jumprelu_sparsity_loss_mode l0_coefficient l0_warm_up_steps pre_act_loss_coefficient "
    "jumprelu_tanh_scale jumprelu_ste_to_input target_l0"
)
_RENAMED = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
#: Fields of versions before 6 whose values are looked at, or that only training has.
_OLD = _words(
    "activation_fn activation_fn_kwargs normalize_sae_decoder scale_sparsity_penalty_by_decoder_norm "
    "dataset_trust_remote_code"
)
_COMPUTES = re.compile(r"^(activation|normalize|rescale|apply|reshape|postact)_|scaling_factor|whiten")


@dataclass(slots=True)
class Described:
    """What a configuration says.

    Attributes:
        architecture: As SAELens names it.
        d_in: Width of what is read.
        d_sae: Number of features.
        d_out: Width of what is written.
        dtype: Type of the parameters.
        subtract: Whether the decoder bias is subtracted before encoding.
        normalize: ``none`` or ``layer_norm``.
        scaled: Whether activations are scaled by a factor that a file beside this one gives.
        finetuned: Whether features are scaled before decoding by a tensor of the file.
        k: Active features of a row, None where it has none.
        rescale: Whether scores are multiplied with the norms of decoder rows.
        hook_z: Whether rows are [head, d_head].
        metadata: Everything under ``metadata``.
        others: Fields that change nothing that is computed.
    """

    architecture: str
    d_in: int
    d_sae: int
    d_out: int
    dtype: str
    subtract: bool
    normalize: str
    scaled: bool
    finetuned: bool
    k: float | None
    rescale: bool
    hook_z: bool
    metadata: dict[str, Any]
    others: dict[str, Any] = field(default_factory=dict)

    @property
    def is_transcoder(self) -> bool:
        """Whether it writes another site than it reads."""
        return self.architecture.endswith("transcoder")


def describe(config: Config) -> Described:
    """Read the fields of a configuration of any version.

    Raises:
        ArtifactError: A field is missing, has an impossible value, or is unknown and might compute something.
    """
    others: dict[str, Any] = {}
    if _is_old(config):
        config, others = _migrated(config)
    architecture = _architecture(config)
    transcoder = architecture.endswith("transcoder")
    with_k = architecture in ("topk", "abstopk", *OF_BATCHES)
    known = _COMMON | METADATA | _TRAINING
    known |= {"k", "rescale_acts_by_decoder_norm"} if with_k else set()
    known |= {"d_out"} if transcoder else set()
    config.refuse_others(known)
    d_sae = config.whole("d_sae")
    k: float | None = None
    if architecture in OF_BATCHES:
        k = config.fields.get("k")
        if isinstance(k, bool) or not isinstance(k, int | float) or not 0 < k <= d_sae:
            raise config.fault("k", f"a number above 0 and at most {d_sae}, the number of features", k)
    elif with_k:
        k = config.whole("k", 1, d_sae, "the number of features")
    normalize = config.choice(
        "normalize_activations", ("none", "layer_norm", "expected_average_only_in", *_NOT_NORMALIZED), "none"
    )
    if normalize in _NOT_NORMALIZED:
        raise config.fault(
            "normalize_activations", "none, layer_norm, expected_average_only_in with its factor", normalize,
            f"dictionaries with {normalize} cannot be read: {_NOT_NORMALIZED[normalize]}",
        )  # fmt: skip
    if normalize == "layer_norm" and transcoder:
        raise config.fault(
            "normalize_activations", "none", normalize,
            "transcoders with layer_norm cannot be read: SAELens does not undo it in their output",
        )  # fmt: skip
    subtract = config.flag("apply_b_dec_to_input", not transcoder)
    if transcoder and subtract:
        raise config.fault("apply_b_dec_to_input", "false, for a transcoder", subtract)
    metadata = {key: value for key, value in config.fields.items() if key in METADATA}
    metadata |= config.part("metadata").fields
    others |= {key: config.fields[key] for key in sorted(_TRAINING & config.fields.keys())}
    d_in = config.whole("d_in")
    return Described(
        architecture=architecture,
        d_in=d_in,
        d_sae=d_sae,
        d_out=config.whole("d_out") if transcoder else d_in,
        dtype=config.choice("dtype", [*DTYPES, *(f"torch.{name}" for name in DTYPES)], "float32"),
        subtract=subtract,
        normalize="layer_norm" if normalize == "layer_norm" else "none",
        scaled=normalize == "expected_average_only_in",
        finetuned=config.flag("finetuning_scaling_factor", False),
        k=k,
        rescale=with_k and config.flag("rescale_acts_by_decoder_norm", architecture in OF_BATCHES),
        hook_z=config.choice("reshape_activations", ("none", "hook_z"), "none") == "hook_z",
        metadata=metadata,
        others=others,
    )


def _architecture(config: Config) -> str:
    name = config.fields.get("architecture")
    if isinstance(name, str) and name in READ:
        return name
    if isinstance(name, str) and name in _REFUSED:
        raise config.fault(
            "architecture", list(READ), name, f"dictionaries of {name} cannot be read: {_REFUSED[name]}"
        )
    if not isinstance(name, str):
        raise config.fault("architecture", list(READ), name)
    near = " or ".join(near_matches(name[:80], READ))
    hint = f"did you mean {near}?" if near else "this architecture is not read"
    raise config.fault("architecture", list(READ), name, hint)


def _is_old(config: Config) -> bool:
    """Whether a version before 6 wrote it, as SAELens decides."""
    version = config.fields.get("sae_lens_version") or config.part("metadata").fields.get("sae_lens_version")
    if not version:
        return True
    found = re.match(r"v?(\d+)((?:\.\d+)*)(.*)", version.strip()) if isinstance(version, str) else None
    if found is None:
        raise config.fault("metadata.sae_lens_version", 'a version, for example "6.54.12"', version)
    first = int(found[1])
    early = first == 6 and not found[2].strip(".0") and re.match(r"[-._]?(a|b|dev)", found[3])
    return first < 6 or bool(early)


def _migrated(config: Config) -> tuple[Config, dict[str, Any]]:
    """The fields that version 6 would have, and what is left over.

    Raises:
        ArtifactError: A field computes what version 6 cannot.
    """
    old = {_RENAMED.get(key, key): value for key, value in config.fields.items()}
    plain = Config(config.path, old)
    new = {key: value for key, value in old.items() if key in _COMMON and value is not None}
    new |= {key: value for key, value in old.items() if key in METADATA}
    new.setdefault("architecture", "standard")
    activation, details = old.get("activation_fn") or "relu", plain.part("activation_fn_kwargs")
    if activation not in ("relu", "topk"):
        raise plain.fault("activation_fn", "relu, topk", activation, "this activation function is not read")
    details.refuse_others(("k",))
    if activation == "topk":
        new["k"] = details.whole("k", 1, plain.whole("d_sae"), "the number of features")
        new["architecture"] = "topk"
    elif new["architecture"] == "topk":
        new["k"] = details.fields.get("k", old.get("k"))
    if "d_out" in old and str(new["architecture"]).endswith("transcoder"):
        new["d_out"] = old["d_out"]
    normalize = new.get("normalize_activations")
    if isinstance(normalize, bool):
        new["normalize_activations"] = "expected_average_only_in" if normalize else "none"
    new.setdefault("prepend_bos", True)
    new.setdefault("apply_b_dec_to_input", not str(new["architecture"]).endswith("transcoder"))
    hook = str(new.get("hook_name", ""))
    new.setdefault("reshape_activations", "hook_z" if "hook_z" in hook else "none")
    others = {key: value for key, value in old.items() if key not in new and value is not None}
    for key, value in others.items():
        if _COMPUTES.search(key) and key not in _OLD and value is not False:
            raise plain.fault(
                key, "fields of SAELens 2 to 5", value, "this field might change what is computed"
            )
    return Config(config.path, new), others
