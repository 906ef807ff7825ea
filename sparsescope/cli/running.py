"""What several verbs do: run analyses with a progress bar, choose what a report holds, check the output.

Nothing heavy is imported here before it is needed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsescope.cli.options import InputOptions, ModelOptions, TextOptions
from sparsescope.errors import DependencyError, SpecError

if TYPE_CHECKING:
    from sparsescope.core.inputs import Known
    from sparsescope.core.registry import Analysis
    from sparsescope.core.result import Result
    from sparsescope.runner.run import Outcome


def run_requests(
    wanted: Sequence[tuple[str, dict[str, Any]]],
    inputs: Mapping[str, Any],
    home: Path | None,
    batch_tokens: int,
    *,
    again: bool = False,
    rather_full: bool = False,
    done: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Run analyses with a progress bar; see ``run_many`` and ``Request``."""
    from sparsescope.cli import console
    from sparsescope.runner.run import Request, run_many

    requests = [Request(name, params, rather_full) for name, params in wanted]
    with console.progress_bar() as progress:
        return run_many(
            requests,
            inputs,
            store=home or True,
            progress=progress,
            batch_tokens=batch_tokens,
            again=again,
            done=done,
        )


def given_inputs(
    record: Analysis, target: str | None, model: ModelOptions, text: TextOptions, more: InputOptions
) -> dict[str, Any]:
    """Return what an analysis reads, by role, from the options of one verb; the model is loaded, the
    rest opened later.

    Args:
        record: The analysis.
        target: What ``--subject`` names.
        model: How a model is loaded.
        text: What it reads.
        more: Inputs of further roles.

    Raises:
        SpecError: An option has no meaning for this analysis, or is not valid.
        SubjectError: There is no such model.
    """
    from sparsescope.core.roles import role
    from sparsescope.runner.inputs import refuse_unread

    _refuse_meaningless(record, target, model, text)
    if text.corpus is not None:
        refuse_unread(record, ["text"])
    refuse_unread(record, more.inputs)
    repeated = {entry.role for entry in record.declared if entry.repeated}
    for name, values in more.inputs.items():
        if isinstance(values, list) and name not in repeated:
            raise SpecError(
                f"{record.name} reads one {role(name).title}",
                where=role(name).flag,
                got=f"{len(values)} of them",
            )
    given: dict[str, Any] = dict(more.inputs)
    if "text" in record.roles:
        given["text"] = text.make()  # a wrong option is found out before the model is loaded
    for name in record.roles:
        if role(name).flag == "--subject" and target is not None:
            given[name] = model.load(target) if name == "subject" else target
    return given


def _refuse_meaningless(record: Analysis, target: str | None, model: ModelOptions, text: TextOptions) -> None:
    """Refuse options that say how a model is loaded where none is, or how a text is made where none is made.

    Raises:
        SpecError: One was given.
    """
    from sparsescope.core.roles import known

    wrong = [] if "subject" in record.roles else model.changed
    carries = target is not None and any(
        "held_out_text" in entry.has for entry in known(target) if entry.role in record.roles
    )
    if text.corpus is None and ("text" not in record.roles or carries):
        wrong += text.changed
    if wrong:
        raise SpecError(
            f"these options have no meaning for {record.name}"
            + (f" of {target} without --corpus" if carries else ""),
            where=", ".join(wrong),
            got="checkpoints of a series are computed on the CPU in float32, on the text that they "
            "carry unless one is given",
            next_step=f"leave them out; see: sparsescope show {record.name}",
        )


class Target:
    """A model or a series that a report is about: what is known of it, and which analyses fit it.

    Args:
        name: What was given.
        model: How a model is loaded.
        text: What it reads.
        more: Inputs of further roles.

    Raises:
        SubjectError: The name means nothing.
        SpecError: An option is not valid.
    """

    def __init__(self, name: str, model: ModelOptions, text: TextOptions, more: InputOptions) -> None:
        from sparsescope.core.roles import known

        self.name, self.model, self.more = name, model, more
        self.text = text.make()
        self._beside = [*known(text.corpus or "", "corpus"), *more.known]
        self._known = [entry for entry in known(name) if entry.sure]
        if all(entry.role == "subject" for entry in self._known):
            # A wrong name or option is found out now, not after the work on the first target
            model.check(name)

    def fitting(self, known: Sequence[Known]) -> list[Analysis]:
        """Analyses that fit what is known, and those of which only loading tells."""
        from sparsescope.core.inputs import NOT_KNOWN
        from sparsescope.core.registry import analyses

        return [record for record in analyses() if record.fits([*known, *self._beside]) in (None, NOT_KNOWN)]

    def open(self, fallback: str | None) -> tuple[dict[str, Any], list[Analysis], str]:
        """Open what the fitting analyses read.

        Args:
            fallback: Model to take for one that cannot be fetched; None to fail.

        Returns:
            Inputs by role, the analyses that fit them, and a notice where the fallback was taken.

        Raises:
            SpecError: No analysis fits.
        """
        from sparsescope.cli import console
        from sparsescope.core.inputs import Known
        from sparsescope.core.roles import role

        read = {name for record in self.fitting(self._known) for name in record.roles}
        if self._known and "subject" not in read and self.model.changed:
            raise SpecError(
                f"these options have no meaning for {self.name}", where=", ".join(self.model.changed),
                got="checkpoints of a series are computed on the CPU in float32", next_step="leave them out",
            )  # fmt: skip
        inputs: dict[str, Any] = {"text": self.text, **self.more.inputs}
        found, notice = [], ""
        for name in [entry.role for entry in self._known if entry.role in read]:
            if name == "subject":
                try:
                    inputs[name] = self.model.load(self.name)
                except DependencyError as error:
                    if fallback is None:
                        raise
                    notice = (
                        f"{self.name} could not be fetched, so this report is about {fallback} "
                        f"instead ({error.what})"
                    )
                    console.say(f"NOTE: {notice}")
                    inputs[name] = ModelOptions(self.model.dtype, self.model.device).load(fallback)
            else:
                console.say(f"opening {self.name}")
                inputs[name] = role(name).functions().open(self.name, {}, None)
            has = role(name).functions().capabilities(inputs[name])
            found.append(Known(name, self.name, has=has, whole=True))
        wanted = self.fitting(found)
        if not wanted:
            raise SpecError(
                "no analysis fits this subject",
                where=self.name,
                got="capabilities "
                f"{', '.join(sorted(name for entry in found for name in entry.has)) or 'none'}",
                next_step="run: sparsescope list analyses",
            )
        return inputs, wanted, notice


class GrowingReport:
    """Writes a report again whenever a further analysis is done, so that the first figures are
    there within a minute.

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
        """Take an outcome; write the report unless the last time was just now or the whole
        report comes next.
        """
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
        console.say(
            f"{self.output} has {len(self.results)} of {self.expected} results; it will be written again"
        )


def check_output(path: Path, option: str = "--output FILE.html") -> None:
    """Refuse an output that cannot be written, before minutes of work."""
    from sparsescope.core.files import given_output, no_output

    name, what = option.split()[0], "report" if option.startswith("--output") else "notebook"
    folder = given_output(path, name, what, option).parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise no_output(path, name, what, option)


def raise_if_failed(outcomes: list[Outcome]) -> None:
    """Raise the first error of the outcomes, where there is one."""
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
