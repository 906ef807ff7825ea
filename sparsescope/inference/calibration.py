"""A calibration: the masks of a method at one target on one model, how they were found, and as an artifact.

Thresholds found in the dense model do not give the same sparsity once the blocks before are sparse. So the
sparse model reads the calibration text again, thresholds are set on what it now reads, and so on until the
bytes that it skips there are within half a point of the target.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsescope.core.shown import Shown
from sparsescope.errors import ArtifactError, SubjectError
from sparsescope.inference.calibrator import Calibrator, check_reach, check_target, policy_of
from sparsescope.inference.install import install
from sparsescope.inference.masks import Mask, masks_digest
from sparsescope.inference.methods import read_method, recipe_of
from sparsescope.inference.prefix import PrefixPolicy, check_sinks

if TYPE_CHECKING:
    from sparsescope.core.artifact_store import ArtifactStore
    from sparsescope.core.artifacts import Artifact
    from sparsescope.inference.statistics import Inputs
    from sparsescope.models.subject import Subject

KIND, FORMAT = "calibration", "sparsescope-calibration"
TOLERANCE = 0.005
ROUNDS = 4
_FILE, _TENSORS = "calibration.json", "masks.safetensors"


@dataclass(frozen=True, slots=True, repr=False)
class Calibration(Shown):
    """Masks for one model.

    Attributes:
        masks: In the order of the model.
        method: ``teal+greedy``.
        target: Share of the block-matrix bytes that was asked for.
        prefix: The prefix policy, as it is written.
        facts: The model (id, weight_hash), the text, what was realised there, rounds, seconds: JSON values.
    """

    masks: tuple[Mask, ...]
    method: str
    target: float
    prefix: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    def _shown(self) -> dict[str, object]:
        return {
            "method": self.method,
            "target": self.target,
            "realised": self.facts.get("realised"),
            "prefix": self.prefix,
            "model": (self.facts.get("model") or {}).get("id"),
            "masks": len(self.masks),
        }

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of all that the masks and the policy compute with."""
        return masks_digest(self.masks, {"prefix": self.prefix})

    @property
    def realised(self) -> float:
        """Share of the block-matrix bytes skipped on the calibration text, adapters taken off."""
        return float(self.facts["realised"])

    def apply(self, subject: Subject, prefix: str | PrefixPolicy | None = None) -> Subject:
        """Return the sparse model; the given one stays as it is.

        Args:
            subject: The model that was calibrated.
            prefix: Another policy than the calibrated one.

        Raises:
            SubjectError: The subject is another model than the calibrated one.
        """
        self.check(subject)
        policy = PrefixPolicy.of(self.prefix if prefix is None else prefix)
        made = install(subject, self.masks, policy)
        parameters = {"method": self.method, "target": self.target}
        if policy.kind != "all_sparse":
            parameters["prefix"] = policy.text.replace(":", "=")
        for name in ("scope", "sinks"):
            if name in self.facts:
                parameters[name] = self.facts[name]
        parameters["calibration"] = self.digest[:12]
        return made.with_variant(
            "sparsified", parameters, of=subject, adds=masks_digest(self.masks, {"prefix": policy.text})
        )

    def check(self, subject: Subject) -> None:
        """Check that it was made for a model.

        Raises:
            SubjectError: It is of other weights.
        """
        expected, got = self.facts["weight_hash"], subject.identity.weight_hash
        if expected != got:
            raise SubjectError(
                "this calibration was made for another model",
                where=subject.id,
                allowed=f"{self.facts['subject']} (weights {expected[:12]})",
                got=f"weights {got[:12]}",
                next_step="calibrate this model: sparsify(subject, method=..., target=..., corpus=...)",
            )

    def save(self, store: ArtifactStore | None = None, made_by: str = "sparsify") -> Artifact:
        """Keep it as an artifact.

        Args:
            store: Where; the folder of runs when None.
            made_by: What made it.
        """
        from safetensors.torch import save_file

        from sparsescope.core.artifact_store import ArtifactStore
        from sparsescope.core.run_store import home

        store = store or ArtifactStore(home())
        told = {
            name: value for name, value in self.facts.items() if name != "seconds"
        }  # no part of what it is
        facts = {
            "method": self.method,
            "target": self.target,
            "prefix": self.prefix,
            "facts": told,
        }
        with store.keep(KIND, format=FORMAT, made_by=made_by) as writer:
            listed = [mask.facts() for mask in self.masks]
            text = json.dumps({**facts, "masks": listed}, indent=1, sort_keys=True)
            (writer.folder / _FILE).write_text(text + "\n", encoding="utf-8")
            tensors = {
                f"{number}.{name}": tensor.contiguous().clone()
                for number, mask in enumerate(self.masks)
                for name, tensor in mask.tensors().items()
            }
            save_file(tensors, str(writer.folder / _TENSORS))
        return writer.artifact

    @classmethod
    def load(cls, artifact: Artifact | str | Path) -> Calibration:
        """Open one that was saved.

        Args:
            artifact: The artifact, or its folder.

        Raises:
            ArtifactError: It is no calibration, or damaged.
        """
        from safetensors.torch import load_file

        from sparsescope.core.artifacts import Artifact

        if not isinstance(artifact, Artifact):
            artifact = Artifact.of_folder(KIND, artifact, FORMAT)
        try:
            read = json.loads(artifact.path_of(_FILE, check=True).read_text(encoding="utf-8"))
            tensors = load_file(str(artifact.path_of(_TENSORS, check=True)))
            masks = []
            for number, facts in enumerate(read["masks"]):
                head = f"{number}."
                own = {name.removeprefix(head): t for name, t in tensors.items() if name.startswith(head)}
                masks.append(Mask.of(facts, own))
            return cls(tuple(masks), read["method"], read["target"], read["prefix"], read["facts"])
        except (KeyError, ValueError, TypeError, OSError) as error:
            raise ArtifactError(
                "this is no calibration of sparse inference",
                where=str(artifact.path),
                allowed=f"a folder with {_FILE} and {_TENSORS}",
                got=f"{type(error).__name__}: {error}"[:200],
                next_step="make it again: sparsescope sparsify SUBJECT --method auto --target 0.4",
            ) from error


