"""HumanEval: 164 functions to complete, with tests."""

from __future__ import annotations

import json

from dasd_megatron.evaluation.benchmarks.benchmark import Benchmark, Problem, Row, text_of

TEMPLATE = (
    "Complete the following Python function. Answer with the whole function, imports included, in one Python code block.\n\n"
    "```python\n{question}\n```"
)


def _problem(row: Row) -> Problem:
    prompt, entry_point = text_of(row, "prompt"), text_of(row, "entry_point")
    reference = {"prompt": prompt, "check": f"{text_of(row, 'test')}\ncheck({entry_point})"}
    return Problem(text_of(row, "task_id"), prompt.strip(), json.dumps(reference), "code")


HUMAN_EVAL = Benchmark(
    problem=_problem,
    columns=["task_id", "prompt", "entry_point", "test"],
    grader="code",
    template=TEMPLATE,
    dataset="openai/openai_humaneval",
    count=164,
)
