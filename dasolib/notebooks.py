"""What a notebook shows while it works, and when it fails: one line of progress, one sentence on what is wrong."""

import os
import sys
import traceback
from pathlib import Path

import tqdm as bars

from dasolib.papermill_errors import TRACEBACK


def show_errors_in(ipython):
    """Have a notebook end in one sentence where that tells what is wrong; ``%tb`` then shows the traceback.

    These are what a ``raise`` in this package or in a cell says is wrong, what the system says of a file, and an
    interrupt. Anything else, which may be a fault of the package, comes with its traceback, and so does everything
    where `TRACEBACK` is set.

    Parameters
    ----------
    ipython : InteractiveShell
        The notebook's ``get_ipython()``.
    """
    if not os.environ.get(TRACEBACK):
        ipython.set_custom_exc((Exception, KeyboardInterrupt), _show)


def _show(ipython, kind, value, trace, tb_offset=None):
    frames = traceback.extract_tb(trace)
    last, cells = frames[-1], {frame.filename for frame in frames[1:2]}  # the first frame is IPython's
    is_ours = last.filename in cells or Path(last.filename).is_relative_to(Path(__file__).parent)
    is_said = (isinstance(value, KeyboardInterrupt) or isinstance(value, OSError) and value.filename is not None
               or is_ours and last.line.startswith("raise "))
    ipython.showtraceback((kind, value, trace), tb_offset=tb_offset, exception_only=is_said)


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