def calibrate(
    bench: Calibrator,
    method: str,
    target: float,
    prefix: str | PrefixPolicy = "all_sparse",
    sinks: str = "sparse",
    after: float | None = None,
) -> Calibration:
    """Find the masks of a method for one target.

    Args:
        bench: The model and its calibration text.
        method: ``METHOD[+ALLOCATION]``.
        target: Share of the block-matrix bytes, in [0, 1).
        prefix: The prefix policy; statistics are of its sparse positions.
        sinks: ``"dense"``: tokens whose scaled inputs have a norm of more than eight times the usual one keep
            them all, input by input, and count in no threshold.
        after: A smaller target that was calibrated before in the same way: what a model reads that is nearly
            as sparse tells more than what the dense one reads, and saves a round.

    Raises:
        SpecError: The target, the method or the policy is not valid, or the method cannot reach the target.
        SubjectError: The subject is not fit for the method.
    """
    check_target(target)
    known, _ = read_method(method)
    check_sinks(sinks)
    policy = policy_of(prefix, bench.text)
    recipe = recipe_of(method, bench)
    check_reach(known.title, target, recipe.ceiling)
    begun = time.perf_counter()
    earlier = bench.kept.sparse_counts.get((method, policy, sinks, after))
    found = dense_counts(bench, method) if earlier is None else earlier
    masks = bench.with_sinks(recipe.place(found, target), sinks)
    best: tuple[float, list[Mask], float, dict[str, tuple[int, int]]] | None = None
    for rounds in range(1, ROUNDS + 1):
        sparse = install(bench.subject, masks, policy)
        found = bench.count(
            sparse,
            _keys(bench.with_sinks(recipe.masks(), sinks)),
            f"calibration: {method} at {100 * target:g} %, round {rounds}",
        )
        realised = realised_share(bench, masks, found)
        if best is None or abs(realised - target) < best[0]:
            best = (abs(realised - target), masks, realised, found.kept)
        bench.kept.sparse_counts[method, policy, sinks, target] = found
        if best[0] <= TOLERANCE:
            break
        masks = bench.with_sinks(recipe.place(found, target), sinks)
    assert best is not None
    facts = {
        "subject": bench.subject.id,
        "weight_hash": bench.weight_hash,
        "corpus": bench.text.name,
        "corpus_digest": bench.text.digest,
        "tokens": bench.text.n_tokens,
        "documents": len(bench.text.documents),
        "realised": best[2],
        "dropped": [round(1 - _share(best[3].get(mask.name, (1, 1))), 6) for mask in best[1]],
        "rounds": rounds,
        "seconds": round(time.perf_counter() - begun, 2),
    }
    if sinks != "sparse":
        facts["sinks"] = sinks
    if bench.scope != "blocks":
        facts["scope"] = bench.scope
    return Calibration(tuple(best[1]), method, target, policy.text, facts)


def _share(counted: tuple[int, int]) -> float:
    kept, there = counted
    return kept / there if there else 1.0


def dense_counts(bench: Calibrator, method: str) -> Inputs:
    """Counts of the scores of a method in the dense model; kept by the calibrator."""
    kept = bench.kept.dense_counts
    if method not in kept:
        recipe = recipe_of(method, bench)
        masks = recipe.masks()
        with bench.timed("reading the text"):
            kept[method] = bench.count(bench.subject, _keys(masks), f"calibration: {method}")
    return kept[method]


def realised_share(bench: Calibrator, masks: Sequence[Mask], found: Inputs) -> float:
    """Share of the block-matrix bytes that was skipped, products of low rank taken off. A rotation, which the
    published figures leave out, is not: ``adapter_weights`` has it.
    """
    saved = 0.0
    for mask in masks:
        kept, there = found.kept.get(mask.name, (0, 0))
        if there:
            saved += bench.weights(mask) * (1 - kept / there)
        saved -= sum(pair.weights for pair in mask.low_rank.values())
    return saved / bench.total_weights


def adapter_weights(masks: Sequence[Mask]) -> int:
    """Weights that masks add to what every token reads: products of low rank, a rotation once for each
    input.
    """
    low = sum(pair.weights for mask in masks for pair in mask.low_rank.values())
    turned = {mask.group: mask.rotation.numel() for mask in masks if mask.rotation is not None}
    return low + sum(turned.values())


def _keys(masks: Sequence[Mask]) -> dict[str, Mask]:
    return {mask.counted_as: mask for mask in masks}
