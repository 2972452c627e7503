"""Problems in LiveCodeBench's schema, each with solutions that are right and wrong, of both of its kinds.

A solution is a program; `True` beside it says that it passes.
"""

from __future__ import annotations

import base64
import json
import pickle
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class CodingProblem:
    """A problem with its tests, the first of which is public."""

    name: str
    tests: Sequence[tuple[str, str]]
    solutions: Sequence[tuple[str, bool]]
    function: str | None = None
    date: str = "2025-01-15T00:00:00"
    question: str = field(default="", kw_only=True)

    def row(self) -> dict[str, Any]:
        """As the data set has it: the tests that are not public packed as its authors pack them."""
        kind = "stdin" if self.function is None else "functional"
        tests = [{"input": given, "output": expected, "testtype": kind} for given, expected in self.tests]
        packed = base64.b64encode(zlib.compress(pickle.dumps(json.dumps(tests[1:])))).decode()
        return {
            "question_title": self.name,
            "question_content": self.question or f"Solve {self.name}.",
            "platform": "atcoder" if self.function is None else "leetcode",
            "question_id": self.name,
            "contest_id": "contest",
            "contest_date": self.date,
            "starter_code": ""
            if self.function is None
            else f"class Solution:\n    def {self.function}(self):\n        ",
            "difficulty": "easy",
            "public_test_cases": json.dumps(tests[:1]),
            "private_test_cases": packed,
            "metadata": json.dumps({} if self.function is None else {"func_name": self.function}),
        }


def solution(function: str, body: str, arguments: str = "x") -> str:
    """A class as LeetCode's."""
    return f"class Solution:\n    def {function}(self, {arguments}):\n        {body}\n"


