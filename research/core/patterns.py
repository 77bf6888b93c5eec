"""Parameters by the patterns of their paths, such as "encoder/**" or "*/bias"."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import jax

from research.core.errors import UserError, nearest
from research.core.types import Tree


def matching(params: Tree, patterns: Sequence[str]) -> Tree:
    """Whether the path of each leaf matches one of the patterns: a tree of bools.

    A path is as `path_name` has it. In a pattern * stands for any text, slashes included, and ? for one character.
    """
    hit = lambda path, _: any(fnmatchcase(path_name(path), pattern) for pattern in patterns)
    return jax.tree.map_with_path(hit, params)


def check_patterns(params: Mapping[str, Tree], patterns: Sequence[str], option: str, whole: bool = False) -> None:
    """Raises UserError, with the nearest path, for a pattern that matches no parameter.

    params  by name
    whole   the paths begin with the name
    """
    trees = [params] if whole else list(params.values())
    paths = [path_name(path) for tree in trees for path, _ in jax.tree.leaves_with_path(tree)]
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for path in paths):
            raise UserError(f"{option}: no parameter matches {pattern!r}: {nearest(pattern, paths)}")


def path_name(path: tuple) -> str:
    """The names on the way to a leaf, with slashes, such as "head/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
