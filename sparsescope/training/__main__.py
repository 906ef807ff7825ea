"""``python -m sparsescope.training RECIPE --output FOLDER``: train a model from a recipe; run again to go on.

Exit codes: 0 done, 1 user error, 130 interrupted (run the same command again to go on).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sparsescope.errors import SparsescopeError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a recipe; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m sparsescope.training", description="Train a model from a recipe.")
    parser.add_argument("recipe", type=Path, help="a file such as analyses/grokking/relu.toml")
    parser.add_argument("--output", type=Path, required=True, help="folder of the series")
    parser.add_argument("--seed", type=int, help="another seed than that of the recipe")
    parser.add_argument("--name", help="another name than that of the recipe")
    given = parser.parse_args(arguments)
    from sparsescope.training.recipe import read_recipe
    from sparsescope.training.trainer import train

    try:
        recipe = read_recipe(given.recipe, seed=given.seed, name=given.name)
        folder = train(recipe, given.output, recipe_text=given.recipe.read_text(encoding="utf-8"))
    except SparsescopeError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command goes on from the last saved step\n")
        return 130
    sys.stdout.write(f"{folder}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