_TWO = [("3\n4\n", "7\n"), ("10\n-4\n", "6\n"), ("0\n0\n", "0\n")]
_LINES = [("3\n1 2 3\n", "6\n"), ("1\n5\n", "5\n"), ("4\n1 1 1 1\n", "4\n")]
STDIN = [
    CodingProblem("sum_of_two", _TWO, [
        ("print(int(input()) + int(input()))", True),
        ("a = int(input())\nb = int(input())\nprint(a - b)", False),
        ("print(7)", False),
        ("import sys\nprint(sum(map(int, sys.stdin.read().split())))", True),
        ("import sys\nprint(sum(map(int, sys.stdin.readlines())))", True),
        ("def main():\n    print(int(input()) + int(input()))\nif __name__ == '__main__':\n    main()", True),
        ("print(int(input()) + int(input())", False),
        ("raise ValueError(input())", False),
        ("print(float(int(input()) + int(input())))", True),
    ]),
    CodingProblem("sum_of_list", _LINES, [
        ("input()\nprint(sum(map(int, input().split())))", True),
        ("n = int(input())\nprint(n)", False),
        ("input()\nprint(sum(map(int, input().split())), end='')", True),
        ("input()\nprint('Sum:', sum(map(int, input().split())))", False),
    ]),
    CodingProblem("squares", [("3\n", "1\n4\n9\n"), ("1\n", "1\n"), ("5\n", "1\n4\n9\n16\n25\n")], [
        ("for i in range(1, int(input()) + 1): print(i * i)", True),
        ("print(*[i * i for i in range(1, int(input()) + 1)])", False),
        ("print(*[i * i for i in range(1, int(input()) + 1)], sep='\\n')", True),
        ("for i in range(1, int(input()) + 1): print(i * i, '')", True),
        ("for i in range(int(input())): print(i * i)", False),
    ]),
    CodingProblem("half", [("3\n", "1.5\n"), ("4\n", "2.0\n"), ("1\n", "0.5\n")], [
        ("print(int(input()) / 2)", True),
        ("n = int(input())\nprint(n / 2 if n % 2 else n // 2)", True),
        ("print(round(int(input()) / 2 + 1e-9, 6))", True),
        ("print(int(input()) / 2 + 1e-9)", False),
        ("print('%.3f' % (int(input()) / 2))", True),
    ]),
    CodingProblem("yes_or_no", [("4\n", "Yes\n"), ("5\n", "No\n"), ("0\n", "Yes\n")], [
        ("print('No' if int(input()) % 2 else 'Yes')", True),
        ("print('NO' if int(input()) % 2 else 'YES')", False),
        ("print('Yes')", False),
    ]),
    CodingProblem("big_numbers", [("30\n", f"{3**30}\n"), ("100\n", f"{3**100}\n")], [
        ("print(3 ** int(input()))", True),
        ("print(int(3.0 ** int(input())))", False),
        ("print(3 ** int(input()) + 1)", False),
    ]),
    CodingProblem("reverse", [("abc\n", "cba\n"), ("a b\n", "b a\n")], [
        ("print(input()[::-1])", True),
        ("print(''.join(reversed(input())))", True),
        ("print(input())", False),
    ]),
    CodingProblem("empty_output", [("0\n", "\n"), ("2\n", "**\n")], [
        ("print('*' * int(input()))", True),
        ("n = int(input())\nif n: print('*' * n)", True),
        ("print('*')", False),
    ]),
    CodingProblem("uses_the_header", [("3 1 2\n", "1 2 3\n"), ("9 8\n", "8 9\n")], [
        ("h = list(map(int, input().split()))\nheapify(h)\nprint(*[heappop(h) for _ in range(len(h))])", True),
        ("print(*sorted(map(int, input().split())))", True),
        ("print(*Counter(map(int, input().split())))", False),
    ]),
    CodingProblem("deep_recursion", [("5000\n", "5000\n"), ("10\n", "10\n")], [
        ("def f(n):\n    return 0 if n == 0 else 1 + f(n - 1)\nprint(f(int(input())))", True),
        ("def f(n):\n    return 1 if n == 0 else 1 + f(n - 1)\nprint(f(int(input())))", False),
    ]),
    CodingProblem("exits", [("1\n", "1\n"), ("2\n", "2\n")], [
        ("import sys\nprint(input())\nsys.exit(0)", True),
        ("print(input())\nquit()\nprint(3)", False),
            ("print(input())\nexit()\nprint(3)", True),
        ("import sys\nsys.exit(0)", False),
    ]),
    CodingProblem("slow", [("1\n", "1\n"), ("2\n", "2\n")], [
        ("print(input())", True),
        ("n = input()\nwhile True: pass", False),
    ]),
]  # fmt: skip
FUNCTIONS = [
    CodingProblem("double", [("3", "6"), ("0", "0"), ("-2", "-4")], [
        (solution("double", "return 2 * x"), True),
        (solution("double", "return x * x - 3"), False),
        (solution("double", "return 2.0 * x"), True),
        (solution("double", "return str(2 * x)"), False),
        (solution("double", "return None"), False),
        (solution("twice", "return 2 * x"), False),
        (solution("double", "raise KeyError(x)"), False),
        (solution("double", "print(x); return 2 * x"), True),
        (solution("double", "return (2 * x,)"), False),
    ], "double"),
    CodingProblem("pair_sum", [("[1, 2, 3]\n5", "[1, 2]"), ("[4, 4]\n8", "[0, 1]")], [
        ("class Solution:\n    def pair(self, xs: List[int], t: int) -> List[int]:\n        for i, a in enumerate(xs):\n"
         "            for j in range(i):\n                if a + xs[j] == t: return [j, i]", True),
        ("class Solution:\n    def pair(self, xs, t):\n        for i, a in enumerate(xs):\n"
         "            for j in range(i):\n                if a + xs[j] == t: return (j, i)", True),
        ("class Solution:\n    def pair(self, xs, t):\n        return [1, 2]", False),
    ], "pair"),
    CodingProblem("nested", [("[[1, 2], [3]]", "[[2, 1], [3]]"), ("[]", "[]")], [
        (solution("turn", "return [row[::-1] for row in x]"), True),
        (solution("turn", "return [tuple(row[::-1]) for row in x]"), False),
        (solution("turn", "return x"), False),
    ], "turn"),
    CodingProblem("words", [('"abc"', '"cba"'), ('""', '""')], [
        (solution("turn", "return x[::-1]"), True),
        (solution("turn", "return list(x[::-1])"), False),
    ], "turn"),
    CodingProblem("truth", [("4", "true"), ("5", "false")], [
        (solution("even", "return x % 2 == 0"), True),
        (solution("even", "return 1 - x % 2"), True),
        (solution("even", "return 'true' if x % 2 == 0 else 'false'"), False),
    ], "even"),
    CodingProblem("state", [("1", "1"), ("1", "1"), ("2", "2")], [
        ("class Solution:\n    def f(self, x):\n        return x", True),
        ("seen = []\nclass Solution:\n    def f(self, x):\n        return x + 0 * len(seen)", True),
    ], "f"),
    CodingProblem("loops", [("1", "1"), ("2", "2")], [
        (solution("f", "return x"), True),
        (solution("f", "while x > 1: pass\n        return x"), False),
    ], "f"),
    CodingProblem("module_function", [("3", "9"), ("1", "1")], [
        ("def square(x):\n    return x * x", True),
        ("def square(x):\n    return x + x", False),
    ], "square"),
    CodingProblem("numbers", [("10", "0.1"), ("4", "0.25")], [
        (solution("inverse", "return 1 / x"), True),
        (solution("inverse", "return round(1 / x, 1)"), False),
        (solution("inverse", "return numpy_inverse(x)"), False),
    ], "inverse"),
    CodingProblem("mapping", [('"aab"', '{"a": 2, "b": 1}'), ('""', "{}")], [
        (solution("count", "return dict(Counter(x))"), True),
        (solution("count", "return Counter(x)"), True),
        (solution("count", "return {c: 1 for c in x}"), False),
    ], "count"),
]  # fmt: skip
PROBLEMS = [*STDIN, *FUNCTIONS]
