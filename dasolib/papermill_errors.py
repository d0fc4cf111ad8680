"""What papermill's command line says of a notebook that failed: what the notebook ended with, without its own frames.

papermill imports this as it looks for engines, of which this is none: it has no other place for a change to its command
line. A script that calls papermill keeps its tracebacks.
"""

import os
import sys
from pathlib import Path

TRACEBACK = "DASO_TRACEBACK"  # environment variable; where it is set, errors come with all of their traceback


def text_of(error):
    """Text for what ended papermill, or None where its own traceback shall be seen."""
    if type(error).__name__ == "DeadKernelError":
        return ("The notebook's kernel ended before the notebook: it was interrupted, or out of memory. Run the same "
                "command again to resume.")
    if type(error).__name__ != "PapermillExecutionError":
        return None
    text = str(error).rstrip()
    if error.ename == "SyntaxError" and error.source.startswith("# Parameters"):
        names = [line.partition(" = ")[0] for line in error.source.splitlines() if " = " in line]
        text += "".join(f"\n{name}: cannot be a parameter, whose words are joined by _; papermill --help-notebook "
                        "lists those of a notebook"
                        for name in names if not name.isidentifier())
    return text


def _excepthook(kind, error, trace):
    is_command = "papermill" in (Path(sys.argv[0]).stem, Path(sys.argv[0]).parent.name)
    text = text_of(error) if is_command and not os.environ.get(TRACEBACK) else None
    if text is None:
        sys.__excepthook__(kind, error, trace)
    else:
        print(text, file=sys.stderr)


if "papermill" in sys.modules:
    sys.excepthook = _excepthook
