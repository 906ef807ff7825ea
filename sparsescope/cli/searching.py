"""The verb that searches the text of a run of ``features``: by features, or by what a text uses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsescope.cli.options import Home, Json, ModelOptions
from sparsescope.cli.root import app
from sparsescope.errors import SpecError, unknown_name

if TYPE_CHECKING:
    from sparsescope.analysis.features.search import FeatureSearch
    from sparsescope.core.result import Result

_LONGEST = 100


@app.command()
def search(
    run: Annotated[str, typer.Argument(help="A run of features: its id, or its folder.")],
    feature: Annotated[
        list[str] | None,
        typer.Option(help="A feature that is looked for, for example TopK/12; may be given several times."),
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="A text: what uses its features is found. The model is loaded for it.")
    ] = None,
    dictionary: Annotated[
        str,
        typer.Option(help="Of a text: the dictionary that encodes it; the first of the run when left out."),
    ] = "",
    unit: Annotated[str, typer.Option(help="What is found: window (128 tokens) or token.")] = "window",
    top: Annotated[int, typer.Option(help="How many are shown.", min=1, max=1000)] = 10,
    alpha: Annotated[
        float | None,
        typer.Option(
            help="Prune: what bounds of blocks are multiplied with, 1 for the exact answer; everything is "
            "read when left out."
        ),
    ] = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Find the windows or tokens of a stored text that use features, or that are like a text."""
    from sparsescope.analysis.features.search import FeatureSearch
    from sparsescope.cli import console, listing

    if (feature is None) == (text is None):
        raise SpecError(
            "a search is for features or for a text",
            where="--feature, --text",
            allowed="one of them",
            got="both" if feature else "neither",
            next_step="see: sparsescope search --help",
        )
    result = listing.open_run(run, home)
    names = _split(result, feature or [])
    if len({name for name, _ in names}) > 1:
        raise SpecError(
            "features of one search are of one dictionary",
            where="--feature",
            got=", ".join(dict.fromkeys(name for name, _ in names)),
        )
    wanted = names[0][0] if names else dictionary
    found = FeatureSearch.of(result, wanted, unit)  # type: ignore[arg-type]  # it is checked there
    label = wanted or str(result.tables["features"]["dictionary"].iloc[0])
    if text is None:
        query: Any = {number: 1.0 for _, number in names}
        used = None
    else:
        query = _encoded(result, found, label, text)
        used = found.features_of(query, top)
    hits = found.find(query, top, alpha)
    table = result.tables["features"].set_index("name")["label"]
    features = [
        {
            "feature": f"{label}/{row.feature}",
            "weight": float(row.weight),
            "label": table[f"{label}/{row.feature}"],
        }
        for row in (used.itertuples() if used is not None else ())
    ]
    if json:
        console.out_json({"features": features, "hits": hits.to_dict("records"), **hits.attrs})
        return
    if features:
        rows = [[row["feature"], f"{row['weight']:.3g}", str(row["label"])] for row in features]
        console.out(console.table(["feature", "weight", "label"], rows) + "\n")
    rows = [
        [str(row.document), f"{row.position:,}", f"{row.score:.3g}", str(row.text)[:_LONGEST]]
        for row in hits.itertuples()
    ]
    console.out(
        console.table(["document", "position", "score", "text"], rows) + "\n"
        if rows
        else "nothing in this text uses them\n"
    )
    console.say(f"{hits.attrs['postings']:,} of {hits.attrs['all_postings']:,} postings read")


def _split(result: Result, names: list[str]) -> list[tuple[str, int]]:
    """Dictionary and number of each feature."""
    known = set(result.tables["features"]["name"]) if "features" in result.tables else set()
    for name in names:
        if name not in known:
            raise unknown_name(
                "feature of this run", name, sorted(known), next_step="names stand in the table features"
            )
    return [(name.rpartition("/")[0], int(name.rpartition("/")[2])) for name in names]


def _encoded(result: Result, found: FeatureSearch, label: str, text: str) -> Any:
    """What a text asks for: the model of the run reads it, in the precision of the run."""
    from sparsescope.analysis.features.encode import dictionary_of, text_activations

    origin = result.provenance.get("subject") or {}
    given = dictionary_of(result, label)
    subject = ModelOptions(dtype=str(origin.get("dtype") or "float32")).load(str(origin.get("id")))
    if subject.identity.weight_hash != origin.get("weight_hash"):
        raise SpecError(
            "this model is not the one of the run",
            where=f"{subject.id}, run {result.run_id}",
            next_step="search with --feature, or run the analysis again",
        )
    return found.weighted(text_activations(subject, given, text, **found.encoding))
