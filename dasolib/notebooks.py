"""What a notebook shows while it works, and when it fails: one line of progress, one sentence on what is wrong."""

import sys

import tqdm as bars


class tqdm(bars.tqdm):  # noqa: N801 - a bar like any other
    """A progress bar that is one output of a notebook, which changes in place; anywhere else that of the tqdm package.

    On standard error each change would be stored in the notebook, and what clears them clears warnings, too.
    """

    def __init__(self, *args, file=None, **kwargs):
        super().__init__(*args, file=_DisplayedLine() if file is None and _kernel() else file, **kwargs)


class _DisplayedLine:
    """A text file whose last line is shown."""

    encoding = "utf-8"

    def __init__(self):
        self.shown = None

    def write(self, text):
        line = {"text/plain": text.strip("\r\n")}
        if not line["text/plain"].strip():
            return
        if self.shown is None:
            from IPython.display import display

            self.shown = display(line, raw=True, display_id=True)
        else:
            self.shown.update(line, raw=True)

    def flush(self):
        """Do nothing: a line is shown at once."""


def _kernel():
    """Return IPython's shell where this process runs the cells of a notebook, else None."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell if hasattr(shell, "kernel") else None
