"""Kills, full disks, damages and rivals, at random and many of them: what they do to the folder of a tiny run.

    python -m tests.campaign kills|full|damage|locks [--n N] [--seed SEED] [--folder DIR]

Not part of `make test`. Prints what it counted, and ends with 1 if anything differed without a word or ended in an
exception that names no file.
"""

import argparse
import collections
import multiprocessing
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import torch
from filelock import SoftFileLease

import dasolib.run_files
import dasolib.run_folder
from dasolib.outputs import runs_with_outputs
from dasolib.results import load_run
from dasolib.run_folder import OWNER
from dasolib.train import run
from tests.tiny import contents, save_tiny, tiny_config

STEPS = {"total_steps": 16, "eval_steps": 2}
OPTIONAL = ("model.json", "model.safetensors", "outputs.npz", "predictions.csv", "checkpoint.pt",
            "checkpoint.previous.pt")  # of a finished run: without them it can still be read
IGNORED = (".lock", OWNER)
SHOWN = 12  # faults that are printed in full


class Campaign:
    """A folder to work in, with data, the undisturbed run, and what was counted."""

    def __init__(self, root, seed):
        self.root, self.rng, self.counted, self.faults = root, random.Random(seed), collections.Counter(), []
        torch.set_num_threads(1)
        self.dataset = save_tiny(root)
        self.config, self.log = self.config_of(), root / "log0"
        self.finished = root / "undisturbed"
        run(self.config, self.finished, progress=False)
        self.expected = contents(self.finished)

    def config_of(self, **changes):
        return tiny_config(self.dataset, **STEPS | changes)

    def fault(self, kind, text):
        self.counted[kind] += 1
        self.faults.append(f"{kind}: {text}")

    def report(self):
        """Print what was counted; return the exit code."""
        for kind, n in sorted(self.counted.items()):
            print(f"{n:6} {kind}")
        for fault in sorted(self.faults, key=lambda fault: fault.startswith("EXCEPTION"))[:SHOWN]:
            print(f"\n{fault}")
        return 1 if self.faults else 0

    def start(self, call, *arguments):
        """Start a call in a process of its own, whose imports are done; what it says goes into its ``log``."""
        process = multiprocessing.get_context("fork").Process(target=_logged, args=(call, self.log, *arguments))
        process.log = self.log
        self.log = self.log.with_name(f"log{int(self.log.name[3:]) + 1}")
        process.start()
        return process

    def train(self, folder, *, has_locks=True, silence=60):
        """Start the run of this campaign."""
        return self.start(_train, self.config, folder, has_locks, silence)

    def ended(self, process, timeout=None):
        """Wait for a process; return its exit code, None if it has none yet, and what it said."""
        process.join(timeout)
        return process.exitcode, process.log.read_text() if process.log.exists() else ""

    def compare(self, folder, what):
        if contents(folder) == self.expected:
            self.counted["finished like the undisturbed run, bit for bit"] += 1
        else:
            self.fault("SILENT DIFFERENCE", what)


def _logged(call, log, *arguments):
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    call(*arguments)


def _train(config, folder, has_locks, silence):
    if not has_locks:
        dasolib.run_folder.lock_descriptor = lambda *args, **settings: True
    dasolib.run_folder.SECONDS_OF_SILENCE = silence
    run(config, folder, progress=False)


def _own(folder, silence):
    """Own a folder from another host, for ever."""
    socket.gethostname = lambda: "elsewhere"
    lease = SoftFileLease(folder / OWNER, lease_duration=silence, thread_local=False)
    lease.acquire(timeout=0)
    (folder / "owned").touch()
    time.sleep(3600)


def kills(campaign, n):
    """SIGKILL at random times, a chain of them for each run."""
    began = time.monotonic()
    campaign.ended(campaign.train(campaign.root / "timed"))
    seconds = time.monotonic() - began
    while campaign.counted["kills"] < n:
        folder, code = campaign.root / "chain", None
        campaign.counted["chains"] += 1
        while code is None:
            process = campaign.train(folder)
            is_last = campaign.counted["kills"] >= n
            code, said = campaign.ended(process, None if is_last else campaign.rng.uniform(0.05, 1.1) * seconds)
            if code is None:
                process.kill()
                code, said = campaign.ended(process)
                campaign.counted["kills"] += 1
                code = None if code < 0 else code
            if code:
                campaign.fault("EXCEPTION", said)
            elif code == 0:
                campaign.compare(folder, f"a chain of kills: {said}")
        shutil.rmtree(folder)


