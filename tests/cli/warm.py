"""A process that has imported torch once and forks a child for each command: real processes, but quick.

Reads one JSON object a line, {"arguments": [...], "environment": {...}, "folder": ..., "log": ...}, and
answers with the child's pid; asked to "wait", with its exit status when it ends (negative: the signal
that killed it).
"""

import gc
import json
import os
import signal
import sys
from importlib import import_module
from pkgutil import walk_packages

import torch

OTHERS = ("jinja2", "rich.console", "rich.table", "ruamel.yaml", "safetensors.torch")
OTHERS += ("torch._dynamo",)  # which the first checkpoint imports, in seconds

for room in ("cli", "bilevel", "diffusion"):
    package = import_module(f"genbo.{room}")
    for found in walk_packages(package.__path__, f"{package.__name__}."):
        import_module(found.name)
for name in OTHERS:
    import_module(name)
import_module("genbo.cli.report.html").page()  # which compiles the template
os.fsync = lambda descriptor: None  # what a killed process wrote is there without
gc.collect()
gc.freeze()  # or each child's search for garbage copies all that was imported


def child(order: dict) -> None:
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(order["folder"])
    os.environ.update(order["environment"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from genbo.cli.commands.tune import run
    from genbo.cli.errors import GenboError

    torch.set_num_threads(1)
    job, *flags = order["arguments"]
    try:
        code = run(job, [], resume="--resume" in flags, overwrite="--overwrite" in flags)
    except GenboError as problem:
        print(problem, file=sys.stderr)
        code = problem.exit_code
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def serve() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            child(order)
        print("started", pid, flush=True)
        assert sys.stdin.readline() == "wait\n"  # until then an ended child keeps its pid
        _, status = os.waitpid(pid, 0)
        print("ended", pid, os.waitstatus_to_exitcode(status), flush=True)


print("ready", flush=True)
serve()
