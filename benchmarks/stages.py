"""Run the command line, or `-c CODE`, and write where its seconds went: what first_answers.py starts.

    python benchmarks/stages.py $(date +%s.%N) out.json "" infill --text "a<extra_id_0>b"

Its arguments: when it was started, the file to write, and what to end at if the process says so on stderr. A moment
counts for the first stage of STAGES that it falls into. It imports the standard library alone, as imports are a stage.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from importlib import import_module

STAGES = ("Python", "imports", "trace and lower", "compile or load", "tokenizer", "weights", "the rest")
OF_JAX = {
    "/jax/core/compile/jaxpr_trace_duration": "trace and lower",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "trace and lower",
    "/jax/core/compile/backend_compile_duration": "compile or load",
}
OF_FUNCTIONS = {
    "tokenizer": (
        ("upalm.data.tokenizer", "SentencePiece", "load"),
        ("upalm.data.tokenizer", "SentencePiece", "train"),
    ),
    "weights": (
        ("upalm.checkpoints.folder", "load_model"),
        ("upalm.inference.decoding", "DecodingModel", "of"),
        ("upalm.model.palm", "Decoder", "__init__"),
    ),
}
"""Functions of each stage: a module, and names in it."""

began = time.time()
intervals: dict[str, list[tuple[float, float]]] = {stage: [] for stage in STAGES}


def timed(stage: str, function: Callable) -> Callable:
    def wrapper(*args, **kwargs):
        start = time.time()
        try:
            return function(*args, **kwargs)
        finally:
            intervals[stage].append((start, time.time()))

    return wrapper


def time_functions(unwrapped: list[tuple[str, tuple[str, ...]]]) -> None:
    """Wrap the functions whose modules are imported by now, and listen to JAX."""
    for stage, (module, *owners, name) in unwrapped[:]:
        owner = sys.modules.get(module)
        for attribute in owners:
            owner = getattr(owner, attribute, None)
        if found := vars(owner).get(name) if owner is not None else None:
            of_class = isinstance(found, classmethod)
            function = timed(stage, found.__func__ if of_class else found)
            setattr(owner, name, classmethod(function) if of_class else function)
            unwrapped.remove((stage, (module, *owners, name)))


def listen(event: str, seconds: float, **_) -> None:
    if event in OF_JAX:
        intervals[OF_JAX[event]].append((time.time() - seconds, time.time()))


def time_imports() -> None:
    bootstrap, depth = sys.modules["_frozen_importlib"], 0
    find_and_load = bootstrap._find_and_load
    unwrapped, listening = [(stage, path) for stage, paths in OF_FUNCTIONS.items() for path in paths], False

    def wrapper(name, *rest):
        nonlocal depth, listening
        depth, start = depth + 1, time.time()
        try:
            return find_and_load(name, *rest)
        finally:
            depth -= 1
            if not depth:
                intervals["imports"].append((start, time.time()))
                time_functions(unwrapped)
                if "jax.monitoring" in sys.modules and not listening:
                    listening = True
                    sys.modules["jax.monitoring"].register_event_duration_secs_listener(listen)

    bootstrap._find_and_load = wrapper


def covered(some: list[tuple[float, float]]) -> float:
    """Seconds that intervals cover, overlaps once."""
    total, last = 0.0, 0.0
    for start, end in sorted(some):
        total += max(0.0, end - max(start, last))
        last = max(last, end)
    return total


def write(spawned: float, out: str) -> None:
    intervals["Python"].append((spawned, began))
    intervals["the rest"].append((spawned, time.time()))
    so_far, seconds = [], {}
    for stage in STAGES:
        before = covered(so_far)
        so_far += intervals[stage]
        seconds[stage] = covered(so_far) - before
    with open(out, "w") as file:
        json.dump(seconds, file)


def end_at(text: str, spawned: float, out: str) -> None:
    """Write, and end this process, when it says so on stderr."""
    say = sys.stderr.write

    def wrapper(message: str) -> int:
        n = say(message)
        if text in message:
            write(spawned, out)
            os._exit(0)
        return n

    sys.stderr.write = wrapper


if __name__ == "__main__":
    _, spawned, out, until, *words = sys.argv
    sys.argv[1:] = words
    time_imports()
    if until:
        end_at(until, float(spawned), out)
    try:
        if words[0] == "-c":
            exec(words[1], {})
        else:
            import_module("upalm.__main__").main()
    finally:
        write(float(spawned), out)
