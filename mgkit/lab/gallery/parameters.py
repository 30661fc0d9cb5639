"""Parameters of a notebook, by papermill's convention: a cell tagged `parameters` holds the defaults.

[parameters]            seeds = 2
[injected-parameters]   seeds = 8      a cell inserted below it
"""

import ast
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nbformat import NotebookNode


def parse(texts: list[str]) -> dict[str, object]:
    """Values of `NAME=VALUE`, each value a number, string or other Python literal.

    Raises: ValueError if a text has another form.

    >>> parse(["seeds=8", "names=['a', 'b']"])
    {'seeds': 8, 'names': ['a', 'b']}
    """
    values = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            if not name.isidentifier():
                raise ValueError
            values[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            raise ValueError(
                f"{text!r} is not a parameter: write NAME=VALUE with a Python literal, such as seeds=8"
            ) from None
    return values


def names(notebook: "NotebookNode") -> set[str]:
    """Variables that the notebook's cells tagged `parameters` assign."""
    sources = [cell.source for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def inject(notebook: "NotebookNode", values: dict[str, object]) -> None:
    """Insert a cell with these values below the one tagged `parameters`, in place.

    Raises: ValueError if the notebook does not have one of them.
    """
    from nbformat.v4 import new_code_cell

    for name in values:
        if name not in names(notebook):
            known = ", ".join(sorted(names(notebook))) or "none"
            raise ValueError(f"the notebook has no parameter {name!r} (it has: {known})")
    if not values:
        return
    tagged = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
    source = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    cell = new_code_cell(source, metadata={"tags": ["injected-parameters"]})
    # a notebook of an older minor version has cells without ids
    if (notebook.nbformat, notebook.nbformat_minor) < (4, 5):
        cell.pop("id", None)
    notebook.cells.insert(tagged[-1] + 1, cell)
