"""Program of a test: start a run for each line on stdin, and print every step and save, so that a test can kill it.

Everything is imported before the run is forked, and nothing of JAX has begun by then.
"""

import json
import os
import sys
from pathlib import Path

from upalm.checkpoints.manager import Checkpoints
from upalm.training import loop
from upalm.training.config import TrainConfig, from_json
from upalm.training.launch import run


def announced(name, function):
    def wrapper(*args, **kwargs):
        print(name, flush=True)
        return function(*args, **kwargs)

    return wrapper


def main(settings: Path) -> None:
    loop.train_step = announced("step", loop.train_step)
    Checkpoints.save = announced("save", Checkpoints.save)
    for _ in sys.stdin:
        child = os.fork()
        if not child:
            print(os.getpid(), flush=True)
            run(from_json(TrainConfig, json.loads(settings.read_text())))
            print("end", flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        print("gone", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
