"""Every tutorial is a script, a page of the site, and a notebook in the built site."""

import re
from pathlib import Path

import jupytext
from nbformat import NotebookNode

KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


def read(text: str) -> NotebookNode:
    """The notebook of a script, for MyST-NB."""
    notebook = jupytext.reads(text, fmt="py:percent")
    notebook.metadata |= {"kernelspec": KERNEL, "language_info": {"name": "python", "pygments_lexer": "ipython3"}}
    return notebook


def _write(app) -> None:
    folder = Path(app.outdir) / "notebooks"
    folder.mkdir(parents=True, exist_ok=True)
    for script in sorted((Path(app.srcdir) / "tutorials").glob("*.py")):
        notebook = read(script.read_text())
        for cell in notebook.cells:  # the installation is run in a notebook, and not by the build
            cell.metadata.pop("tags", None)
            if cell.cell_type == "code":
                cell.source = cell.source.replace("# %pip", "%pip")
            else:  # pages of the site, beside the folder of the notebooks
                cell.source = re.sub(r"\]\(\.\./(\w+)\.md(#[\w-]+)?\)", r"](../\1.html\2)", cell.source)
        jupytext.write(notebook, folder / f"{script.stem}.ipynb", fmt="ipynb")


def setup(app):
    """Register."""
    app.connect("builder-inited", _write)
    return {"parallel_read_safe": True}
