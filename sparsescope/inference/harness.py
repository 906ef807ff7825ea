"""Tasks of the EleutherAI evaluation harness (lm_eval, Gao et al.) on dense and sparse subjects.

``harness_model`` wraps a subject as a model of lm_eval; ``evaluate`` runs tasks on it and says beside the
results which model they are of. lm_eval is the optional extra ``harness``, imported when either is called.

A likelihood task scores a continuation after a context. The context is the prompt: what the prefix policy
leaves dense is counted in it, so that a continuation is scored as if it had been decoded after that context.
Under ``decode_only`` the context is dense, and so is what predicts the first token of the continuation: an
answer of one token gets the score of the dense model. A text that is scored as a whole (perplexity) has no
prompt; there policies go by the window, as in ``activations.losses``. Generation decodes with a cache.

Not ``HFLM(pretrained=model)``: it pads on the right without a mask, so that shares of a window would be those
of the padded one, and generates by settings that the model brings along.
Shapes: B requests of at most T tokens; the last token of a request is not read, only predicted.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sparsescope.activations.continuations import continuations, end_tokens, takes_cache
from sparsescope.activations.losses import OutputHead, check_causal
from sparsescope.errors import DependencyError, SpecError, SubjectError
from sparsescope.inference.divergence import decoding_after, prompted_by
from sparsescope.inference.install import reading_of

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from sparsescope.models.subject import Subject

    #: What was asked (for a store of answers), tokens of the context, tokens of the continuation.
    Request = tuple[Any, list[int], list[int]]

BATCH, MAX_NEW, SEED = 8, 256, 1234
_LONGEST = 2048  # where a model sets no limit, as lm_eval has it
_KNOWN = frozenset({"until", "max_gen_toks", "max_new_tokens", "do_sample", "temperature"})
# Settings that change nothing at these values; tasks carry them along.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "top_p": (1, None),
    "top_k": (0, None),
    "num_beams": (1, None),
    "repetition_penalty": (1, None),
    "num_return_sequences": (1, None),
}


def evaluate(
    subject: Subject,
    tasks: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]],
    *,
    batch_size: int = BATCH,
    num_fewshot: int | None = None,
    limit: float | None = None,
    include_path: str | Path | None = None,
    seed: int = SEED,
    bootstrap: int = 1000,
    log_samples: bool = False,
    apply_chat_template: bool = False,
) -> dict[str, Any]:
    """Run tasks of lm_eval on a subject.

    Args:
        subject: A dense or sparse causal model with tokenizer.
        tasks: Names of tasks that lm_eval knows, or configurations of tasks.
        batch_size: Most requests in one pass.
        num_fewshot: Examples in front of each question; what the task says when None.
        limit: Questions of each task, or their share below 1; all when None.
        include_path: Folder with configurations of more tasks (YAML).
        seed: Of drawn examples and drawn tokens; global random states stay as they are.
        bootstrap: Resamples for the errors of metrics that are no mean.
        log_samples: Keep every question with its answer in the results.
        apply_chat_template: Put questions into the chat template of the tokenizer.

    Returns:
        What ``lm_eval.simple_evaluate`` gives, with ``"sparsescope"`` beside it: see ``described``.

    Raises:
        DependencyError: lm_eval is not installed.
        SubjectError: The subject predicts no next token, or has no tokenizer.
        SpecError: There are no tasks, or one generates in a way that is not known here.
    """
    listed = [tasks] if isinstance(tasks, str | Mapping) else list(tasks)
    if not listed:
        raise SpecError(
            "there is no task to run",
            where="evaluate(tasks)",
            allowed="names of tasks, or their configurations",
            next_step='for example ["arc_easy", "piqa"]; `lm_eval ls tasks` lists them',
        )
    model = harness_model(subject, batch_size=batch_size, seed=seed)
    manager = _harness("tasks").TaskManager(
        include_path=None if include_path is None else str(include_path),
        # Thousands of configurations, read in 5 seconds; they are for tasks that are named.
        include_defaults=any(isinstance(one, str) for one in listed),
    )
    with _random_states_kept():
        found: dict[str, Any] = _harness("evaluator").simple_evaluate(
            model=model,
            tasks=[one if isinstance(one, str) else dict(one) for one in listed],
            batch_size=batch_size,
            num_fewshot=num_fewshot,
            limit=limit,
            task_manager=manager,
            bootstrap_iters=bootstrap,
            log_samples=log_samples,
            apply_chat_template=apply_chat_template,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    return {**found, "sparsescope": described(subject)}


def harness_model(subject: Subject, batch_size: int = BATCH, seed: int = SEED) -> Any:
    """Wrap a subject as a model of lm_eval, to be given to ``lm_eval.simple_evaluate(model=...)``.

    lm_eval's store of answers (``use_cache``) goes by questions, not by models: give every subject its own
    file.

    Args:
        subject: A dense or sparse causal model with tokenizer; it is left as it is.
        batch_size: Most requests in one pass.
        seed: Of drawn tokens, for tasks that sample.

    Returns:
        An ``lm_eval.api.model.LM`` with loglikelihood, loglikelihood_rolling and generate_until.

    Raises:
        DependencyError: lm_eval is not installed.
        SubjectError: The subject predicts no next token, or has no tokenizer.
        SpecError: The size of a batch is less than 1.
    """
    check_causal(subject)
    if subject.tokenizer is None:
        raise SubjectError(
            "tasks are texts, and this subject has no tokenizer",
            where=subject.id,
            allowed="subjects with a tokenizer",
            next_step="ss.wrap(model, tokenizer)",
        )
    if batch_size < 1:
        raise SpecError(
            "batch_size must be at least 1",
            where="harness_model(batch_size)",
            allowed="1 or more",
            got=batch_size,
        )
    base = _harness("api.model").TemplateLM
    # Made here, because its base is imported here. Ours comes first: it fills in what is abstract there.
    made = type("SubjectLM", (SubjectModel, base), {"__doc__": SubjectModel.__doc__})
    return made(subject, batch_size, seed)


def described(subject: Subject) -> dict[str, Any]:
    """Say which model results are of, as JSON values.

    Returns:
        ``subject`` (its id), ``weight_hash``, ``method`` (``"dense"`` of a model that skips nothing),
        ``target`` (share of the block-matrix bytes), ``prefix`` (the policy; None of a dense model),
        ``calibration`` (its digest), ``variant`` (all that it was made with).
    """
    reading, variant = reading_of(subject), subject.variant
    parameters = {} if variant is None or reading is None else dict(variant.parameters)
    return {
        "subject": subject.id,
        "weight_hash": subject.identity.weight_hash,
        "method": parameters.get("method", "dense" if reading is None else "unnamed"),
        "target": parameters.get("target", 0.0 if reading is None else None),
        "prefix": None if reading is None else reading.policy.text,
        "calibration": parameters.get("calibration"),
        "variant": None if variant is None else {"kind": variant.kind, **variant.parameters},
    }


class SubjectModel:
    """What lm_eval asks of a model, answered by a subject; ``harness_model`` adds a class of lm_eval.

    Attributes:
        subject: The model.
        tokenizer: Its tokenizer.
        batch_size: Most requests in one pass.
    """

    backend = "causal"
    cache_hook: Any  # of the class of lm_eval

    def __init__(self, subject: Subject, batch_size: int, seed: int) -> None:
        super().__init__()
        self.subject, self.tokenizer = subject, subject.tokenizer
        self.batch_size, self.seed = batch_size, seed
        self._device = torch.device(subject.device)

    @property
    def eot_token_id(self) -> int:
        """The id that ends a text."""
        ends = end_tokens(self.subject)
        own = self.tokenizer.eos_token_id
        if own is not None or not ends:
            return int(own or 0)
        return min(ends)

    @property
    def prefix_token_id(self) -> int:
        """The id that stands before a text without context."""
        own = self.tokenizer.bos_token_id
        return self.eot_token_id if own is None else int(own)

    @property
    def max_length(self) -> int:
        """Most tokens that the model reads at once."""
        return self.subject.max_positions or _LONGEST

    @property
    def max_gen_toks(self) -> int:
        """Tokens that are written where a task does not say."""
        return min(MAX_NEW, max(1, self.max_length // 2))

    @property
    def tokenizer_name(self) -> str:
        """Name of the tokenizer, for the store of requests of lm_eval."""
        return str(self.tokenizer.name_or_path or self.subject.id).replace("/", "__")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A dialogue as the tokenizer writes it."""
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def get_model_info(self) -> dict[str, Any]:
        """What lm_eval keeps with its results: see ``described``."""
        return {"sparsescope": described(self.subject)}

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids of a text; with the special tokens of the tokenizer, unless it begins with one."""
        if add_special_tokens is None:
            begin = self.tokenizer.bos_token
            add_special_tokens = not (begin and string.startswith(begin))
        return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens))

    def _loglikelihood_tokens(self, requests: Sequence[Request], **_: Any) -> list[tuple[float, bool]]:
        """Sum of log p of every continuation after its context in nats, and whether it is the greedy one."""
        found = self._scores([(context, own) for _, context, own in requests], prompted=True)
        for (asked, *_tokens), answer in zip(requests, found, strict=True):
            if asked is not None:
                self.cache_hook.add_partial("loglikelihood", asked, answer)
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts in nats, in windows of the longest length that the model takes."""
        tools = _harness("utils")
        windows: list[tuple[list[int], list[int]]] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            cut = tools.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            mine = [tools.make_disjoint_window(window) for window in cut]
            windows += mine
            owners += [number] * len(mine)
        found = [0.0] * len(requests)
        for number, (score, _) in zip(owners, self._scores(windows, prompted=False), strict=True):
            found[number] += score
        for request, score in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, score)
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after contexts, up to the first text that ends it.

        Raises:
            SpecError: A task asks for a way to generate that is not known here.
        """
        groups: dict[Any, list[int]] = {}
        prompts: list[NDArray[np.int32]] = []
        cached = takes_cache(self.subject.model)
        for number, request in enumerate(requests):
            asked = self._settings(request.args[1])
            ids = self.tok_encode(request.args[0])[-(self.max_length - asked[1]) :]
            prompts.append(np.array(ids or [self.prefix_token_id], np.int32))
            # Without a cache, what is prompt is told for all rows of a pass at once.
            groups.setdefault((asked, 0 if cached else len(prompts[-1])), []).append(number)
        found = [""] * len(requests)
        for (asked, _), numbers in groups.items():
            texts = self._generated([prompts[number] for number in numbers], *asked)
            for number, text in zip(numbers, texts, strict=True):
                found[number] = text
                self.cache_hook.add_partial("generate_until", requests[number].args, text)
        return found

    def _generated(
        self, prompts: list[NDArray[np.int32]], until: tuple[str, ...], new: int, temperature: float
    ) -> list[str]:
        def text(ids: NDArray[np.int32]) -> str:
            return str(self.tokenizer.decode(ids.tolist(), skip_special_tokens=True))

        with decoding_after(self.subject, len(prompts[0])):
            written = continuations(
                self.subject,
                prompts,
                (),
                new,
                temperature=temperature,
                seed=self.seed,
                rows=self.batch_size,
                enough=lambda _, ids: any(end in text(ids) for end in until),
            )
        found = []
        for ids in written:
            whole = text(ids)
            places = [place for place in (whole.find(end) for end in until) if place >= 0]
            found.append(whole[: min(places)] if places else whole)
        return found

    def _settings(self, given: Mapping[str, Any]) -> tuple[tuple[str, ...], int, float]:
        """What ends a text, most new tokens, and the temperature (0: the most probable token)."""
        for name, value in given.items():
            if name not in _KNOWN and value not in _NEUTRAL.get(name, ()):
                raise SpecError(
                    "this way to generate is not known here",
                    where=f"generation_kwargs of the task: {name}",
                    allowed=", ".join(sorted(_KNOWN)),
                    got=value,
                    next_step="take it out of the configuration of the task",
                )
        until = given.get("until") or ()
        until = (until,) if isinstance(until, str) else tuple(until)
        asked = given.get("max_gen_toks", given.get("max_new_tokens"))
        new = self.max_gen_toks if asked is None else int(asked)
        if not 0 < new < self.max_length:
            raise SpecError(
                "there is no room for the context beside the new tokens",
                where="generation_kwargs of the task: max_gen_toks",
                allowed=f"1 to {self.max_length - 1}: {self.subject.id} takes {self.max_length} tokens",
                got=new,
                next_step="set max_gen_toks in the configuration of the task",
            )
        temperature = float(given.get("temperature") or 0.0)
        drawn = given.get("do_sample", temperature > 0)
        return tuple(end for end in until if end), new, (temperature or 1.0) if drawn else 0.0

    def _scores(
        self, requests: Sequence[tuple[list[int], list[int]]], *, prompted: bool
    ) -> list[tuple[float, bool]]:
        """Score continuations after contexts, each of one token or more.

        Args:
            requests: Tokens of context and continuation.
            prompted: Whether contexts are prompts that the prefix policy goes by; else windows are scored.

        Raises:
            SubjectError: A continuation is longer than the model takes, or a score is not finite.
        """
        found: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        lengths = [min(len(context) + len(own), self.max_length + 1) - 1 for context, own in requests]
        head: OutputHead | None = None
        for numbers in self._batches(lengths):
            ids = np.zeros((len(numbers), max(lengths[number] for number in numbers)), np.int64)
            mask = np.zeros(ids.shape, bool)
            chosen = np.zeros(ids.shape, bool)
            targets: list[int] = []
            starts = []
            for row, number in enumerate(numbers):
                context, own = requests[number]
                size = lengths[number]
                first = size - len(own) + 1  # tokens of the context that are left
                if first < 1:
                    raise SubjectError(
                        "a continuation is longer than what the model takes",
                        where=f"{self.subject.id}, request {number}",
                        allowed=f"{self.max_length} tokens with one of the context",
                        got=len(own),
                        next_step="leave the task out, or take a model with a longer window",
                    )
                ids[row, :size] = [*context, *own][-(size + 1) : -1]
                mask[row, :size] = True
                chosen[row, first - 1 : size] = True
                targets += own
                starts.append(first)
            padding = None if mask.all() else mask
            head = head or OutputHead(self.subject, ids, padding)
            with prompted_by(self.subject, starts if prompted else None):
                states = head.states(ids, padding)
            own_states = states[torch.from_numpy(chosen).to(states.device)]
            nll, _, greedy = head.score(own_states, torch.tensor(targets, device=states.device))
            if not np.isfinite(nll).all():
                raise SubjectError("a score is not finite", where=self.subject.id, got="NaN or infinity")
            ends = np.cumsum(chosen.sum(1))
            for row, number in enumerate(numbers):
                part = slice(ends[row] - len(requests[number][1]), ends[row])
                found[number] = (-float(nll[part].sum()), bool(greedy[part].all()))
        return found

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Requests that share a pass, the longest first; of one length where padding changes outputs."""
        order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
        pads = len(set(lengths)) > 1 and self.subject.takes_padding("right")
        batch: list[int] = []
        for number in order:
            same = not batch or pads or lengths[number] == lengths[batch[0]]
            if len(batch) == self.batch_size or not same:
                yield batch
                batch = []
            batch.append(number)
        if batch:
            yield batch


@contextmanager
def _random_states_kept() -> Iterator[None]:
    """Put the global random states back after a ``with`` block: lm_eval seeds them and draws from them."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _harness(name: str) -> Any:
    """A module of lm_eval.

    Raises:
        DependencyError: It is not installed.
    """
    try:
        return import_module(f"lm_eval.{name}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "lm_eval":
            raise
        raise DependencyError(
            "tasks of the evaluation harness need a package that is not installed",
            where="sparsescope.inference.harness",
            got=f"no module {error.name}",
            next_step="pip install 'sparsescope[harness]'",
        ) from None
