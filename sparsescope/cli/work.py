"""What several verbs do: load a subject, make the corpus, run analyses with a progress bar, check the output.

Nothing heavy is imported here before it is needed.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sparsescope.errors import SpecError

if TYPE_CHECKING:
    from sparsescope.activations.corpus import Corpus as TextCorpus
    from sparsescope.activations.text.arguments import BosPolicy
    from sparsescope.core.result import Result
    from sparsescope.models.subject import Subject
    from sparsescope.runner.run import Outcome, Request


def load_subject(
    name: str, revision: str | None, dtype: str, device: str, attention: str | None, trust_remote_code: bool
) -> Subject:
    """Load a subject and say so, since it can take a while."""
    import logging

    from sparsescope.cli import console
    from sparsescope.models.catalog import resolve

    resolve(name, revision, dtype, device, attention, trust_remote_code)  # a wrong name is refused before torch is imported
    logger = logging.getLogger("sparsescope")
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    console.say(f"loading {name}")
    from sparsescope.models.sources import load

    return load(
        name,
        revision=revision,
        dtype=dtype,
        device=device,
        attn_implementation=attention,
        trust_remote_code=trust_remote_code,
    )


def run_requests(
    wanted: list[tuple[str, dict[str, Any]]],
    subject: Subject,
    corpus: str,
    tokens: int,
    context: int | None,
    seed: int,
    bos: str,
    batch_tokens: int,
    home: Path | None,
    *,
    again: bool = False,
    done: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Run analyses of a loaded subject with a progress bar; ``done`` is told of each outcome, see ``run_many``."""
    from sparsescope.cli import console
    from sparsescope.runner.run import Request, run_many

    text = make_text(corpus, tokens, context, seed, bos)
    requests: list[Request] = [Request(name, params) for name, params in wanted]
    with console.progress_bar() as progress:
        return run_many(
            requests, subject, text, store=home or True, progress=progress, batch_tokens=batch_tokens, again=again, done=done
        )


def make_text(corpus: str, tokens: int, context: int | None, seed: int, bos: str) -> TextCorpus:
    """Make the corpus. The verbs also call it before they load a model, so that a wrong option is found out at once."""
    from sparsescope.activations.corpus import corpus as make_corpus

    # What ``bos`` may be is checked there.
    return make_corpus(corpus, tokens=tokens, seed=seed, context=context, bos=cast("BosPolicy", bos))


def fitting(subject: Subject) -> list[tuple[str, dict[str, Any]]]:
    """Every analysis whose needs the subject meets, with default parameters.

    Raises:
        SpecError: If there is none.
    """
    from sparsescope.core.registry import analyses

    fitting: list[tuple[str, dict[str, Any]]] = [
        (record.name, {}) for record in analyses() if record.requires <= subject.capabilities
    ]
    if not fitting:
        raise SpecError(
            "no analysis fits this subject",
            where=subject.id,
            got=f"capabilities {', '.join(sorted(subject.capabilities))}",
            next_step="run: sparsescope list analyses",
        )
    return fitting


class GrowingReport:
    """Writes a report again whenever a further analysis is done, so that the first figures are there within a minute.

    Args:
        output: The HTML file.
        earlier: Results that are in it anyway.
        expected: How many results there will be.
    """

    SECONDS = 15.0

    def __init__(self, output: Path, earlier: list[Result], expected: int) -> None:
        self.output, self.expected = output, expected
        self.results = list(earlier)
        self._written = time.monotonic()

    def add(self, outcome: Outcome) -> None:
        """Take an outcome; write the report unless the last time was just now or the whole report comes next."""
        from sparsescope.cli import console
        from sparsescope.reporting.build import build

        if outcome.result is None:
            return
        self.results.append(outcome.result)
        early = time.monotonic() - self._written < self.SECONDS
        if early or len(self.results) >= self.expected:
            return
        build(self.results, self.output)
        self._written = time.monotonic()
        console.say(f"{self.output} has {len(self.results)} of {self.expected} results; it will be written again")


def check_output(path: Path) -> None:
    """Refuse an output that cannot be written, before minutes of work."""
    folder = path.resolve().parent
    # A report replaces the file: a device such as /dev/null must not be replaced.
    special = path.exists() and not path.is_file()
    if special or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise SpecError(
            "the report cannot be written there",
            where="--output",
            allowed="a file in an existing folder that you can write to",
            got=str(path),
            next_step="choose another path with: --output FILE.html",
        )


def raise_if_failed(outcomes: list[Outcome]) -> None:
    """Raise the first error of the outcomes, where there is one."""
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