class Full:
    """Stands for `open` on a disk on which so many bytes are left."""

    def __init__(self, left):
        self.left = left

    def __call__(self, path, mode="r", **settings):
        file = open(path, mode, **settings)
        if "r" in mode:
            return file
        write = file.write

        def write_what_fits(data):
            data = bytes(data)
            if len(data) > self.left:
                write(data[:self.left])
                file.flush()
                self.left = 0
                raise OSError(28, "No space left on device")
            self.left -= len(data)
            return write(data)

        class Limited:
            def __getattr__(self, name):
                return write_what_fits if name == "write" else getattr(file, name)

            def __enter__(self):
                return self

            def __exit__(self, *error):
                file.close()

        return Limited()


def full(campaign, n):
    """The disk fills up at a random byte, again and again, until the run is through."""
    fillings = 0
    while fillings < n:
        folder = campaign.root / "full"
        while fillings < n:
            disk = Full(int(10 ** campaign.rng.uniform(2, 7)))
            dasolib.run_files.open = dasolib.run_folder.open = disk
            try:
                run(campaign.config, folder, progress=False)
                break
            except OSError as error:
                fillings += 1
                campaign.counted["fillings"] += 1
                if not error.filename:
                    campaign.fault("EXCEPTION", f"names no file: {error!r}")
            except Exception:
                campaign.fault("EXCEPTION", traceback.format_exc())
                break
            finally:
                del dasolib.run_files.open, dasolib.run_folder.open
        try:
            run(campaign.config, folder, progress=False)
        except Exception:
            campaign.fault("EXCEPTION", traceback.format_exc())
        else:
            campaign.compare(folder, "after a full disk")
        shutil.rmtree(folder, ignore_errors=True)


# ---- damages ----


def _json_of_another_kind(rng):
    return rng.choice([b"{}", b"[]", b"null", b"3", b'["vit"]', b'{"lr": 0.1}', b'{\n // rate\n "lr": 0.1}', b'"x"',
                       b"[" * 100_000, b'{"a":' * 100_000, b'{"starts": [1]}', b'{"schema": 1}', b'{"step": "x"}\n',
                       b'{"plain": {"accuracy": 1.0}, "seconds": 1}', b"NaN", b"\xff\xfe{\x00}\x00"])


def damage_of(campaign, content, others):
    """Return a kind of damage and what it makes of a file."""
    rng = campaign.rng
    kind = rng.choice(("truncated", "bit flipped", "bit flipped", "bytes zeroed", "deleted", "foreign", "garbage",
                       "of another run", "digit changed", "emptied", "appended to", "exchanged", "a folder"))
    if kind in ("deleted", "a folder", "exchanged"):
        return kind, None
    if kind == "foreign":
        return kind, _json_of_another_kind(rng)
    if kind == "of another run":
        return kind, rng.choice(others)
    if kind == "garbage":
        return kind, rng.randbytes(rng.randrange(1, 2000))
    if kind == "emptied":
        return kind, b""
    if kind == "appended to":
        return kind, content + rng.randbytes(rng.randrange(1, 50))
    changed = bytearray(content)
    at = rng.randrange(max(len(content), 1))
    if kind == "truncated":
        changed = changed[:at]
    elif kind == "bit flipped" and content:
        changed[at] ^= 1 << rng.randrange(8)
    elif kind == "bytes zeroed":
        changed[at:at + 64] = bytes(len(changed[at:at + 64]))
    elif kind == "digit changed":  # so that JSON stays JSON
        digits = [i for i, byte in enumerate(content) if chr(byte).isdigit()]
        if digits:
            changed[rng.choice(digits)] = ord(rng.choice("0123456789"))
    return kind, bytes(changed)


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in IGNORED
                  and "events" not in path.parts)


def what_is_read(folder):
    """Everything that readers take from a folder, as something that can be compared."""
    run_ = load_run(folder)
    arrays = [arrays for _, arrays in runs_with_outputs([run_])]
    counts = {name: (array.dtype.str, array.shape, array.tobytes()) for name, array in run_.counts.items()}
    outputs = [{name: array.tobytes() for name, array in each.items()} for each in arrays]
    result = {name: value for name, value in (run_.result or {}).items() if name != "sha256"}
    return run_.config, run_.metrics.to_json(), counts, result, run_.starts, outputs


