import os
import signal
from pathlib import Path

import pytest
import torch
from torchvision.models import ResNet34_Weights, resnet34

from dasolib.host import prepare_host

# A shell lets what it starts in the background ignore Ctrl-C, as nohup does with the end of a terminal, and so would
# the children to which tests send these signals.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Of processes that tests start, where nothing else is asked for: other tests have the other cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def golden_folders():
    """Folders of reference numbers: the one that ships with the tests, then the one DASO_GOLDEN names, if it is set.

    Returns
    -------
    list of Path
        One or two absolute paths.

    Raises
    ------
    ValueError
        If DASO_GOLDEN names no folder: to go on without it would report a check that never ran.
    """
    folders = [Path(__file__).resolve().parent / "data" / "golden"]
    named = os.environ.get("DASO_GOLDEN")
    if named:
        if not Path(named).is_dir():
            raise ValueError(f"DASO_GOLDEN must name an existing folder, got {named!r}; unset it to do without")
        folders.append(Path(named).resolve())
    return folders


FOLDERS = golden_folders()


@pytest.fixture(scope="session", params=FOLDERS, ids=["shipped", "DASO_GOLDEN"][: len(FOLDERS)])
def golden_folder(request):
    """Run a test once for each folder of reference numbers."""
    return request.param


@pytest.fixture(scope="session")
def imagenet_file(tmp_path_factory):
    """A file as torchvision downloads it, with random weights, in a cache folder of its own."""
    file = tmp_path_factory.mktemp("torch") / "hub" / "checkpoints" / Path(ResNet34_Weights.IMAGENET1K_V1.url).name
    file.parent.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(resnet34().state_dict(), file)
    return file


@pytest.fixture
def imagenet(imagenet_file, monkeypatch):
    """Let torch find the weights of `imagenet_file`."""
    monkeypatch.setenv("TORCH_HOME", str(imagenet_file.parents[2]))
    return imagenet_file


@pytest.fixture(autouse=True)
def one_thread():
    """Start every test on one thread: sums round the same on every machine, and a run may have set another number.

    Freed memory is kept as in a run, which saves time.
    """
    prepare_host(1)


def pytest_collection_modifyitems(items):
    # Files with slow tests come first, so that no core ends with one of them while the others have nothing left.
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and torch finds none here"))
