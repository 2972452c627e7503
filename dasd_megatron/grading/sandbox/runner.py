"""Runs in the sandbox, before and with the program: nothing but the standard library, and nothing secret.

python runner.py SETTINGS; the program is /program.py. Its standard input is the program's own, or, where a function is called, or
statements are checked, a JSON object: what to do with the program once it is loaded.
"""

import builtins
import json
import os
import resource
import site
import sys
import threading
from typing import Any, TextIO

# What LiveCodeBench's grader lets a solution use without importing it.
HEADER = """
from string import *
from re import *
from datetime import *
from collections import *
from heapq import *
from bisect import *
from copy import *
from math import *
from random import *
from statistics import *
from itertools import *
from functools import *
from operator import *
from io import *
from sys import *
from json import *
from builtins import *
from typing import *
import string
import re
import datetime
import collections
import heapq
import bisect
import copy
import math
import random
import statistics
import itertools
import functools
import operator
import io
import sys
import builtins
import json
sys.setrecursionlimit(50000)
"""
PROGRAM = "/program.py"
THREAD_STACK = 64 * 1024**2  # the default would be the main thread's, which has room for very deep recursion


def main() -> None:
    """Entry point."""
    task = json.loads(sys.argv[1])
    for name, value in task["limits"].items():
        hard = value + 1 if name == "RLIMIT_CPU" else value  # a second after SIGXCPU, which a program can catch
        resource.setrlimit(getattr(resource, name), (value, hard))
    threading.stack_size(THREAD_STACK)
    sys.path[:] = [*(path for path in sys.path if path != "/"), *task["packages"]]
    sys.argv = [PROGRAM]
    site.setquit()
    del builtins.quit  # as LiveCodeBench's grader has it: `exit` alone
    with open(PROGRAM, encoding="utf-8") as file:
        source = file.read()
    os.write(task["started"], b"\n")  # everything up to here has worked
    os.close(task["started"])
    {"stdin": run, "function": call, "check": check}[task["mode"]](source)


def namespace(name: str) -> dict[str, Any]:
    """Globals with what LiveCodeBench's grader imports."""
    names: dict[str, Any] = {"__name__": name}
    exec(HEADER, names)
    return names


def run(source: str) -> None:
    """The program itself, which reads and prints."""
    exec(compile(source, PROGRAM, "exec"), namespace("__main__"))


def call(source: str) -> None:
    """A function, or a method of `Solution`, with arguments; prints what it returns, as JSON."""
    result = own_output()
    asked = json.loads(sys.stdin.read())
    names = namespace("solution")
    exec(compile(source, PROGRAM, "exec"), names)
    owner = names["Solution"]() if "Solution" in names else None
    function = names[asked["function"]] if owner is None else getattr(owner, asked["function"])
    value = function(*asked["arguments"])
    json.dump(plain(list(value) if isinstance(value, tuple) else value), result)
    result.close()


def check(source: str) -> None:
    """The program, then statements that raise where it is wrong; then a word says that they didn't.

    By then the program has run in the same process: one that is out to deceive its grader could find the word in this frame.
    Tests of standard output and of functions are compared outside, and know no such way.
    """
    result = own_output()
    asked = json.loads(sys.stdin.read())  # not the program's to read
    names: dict[str, Any] = {"__name__": "solution"}
    exec(compile(source, PROGRAM, "exec"), names)
    exec(compile(asked["statements"], "/check.py", "exec"), names)
    result.write(asked["word"])
    result.close()


def own_output() -> TextIO:
    """Standard output, which the program loses: what it prints goes nowhere."""
    result = os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    return result


def plain(value: Any) -> Any:
    """A value as JSON has it; what JSON would make equal to something else is marked, and equals nothing."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: plain(item) for key, item in value.items()}
    if type(value).__module__ == "numpy" and hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return plain(value.item())
    return {"no JSON": repr(value)[:100]}


if __name__ == "__main__":
    main()