def attempt(call):
    """Return what a call gives, and what went wrong or was said in it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            value, error = call(), None
        except Exception as exception:
            value, error = None, exception
    return value, error, [str(each.message) for each in caught]


def judge(campaign, call, what, folder, error):
    """Count an exception: one ValueError that names the folder and says what to do, or a fault."""
    text = str(error)
    told = isinstance(error, ValueError) and str(folder) in text and "\n" not in text and (
        "allow_pickle" not in text and "weights_only" not in text) and any(
        remedy in text for remedy in ("move the folder away", "choose another", "restore it"))
    if told:
        campaign.counted[f"{call}: noticed, with one ValueError"] += 1
    else:
        campaign.fault("EXCEPTION", f"{call}: {what}\n" + "".join(traceback.format_exception(error)[-3:]))


def damage(campaign, n):
    """Damage files of finished and unfinished folders; then read them, and go on."""
    other_config = campaign.config_of(seed=1)
    run(other_config, campaign.root / "other", progress=False)
    unfinished = {}
    for name, config, step in (("unfinished", campaign.config, 9), ("other_unfinished", other_config, 9),
                               ("early", campaign.config, 3)):
        unfinished[name] = campaign.root / name
        stop_at(config, unfinished[name], step)
    kinds = {"finished": campaign.finished, "unfinished": unfinished["unfinished"], "early": unfinished["early"]}
    others = {name: [path for place in (campaign.root / "other", unfinished["other_unfinished"], campaign.finished,
                                        unfinished["unfinished"]) for path in files_of(place)] for name in kinds}
    read = {name: attempt(lambda folder=folder: what_is_read(folder))[0] for name, folder in kinds.items()}
    folder = campaign.root / "damaged"
    for i in range(n):
        kind = campaign.rng.choice(list(kinds))
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(kinds[kind], folder)
        file = campaign.rng.choice(files_of(folder))
        content = file.read_bytes()
        same_name = [path.read_bytes() for path in others[kind] if path.name == file.name and (
            path.parent.name == file.parent.name or COUNTS_FOLDER in (path.parent.name, file.parent.name))]
        same_name += [path.read_bytes() for path in others[kind] if path.suffix == file.suffix]
        damaged, after = damage_of(campaign, content, same_name)
        if after == content:
            campaign.counted["no damage, by chance"] += 1
            continue
        if damaged == "exchanged":
            with_ = campaign.rng.choice(files_of(folder))
            after = with_.read_bytes()
            with_.write_bytes(content)
            damaged = f"exchanged with {with_.name}"
        if damaged in ("deleted", "a folder"):
            file.unlink()
            if damaged == "a folder":
                file.mkdir()
        else:
            file.write_bytes(after)
        relative = file.relative_to(folder)
        what = f"{kind} {relative} {damaged} ({i})"
        examine(campaign, kind, what, folder, relative, damaged, read[kind])


COUNTS_FOLDER = "pseudo_labels"


def examine(campaign, kind, what, folder, relative, damaged, before):
    """Read a damaged folder, then go on from it."""
    value, error, said = attempt(lambda: what_is_read(folder))
    optional = damaged == "deleted" and str(relative) in OPTIONAL
    if error is not None:
        judge(campaign, "read", what, folder, error)
    elif value == before:
        campaign.counted["read: the same"] += 1
    elif said:
        campaign.counted["read: previous ones, and said"] += 1
    elif optional:
        campaign.counted["read: without a deleted optional file"] += 1
    else:
        campaign.fault("SILENT DIFFERENCE", f"read: {what}")
    result, error, said = attempt(lambda: run(campaign.config, folder, progress=False))
    if error is not None:
        judge(campaign, "go on", what, folder, error)
        return
    try:
        same = contents(folder) == campaign.expected
    except OSError:
        same = False
    if same and said and any("is used" in text or "no checkpoint" in text for text in said):
        campaign.counted["go on: previous ones, said, and the same end"] += 1
    elif same:
        campaign.counted["go on: the same end"] += 1
    elif optional:
        campaign.counted["go on: without a deleted optional file"] += 1
    elif said:
        campaign.counted["go on: said"] += 1
    else:
        campaign.fault("SILENT DIFFERENCE", f"go on: {what}")


def stop_at(config, folder, step):
    """Train until a step asks for its batch."""
    from dasolib.batches import Batches

    class Stopped(BaseException):
        pass

    original = Batches.at

    def stop(self, t):
        if t == step:
            raise Stopped
        return original(self, t)

    Batches.at = stop
    try:
        run(config, folder, progress=False)
    except Stopped:
        pass
    finally:
        Batches.at = original


# ---- locks ----


def locks(campaign, n):
    """Two processes want one folder; locks have an effect or not; and a host that is gone, or not."""
    for i in range(n):
        folder = campaign.root / f"wanted{i}"
        if i % 25 == 24:
            two_sweeps(campaign, folder)
        elif i % 3 < 2:
            two_at_once(campaign, folder, has_locks=i % 3 == 0)
        else:
            another_host(campaign, folder, lives=i % 2 == 0)
        shutil.rmtree(folder, ignore_errors=True)


def two_at_once(campaign, folder, has_locks):
    processes = [campaign.train(folder, has_locks=has_locks) for _ in range(2)]
    if campaign.rng.random() < 0.5:
        time.sleep(campaign.rng.uniform(0.1, 2))
        campaign.rng.choice(processes).kill()
        campaign.counted["one of two killed"] += 1
    for process in processes:
        code, said = campaign.ended(process)
        if code > 0 and "another process is working in this folder" in said.strip().splitlines()[-1]:
            campaign.counted["refused: another process is working there"] += 1
        elif code > 0:
            campaign.fault("EXCEPTION", said)
    code, said = campaign.ended(campaign.train(folder, has_locks=has_locks))
    if code:
        campaign.fault("EXCEPTION", said)
    else:
        campaign.compare(folder, "two at once")


def another_host(campaign, folder, lives):
    folder.mkdir()
    owner = campaign.start(_own, folder, SILENCE)
    while not (folder / "owned").exists():
        time.sleep(0.05)
    if not lives:
        owner.kill()
        owner.join()
    code, said = campaign.ended(campaign.train(folder, has_locks=False, silence=SILENCE))
    owner.kill()
    owner.join()
    if lives and code and "another process is working in this folder" in said:
        campaign.counted["another host lives: refused"] += 1
    elif not lives and code == 0 and "taken over from process" in said:
        campaign.counted["another host is silent: taken over, and said"] += 1
        campaign.compare(folder, "another host")
    else:
        campaign.fault("EXCEPTION", f"another host {'lives' if lives else 'is dead'}: {code}\n{said}")


def two_sweeps(campaign, folder):
    """Of a grid of two runs that train nothing, one of the sweeps is killed in the middle at times."""
    folder.mkdir()
    grid, runs = folder / "grid.yaml", folder / "runs"
    grid.write_text("name: study\npreset: cpu\nruns:\n- {dataset: mnist5k, method: [fixmatch, supervised], "
                    "total_steps: 20, eval_steps: 10}\n")
    (runs / "study").mkdir(parents=True)
    (runs / "study" / "fake.json").write_text("{}")
    command = [sys.executable, "-m", "tests.fake_runs", str(grid), "--runs", str(runs)]
    sweeps = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)]
    if campaign.rng.random() < 0.5:
        time.sleep(campaign.rng.uniform(3, 10))
        campaign.rng.choice(sweeps).kill()
        campaign.counted["one of two sweeps killed"] += 1
    for sweep in sweeps:
        said = sweep.communicate()[0]
        if sweep.returncode > 0:
            campaign.fault("EXCEPTION", said)
    ended = subprocess.run(command, capture_output=True, text=True)
    results, starts = list(runs.glob("*/*/result.json")), [file.read_text() for file in runs.glob("*/*/starts.txt")]
    if ended.returncode or len(results) != 2:
        campaign.fault("LOST", ended.stdout + ended.stderr)
    elif any(len(text.splitlines()) != 1 for text in starts):
        campaign.fault("RUN TWICE", str(starts))
    else:
        campaign.counted["two sweeps: each run once"] += 1


SILENCE = 2  # seconds


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__.split("\n\n")[0])
    parser.add_argument("what", choices=("kills", "full", "damage", "locks"))
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="an empty folder to work in (default: a temporary one)")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=given.folder) as root:
        campaign = Campaign(Path(root), given.seed)
        {"kills": kills, "full": full, "damage": damage, "locks": locks}[given.what](campaign, given.n)
        return campaign.report()


if __name__ == "__main__":
    sys.exit(main())
