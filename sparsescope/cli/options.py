"""Options that several verbs share, each written down once, and how a verb gets them.

A verb names a group of options as one parameter, ``model: ModelOptions``; ``with_options`` expands the
group into options of the command line. Further roles of inputs, which packages add, are options too.
Nothing heavy is imported here.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_type_hints

import typer

from sparsescope.errors import SpecError

if TYPE_CHECKING:
    from sparsescope.activations.corpus import Corpus
    from sparsescope.activations.text.arguments import BosPolicy
    from sparsescope.core.inputs import Known
    from sparsescope.models.subject import Subject
    from sparsescope.runner.inputs import Fallback

DEFAULT_CORPUS = "python-docs+python-source"
DEFAULT_TOKENS = 16384


def home_folder(text: str | Path) -> Path:
    """Return the folder of runs that ``--home`` names; an empty one, as an unset variable
    gives it, is refused.
    """
    from sparsescope.core.files import given_path

    if not str(text).strip():
        raise SpecError(
            "the folder of runs is empty", where="--home", allowed="a path", got=repr(str(text)),
            next_step="leave --home out for $SPARSESCOPE_HOME or ./runs, or write . for this folder",
        )  # fmt: skip
    return given_path(text, "--home")


def output_file(text: str | Path) -> Path:
    """Return the file that ``--output`` names."""
    from sparsescope.core.files import given_output

    return given_output(text, "--output", "report", "--output FILE.html")


def notebook_file(text: str | Path) -> Path:
    """The same of ``--notebook``."""
    from sparsescope.core.files import given_output

    return given_output(text, "--notebook", "notebook", "--notebook FILE.ipynb")


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:N or mps.")]
Home = Annotated[
    Path | None,
    typer.Option(
        help="Folder of stored runs; $SPARSESCOPE_HOME or ./runs by default.",
        parser=home_folder,
        metavar="PATH",
    ),
]
BatchTokens = Annotated[int, typer.Option(help="Most token positions in one forward pass.", min=1, max=2**24)]
Preset = Annotated[
    str,
    typer.Option(
        help="Preset of the analysis that --set starts from; see: sparsescope show "
        "ANALYSIS. full: the defaults."
    ),
]
Depth = Annotated[
    str,
    typer.Option(
        help="quick: the quick preset of each analysis, or a stored run of the defaults; full: the defaults."
    ),
]
Set = Annotated[list[str] | None, typer.Option("--set", help="Parameter, NAME=VALUE; repeatable.")]


@dataclass(frozen=True)
class _Group:
    """A group of options: a frozen dataclass whose fields are annotated as parameters of a verb."""

    @property
    def changed(self) -> list[str]:
        """The options that differ from their defaults, for example ``--seed``."""
        return self.changed_from({})

    def changed_from(self, defaults: Mapping[str, object]) -> list[str]:
        """The same where defaults differ for a verb (``with_options``)."""
        usual = {entry.name: defaults.get(entry.name, entry.default) for entry in fields(self)}
        found = [name for name, value in usual.items() if getattr(self, name) != value]
        return [f"--{name.replace('_', '-')}" for name in found]


@dataclass(frozen=True)
class ModelOptions(_Group):
    """How a model is loaded."""

    dtype: Annotated[
        str, typer.Option(help="Compute type: float32, bfloat16 (quicker, labelled), float16.")
    ] = "float32"
    device: Device = "cpu"
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")] = None
    attention: Annotated[
        str | None,
        typer.Option(help="Attention implementation, eager or sdpa; that of transformers by default."),
    ] = None
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let code of the model's repository run; recorded.")
    ] = False

    def check(self, name: str) -> None:
        """Refuse a wrong name or option before torch is imported."""
        from sparsescope.models.catalog import resolve

        resolve(name, self.revision, self.dtype, self.device, self.attention, self.trust_remote_code)

    def load(self, name: str) -> Subject:
        """Load a subject and say so, since it can take a while."""
        from sparsescope.cli import console

        self.check(name)
        console.show_log()
        console.say(f"loading {name}")
        from sparsescope.models.sources import load

        return load(
            name,
            revision=self.revision,
            dtype=self.dtype,
            device=self.device,
            attn_implementation=self.attention,
            trust_remote_code=self.trust_remote_code,
        )


@dataclass(frozen=True)
class TextOptions(_Group):
    """What models read."""

    corpus: Annotated[
        str | None,
        typer.Option(
            help="Registered name, names joined by '+', or a .txt, .jsonl or .parquet file; "
            "generated@prompt=32,new=64:NAME for what the model itself writes after beginnings of these; "
            f"{DEFAULT_CORPUS} when left out, of a series of checkpoints the held-out text that it carries."
        ),
    ] = None
    tokens: Annotated[
        int, typer.Option(help="Tokens to read, split evenly over the domains of the corpus.")
    ] = DEFAULT_TOKENS
    context: Annotated[
        int | None, typer.Option(help="Longest window; 256, or what the model can take if that is less.")
    ] = None
    document_tokens: Annotated[
        int | None,
        typer.Option(
            help="Most tokens of one document: fewer of each give more documents, the units of intervals. A "
            "sixteenth of the share of its domain when left out."
        ),
    ] = None
    keep_duplicates: Annotated[
        bool,
        typer.Option(
            "--keep-duplicates",
            help="Keep documents that nearly repeat others (Jaccard index of word 5-grams of 0.8 or more).",
        ),
    ] = False
    seed: Annotated[int, typer.Option(help="Seed of the choice of documents.")] = 0
    bos: Annotated[
        str, typer.Option(help="Beginning-of-sequence token: auto (as the tokenizer does), always, never.")
    ] = "auto"

    def make(self) -> Corpus | Fallback:
        """Make the corpus; one that was not asked for stands back behind the text of a series.

        The verbs call it before they load a model, so that a wrong option is found out at once.
        """
        from sparsescope.activations.corpus import corpus
        from sparsescope.runner.inputs import Fallback

        bos = cast("BosPolicy", self.bos)  # what it may be is checked there
        text = corpus(
            self.corpus or DEFAULT_CORPUS, tokens=self.tokens, seed=self.seed, context=self.context, bos=bos,
            max_document_tokens=self.document_tokens, deduplicate=not self.keep_duplicates,
        )  # fmt: skip
        return Fallback(text) if self.corpus is None else text

    def asked(self) -> Corpus:
        """The corpus itself, for verbs that read no series."""
        from sparsescope.runner.inputs import Fallback

        made = self.make()
        return made.value if isinstance(made, Fallback) else made


@dataclass(frozen=True)
class InputOptions:
    """Inputs of further roles, by role: what was given with their options, of ours and of packages."""

    given: Mapping[str, list[str]] = field(default_factory=dict)

    @property
    def inputs(self) -> dict[str, str | list[str]]:
        """What was given, as ``run_many`` takes it: one, or a list of several."""
        return {
            name: values[0] if len(values) == 1 else values for name, values in self.given.items() if values
        }

    @property
    def known(self) -> list[Known]:
        """What is known of it unopened."""
        from sparsescope.core.roles import known

        return [
            entry
            for name, values in self.given.items()
            for value in values or ()
            for entry in known(value, name)
        ]


def with_options(**defaults: object) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Expand the groups of options among the parameters of a verb.

    Args:
        **defaults: Defaults of options that differ for this verb.
    """

    def expand(verb: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(verb, include_extras=True)
        given = inspect.signature(verb).parameters
        groups = {
            name: hints[name] for name in given if hints[name] in (ModelOptions, TextOptions, InputOptions)
        }
        parameters: list[inspect.Parameter] = []
        members: dict[str, list[str]] = {}
        ours = {name for name in given if name not in groups}
        ours |= {
            entry.name for group in groups.values() if group is not InputOptions for entry in fields(group)
        }
        for name, parameter in given.items():
            added = (
                _options(groups[name], defaults)
                if name in groups
                else [parameter.replace(annotation=hints[name])]
            )
            if groups.get(name) is InputOptions:  # a role of a package hides no option of ours
                added = [entry for entry in added if entry.name not in ours]
            members[name] = [entry.name for entry in added]
            parameters += [entry.replace(kind=inspect.Parameter.KEYWORD_ONLY) for entry in added]

        @functools.wraps(verb)
        def run(**values: Any) -> None:
            built = {name: _build(groups[name], {m: values[m] for m in members[name]}) for name in groups}
            verb(**{name: built[name] if name in groups else values[name] for name in given})

        # Functions have one where it is set
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        del run.__wrapped__  # or its own parameters would be looked at
        return run

    return expand


def _options(group: type, defaults: Mapping[str, object]) -> list[inspect.Parameter]:
    """The parameters of a group."""
    plain = inspect.Parameter.KEYWORD_ONLY
    if group is InputOptions:
        from sparsescope.runner.inputs import BUILT_IN

        # Of packages the names alone: reading what one says of its role would import it for every verb.
        said = {
            point.name: "An input that a package adds; see: sparsescope list inputs."
            for point in entry_points(group="sparsescope.inputs")
            if point.name.isidentifier()
        }
        said |= {
            role.name: f"A {role.title}, for analyses that read one: {role.summary.partition(';')[0]}. "
            "May be given several times."
            for role in BUILT_IN
            if role.slot == "inputs"
        }
        return [
            inspect.Parameter(
                name, plain, default=None, annotation=Annotated[list[str] | None, typer.Option(help=text)]
            )
            for name, text in sorted(said.items())
        ]
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            entry.name, plain, default=defaults.get(entry.name, entry.default), annotation=hints[entry.name]
        )
        for entry in fields(group)
    ]


def _build(group: type, values: dict[str, Any]) -> Any:
    return InputOptions(values) if group is InputOptions else group(**values)
