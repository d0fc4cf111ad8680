"""A sweep whose runs train nothing: `python -m tests.fake_runs FILE ...` is `dasolib.sweep` with another command.

A fake run goes through its steps, evaluates after each, goes on from its last evaluation, and leaves a result, as a
real one does. ``fake.json`` in the study's folder says, by method, at which step the run fails or is held, if it is:
``fail_at``, ``hold_at``. A held run goes on when the file no longer says so; one that fails at its last step has a
result.
"""

import json
import os
import sys
import time
from pathlib import Path


def command(run, threads):
    """As `dasolib.sweep.papermill_command`."""
    return [sys.executable, __file__, str(run.folder), run.config.method, str(run.config.total_steps)]


def fake_run(folder, method, total_steps):
    def option(name):
        return json.loads((folder.parent / "fake.json").read_text()).get(method, {}).get(name)

    (folder / "train.ipynb").write_text("{}")
    lines = (folder / "metrics.jsonl").read_text().splitlines() if (folder / "metrics.jsonl").exists() else []
    with open(folder / "starts.txt", "a") as file:
        file.write(f"{len(lines)} {os.environ['OMP_NUM_THREADS']} {os.environ.get('CUDA_VISIBLE_DEVICES')}\n")
    with open(folder / "config.json", "w") as file:
        json.dump({}, file)
    for step in range(len(lines), total_steps):
        time.sleep(0.05)
        while step == option("hold_at"):
            time.sleep(0.05)
        if step == option("fail_at"):
            raise FloatingPointError(f"the loss is not finite since step {step}")
        record = {"step": step + 1, "losses": {"labeled": 1.5, "unlabeled": 0.25}, "accuracy": step / total_steps,
                  "seconds": (step + 1) * 0.05}
        with open(folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps(record) + "\n")
    (folder / "model.safetensors").touch()
    (folder / "result.json").write_text(json.dumps({"seconds": 1.0, "plain": {"accuracy": 0.5}}))
    if option("fail_at") == total_steps:
        raise RuntimeError("a figure failed")


if __name__ == "__main__":
    if sys.argv[1].endswith(".yaml"):
        from dasolib.sweep import main

        sys.exit(main(command=command))
    fake_run(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
