"""Training on a Ray cluster: ``python deploy/ray_train.py 16 text_generation --train texts --name large --shard fsdp``.

The first number is that of processes, each with a GPU. Data and runs lie where all machines see them. Ray starts the processes
and tells them what torchrun does; where one dies all start again, up to three times, and the run goes on.
Needs ray[train], which is tried here for its syntax alone.
"""

from __future__ import annotations

import importlib
import os
import sys
import uuid
from typing import Any


def work(given: dict[str, Any]) -> None:
    """In each process, which has its rank and its group from Ray."""
    # as torchrun tells that this may be a restart; a run that another launch has begun is refused all the same
    os.environ |= {"TORCHELASTIC_RESTART_COUNT": "1", "TORCHELASTIC_RUN_ID": given["launch"]}
    code = importlib.import_module(f"tasks.{given['task']}").main(["train", *given["words"]])
    if code:
        raise SystemExit(code)


def main(words: list[str]) -> int:
    if len(words) < 2 or not words[0].isdigit():
        print("usage: python deploy/ray_train.py PROCESSES TASK OPTIONS", file=sys.stderr)
        return 2
    if not any(word.split("=")[0] == "--name" for word in words):
        print("--name is needed: a restart has to know which run goes on", file=sys.stderr)
        return 2
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    ray.init()
    given = {"task": words[1], "words": words[2:], "launch": uuid.uuid4().hex}
    scaling = ScalingConfig(num_workers=int(words[0]), use_gpu=True)
    again = RunConfig(failure_config=FailureConfig(max_failures=3))
    TorchTrainer(work, train_loop_config=given, scaling_config=scaling, run_config=again).fit()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
