"""SNMF as a scikit-learn estimator: rows are tokens, columns are neurons (arXiv:2506.10920).

X ~ G H with codes G >= 0 and components H that are signed and have few non-zero neurons each. A token is a
sum of features and never a difference; a feature is a group of neurons. ``transform`` solves the
non-negative least squares problem of each row exactly, so what a row gets depends on nothing but that row.
Shapes: n rows, d neurons, k components.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import scipy.sparse
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin, _fit_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from sparsescope.dictionaries.snmf.rows import Array, Rows, Sums, gram, threads
from sparsescope.dictionaries.snmf.solver import Iterate, Settings, dictionary_step, factorize, support_size
from sparsescope.dictionaries.snmf.start import start_codes
from sparsescope.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from sparsescope.dictionaries.snmf.sharing import NeuronSharing
    from sparsescope.dictionaries.snmf.vocabulary import VocabularyProjection

#: Iterations in a row that must gain less than ``tol``.
_PATIENCE = 3
#: Iterations on the first batch of ``partial_fit``, which starts the dictionary.
_FIRST_BATCH = 20


class SNMF(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Semi-nonnegative matrix factorization with a row-sparse dictionary.

    Args:
        n_components: k, features.
        sparsity: Share of the neurons that a component keeps: s = ceil(sparsity d); 1 for a dense dictionary.
        sparsity_scope: ``"row"``: s neurons in each component; ``"global"``: k s in all of them.
        init: Codes to start from: ``"nndsvd"`` (always the same), ``"kmeans"`` or ``"random"``.
        solver: Rule of the codes: ``"hals"`` (coordinate descent), or ``"mu"`` (multiplicative, as published;
            with ``refit_support=False, monotone=False, inner_iter=1`` the published iteration).
        refit_support: Fit components again on the neurons that they keep.
        monotone: Accept only dictionaries that do not raise the loss.
        anneal_iter: Iterations in which the kept neurons go down from d to s. Cold starts reached lower
            losses on MLP activations; ``loss_curve_`` begins where s is reached.
        center: Take the mean of the rows off. Off by default: a sum of features needs a natural zero.
        scale: Divide by the standard deviation of each neuron. Errors are then measured in these units.
        inner_iter: Sweeps over the codes in each iteration.
        tol: Stop when three iterations in a row lower the loss by less than this share of the energy of X.
        max_iter: Most iterations.
        n_init: Starts, of which the one of lowest loss is kept; those after the first of ``"nndsvd"``, which
            has one start only, are ``"kmeans"``.
        forget_factor: ``partial_fit``: what is known is weighted by forget_factor^(rows of the batch / rows
            seen).
        random_state: Source of all randomness; NumPy's global generator only for None.

    Attributes:
        components_: H, [k, d], rows of unit norm or zero, by explained energy at the end of ``fit``.
        n_components_: k.
        n_features_in_: d.
        reconstruction_err_: |w^(1/2) (X - G H)|, the Frobenius norm, from float64 sums.
        explained_variance_ratio_: [k], what the explained share of the variance loses if a component is
            removed and the codes of the others stay: |w^(1/2) g_c|^2 |h_c|^2 / variance.
        total_explained_variance_ratio_: 1 - squared error / sum of w |x - mean|^2.
        component_usage_: [k], sums of the codes, weighted.
        support_sizes_: int64 [k], neurons of each component.
        loss_curve_: Squared error after each iteration (``partial_fit``: mean squared error of each batch
            per row).
        n_iter_: Iterations done.
        converged_: Whether ``tol`` was reached.
        mean_, scale_: [d], or None.
        n_samples_seen_: Rows seen.

    Example:
        >>> x = np.abs(np.random.default_rng(0).normal(size=(60, 8)))
        >>> SNMF(3, sparsity=0.5).fit(x).support_sizes_.tolist()
        [4, 4, 4]
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "sparsity": [Interval(Real, 0, 1, closed="right")],
        "sparsity_scope": [StrOptions({"row", "global"})],
        "init": [StrOptions({"nndsvd", "kmeans", "random"})],
        "solver": [StrOptions({"hals", "mu"})],
        "refit_support": ["boolean"],
        "monotone": ["boolean"],
        "anneal_iter": [Interval(Integral, 0, None, closed="left")],
        "center": ["boolean"],
        "scale": ["boolean"],
        "inner_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "n_init": [Interval(Integral, 1, None, closed="left")],
        "forget_factor": [Interval(Real, 0, 1, closed="both")],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_components: int = 100,
        *,
        sparsity: float = 0.01,
        sparsity_scope: Literal["row", "global"] = "row",
        init: Literal["nndsvd", "kmeans", "random"] = "nndsvd",
        solver: Literal["hals", "mu"] = "hals",
        refit_support: bool = True,
        monotone: bool = True,
        anneal_iter: int = 0,
        center: bool = False,
        scale: bool = False,
        inner_iter: int = 3,
        tol: float = 1e-4,
        max_iter: int = 200,
        n_init: int = 1,
        forget_factor: float = 0.7,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_components = n_components
        self.sparsity = sparsity
        self.sparsity_scope = sparsity_scope
        self.init = init
        self.solver = solver
        self.refit_support = refit_support
        self.monotone = monotone
        self.anneal_iter = anneal_iter
        self.center = center
        self.scale = scale
        self.inner_iter = inner_iter
        self.tol = tol
        self.max_iter = max_iter
        self.n_init = n_init
        self.forget_factor = forget_factor
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Learn components.

        Args:
            X: [n, d], float32 or float64; never written to, read-only memory maps are fine.
            y: Ignored.
            sample_weight: [n], not negative; a weight of 2 is the same as a row that is there twice.
        """
        self.fit_transform(X, y, sample_weight)
        return self

    @_fit_context(prefer_skip_nested_validation=True)  # type: ignore[untyped-decorator]
    def fit_transform(self, X: Any, y: Any = None, sample_weight: Any = None) -> np.ndarray:
        """Learn components and return the codes of X, [n, k]; the same as ``fit`` and ``transform``."""
        X = self._checked(X, reset=True)
        rows = self._rows(X, sample_weight)
        if self.max_iter <= self.anneal_iter:
            raise SpecError(
                "the support would not reach its final size",
                where="anneal_iter",
                allowed=f"less than max_iter, which is {self.max_iter}",
                got=self.anneal_iter,
            )
        random = check_random_state(self.random_state)
        runs = [self._run(rows, number, random) for number in range(self.n_init)]
        last, self.loss_curve_, self.n_iter_, self.converged_ = min(runs, key=lambda run: run[0].loss)
        if not self.converged_:
            warnings.warn(
                f"no convergence in max_iter={self.max_iter} iterations; raise max_iter or tol",
                ConvergenceWarning,
                stacklevel=2,
            )
        energy = np.diag(last.sums.codes) * (last.components**2).sum(1)
        order = np.argsort(-energy, kind="stable")
        self._keep(last.components[order], X.dtype)
        self.n_samples_seen_ = len(X)
        self._sums: Sums | None = None
        return self._measure(rows).astype(X.dtype, copy=False)

    @_fit_context(prefer_skip_nested_validation=True)  # type: ignore[untyped-decorator]
    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Learn from a batch and keep what earlier ones said as sums: rows need not fit into memory together.

        Components keep their numbers from batch to batch. Errors and usage are those of the last batch.

        Args:
            X: [n, d], one batch; any size, better well above k.
            y: Ignored.
            sample_weight: [n], not negative.

        Raises:
            SpecError: ``center`` or ``scale`` is on: batches would differ in what they mean.
        """
        if self.center or self.scale:
            raise SpecError(
                "batches cannot be centred or scaled",
                where="partial_fit",
                allowed="center=False, scale=False",
                next_step="subtract a fixed mean from the rows before, or use fit",
            )
        first = not hasattr(self, "components_")
        X = self._checked(X, reset=first)
        rows = self._rows(X, sample_weight)
        settings = self._settings(X.shape[1])
        if first:
            codes = start_codes(rows, self.n_components, self.init, check_random_state(self.random_state))
            *_, last = factorize(rows, codes, settings, min(self.max_iter, _FIRST_BATCH) + self.anneal_iter)
            components, self.n_samples_seen_, self.loss_curve_, self.n_iter_ = last.components, 0, [], 0
            self.converged_, self._sums = False, None
        else:
            components = self.components_.astype(np.float64)
        self.n_samples_seen_ += len(X)
        total, _ = rows.energy()
        known = getattr(self, "_sums", None)
        if known is not None:
            known = known.faded(self.forget_factor ** (len(X) / self.n_samples_seen_))
        for _ in range(self.inner_iter):
            with threads() as executor:
                codes, _ = rows.exact(components, executor)
            sums = rows.sums(codes, total)
            sums = sums if known is None else known + sums
            components = dictionary_step(sums, components, settings)
        self._sums = sums.rescaled(np.linalg.norm(components, axis=1))
        self._keep(components, X.dtype)
        self._measure(rows)
        self.n_iter_ += 1
        self.loss_curve_ = [*self.loss_curve_, self.reconstruction_err_**2 / rows.total_weight]
        return self

    @_fit_context(prefer_skip_nested_validation=True)  # type: ignore[untyped-decorator]
    def adopt(self, components: np.ndarray, X: Any) -> Self:
        """Take components from elsewhere, bring them to unit norm, and measure them on X.

        Args:
            components: [k, d] with k = ``n_components``.
            X: [n, d].

        Raises:
            SpecError: Another shape, or entries that are NaN or infinite.
        """
        X = self._checked(X, reset=True)
        given = np.asarray(components, np.float64)
        if given.shape != (self.n_components, X.shape[1]) or not np.isfinite(given).all():
            raise SpecError(
                "these components do not fit",
                where="components",
                allowed=f"finite, {[self.n_components, X.shape[1]]}",
                got=str(list(given.shape)),
            )
        rows = self._rows(X, None)
        self._keep(given, X.dtype)
        self._measure(rows)
        self.n_samples_seen_, self.n_iter_, self.loss_curve_ = len(X), 0, [self.reconstruction_err_**2]
        self.converged_, self._sums = False, None
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Return the exact non-negative codes of each row, [n, k], in the type of X."""
        rows = self.rows(X)
        with threads() as executor:
            codes, _ = rows.exact(self.components_.astype(np.float64), executor)
        return codes.astype(rows.x.dtype, copy=False)

    def inverse_transform(self, X: Any) -> np.ndarray:
        """Return the rows that codes stand for, [n, d]: G H, unscaled, plus the mean.

        Args:
            X: Codes, [n, k], dense or a SciPy sparse array.
        """
        check_is_fitted(self)
        out = (
            np.asarray(X @ self.components_) if scipy.sparse.issparse(X) else np.asarray(X) @ self.components_
        )
        out = out if self.scale_ is None else out * self.scale_
        return out if self.mean_ is None else out + self.mean_

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Return the explained share of the variance of X around its mean; 1 is best, it may be negative."""
        rows = self.rows(X, sample_weight)
        with threads() as executor:
            _, errors = rows.exact(self.components_.astype(np.float64), executor)
        return explained_share(float(rows.row_weights @ errors), rows.energy()[1])

    def rows(self, X: Any, sample_weight: Any = None) -> Rows:
        """Rows as the fitted estimator sees them: checked, centred and scaled."""
        check_is_fitted(self)
        X = self._checked(X, reset=False)
        return Rows(X, self._weights(X, sample_weight), self.mean_, self.scale_)

    @property
    def components_csr_(self) -> scipy.sparse.csr_array:
        """``components_`` as a SciPy array, [k, d]."""
        check_is_fitted(self)
        return scipy.sparse.csr_array(self.components_)

    def neuron_overlap(self) -> NeuronSharing:
        """Which components share neurons, and whether more than by chance; see ``sharing``."""
        from sparsescope.dictionaries.snmf.sharing import neuron_sharing

        check_is_fitted(self)
        return neuron_sharing(self.components_)

    def project_vocab(
        self,
        w_out: torch.Tensor,
        unembedding: torch.Tensor,
        norm: Callable[[torch.Tensor], torch.Tensor] | None = None,
        top: int = 25,
    ) -> VocabularyProjection:
        """Tokens that each component and its negative raise most; see ``vocabulary``."""
        from sparsescope.dictionaries.snmf.vocabulary import project_vocab

        check_is_fitted(self)
        scaled = self.components_ if self.scale_ is None else self.components_ * self.scale_
        return project_vocab(scaled, w_out, unembedding, norm=norm, top=top)

    def save(self, path: str | Path, provenance: Mapping[str, Any] | None = None) -> None:
        """Write ``snmf.safetensors`` and ``snmf.json`` into a folder; see ``file``."""
        from sparsescope.dictionaries.snmf.file import save

        save(self, path, provenance)

    @classmethod
    def load(cls, path: str | Path) -> SNMF:
        """Read what ``save`` wrote."""
        from sparsescope.dictionaries.snmf.file import load

        return load(path, cls)

    @property
    def _n_features_out(self) -> int:
        return self.n_components_

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def _checked(self, X: Any, *, reset: bool) -> np.ndarray:
        return validate_data(self, X, dtype=[np.float64, np.float32], reset=reset)

    def _weights(self, X: np.ndarray, sample_weight: Any) -> Array | None:
        if sample_weight is None:
            return None
        weights = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        if not weights.sum() > 0:
            raise ValueError("sample_weight is zero for all rows")
        return weights

    def _rows(self, X: np.ndarray, sample_weight: Any) -> Rows:
        """Rows with mean and scale taken from them."""
        rows = Rows(X, self._weights(X, sample_weight))
        self.mean_, self.scale_ = None, None
        if self.center or self.scale:
            mean, deviation = rows.moments()
            self.mean_ = mean if self.center else None
            self.scale_ = np.where(deviation > 0, deviation, 1) if self.scale else None
        return Rows(X, rows.weights, self.mean_, self.scale_)

    def _settings(self, neurons: int) -> Settings:
        return Settings(
            support_size(self.sparsity, neurons),
            self.sparsity_scope,
            self.solver,
            self.inner_iter,
            self.refit_support,
            self.monotone,
            self.anneal_iter,
        )

    def _run(
        self, rows: Rows, number: int, random: np.random.RandomState
    ) -> tuple[Iterate, list[float], int, bool]:
        """One start: the last state, the losses, the iterations, whether it converged."""
        init = "kmeans" if self.init == "nndsvd" and number else self.init
        codes = start_codes(rows, self.n_components, init, random)
        curve: list[float] = []
        small, done, converged = 0, 0, False
        for state in factorize(rows, codes, self._settings(rows.x.shape[1]), self.max_iter):
            last, done = state, done + 1
            if state.annealed:
                gained = curve[-1] - state.loss if curve else np.inf
                curve.append(state.loss)
                small = small + 1 if gained <= self.tol * max(state.sums.total, 1e-300) else 0
                converged = small >= _PATIENCE
            if converged:
                break
        # Fewer iterations than asked for: rounding left nothing to gain
        return last, curve, done, converged or done < self.max_iter

    def _keep(self, components: Array, dtype: np.dtype) -> None:
        norms = np.linalg.norm(components, axis=1, keepdims=True)
        unit = np.divide(components, norms, where=norms > 0, out=np.zeros_like(components))
        self.components_ = (unit + 0.0).astype(dtype)  # no negative zeros
        self.n_components_ = len(components)
        self.support_sizes_ = np.count_nonzero(self.components_, axis=1).astype(np.int64)

    def _measure(self, rows: Rows) -> Array:
        """Set what is said of the fit, by the exact codes, which are returned, float64 [n, k]."""
        components = self.components_.astype(np.float64)
        with threads() as executor:
            codes, errors = rows.exact(components, executor)
        weight = rows.row_weights
        squared, variance = float(weight @ errors), rows.energy()[1]
        self.reconstruction_err_ = float(np.sqrt(squared))
        energy = (weight @ codes**2) * np.diag(gram(components))
        self.explained_variance_ratio_ = energy / variance if variance > 0 else np.zeros_like(energy)
        self.total_explained_variance_ratio_ = explained_share(squared, variance)
        self.component_usage_ = weight @ codes
        return codes


def explained_share(squared: float, variance: float) -> float:
    """1 - squared error / variance; of constant rows 1 if they are explained, else 0."""
    if variance > 0:
        return 1 - squared / variance
    return float(squared == 0)
