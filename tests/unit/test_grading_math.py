"""The grader `math` on labelled pairs of answers, and on what must not stop it."""

from __future__ import annotations

from itertools import permutations

import pytest

from dasd_megatron.grading.mathematics import grade_math
from dasd_megatron.grading.registry import grade
from dasd_megatron.grading.verdict import NOT_EXTRACTED, TIMED_OUT

# Ways to write the same answer: each is a right answer to each.
SAME = [
    # fractions and decimals
    ["1/2", "0.5", r"\frac{1}{2}", r"\dfrac{1}{2}", r"\tfrac12", ".5", "$\\frac{2}{4}$"],
    ["7/4", r"\frac{7}{4}", "1.75", r"1\frac{3}{4}", r"\dfrac74"],
    ["-3/8", r"-\frac{3}{8}", r"\frac{-3}{8}", "-0.375"],
    ["2.50", "2.5", r"\frac{5}{2}", "$2.5$"],
    # whole numbers and marks between thousands
    ["1024", "1,024", "1{,}024", r"1\,024", r"1\;024", "2^{10}", "$1024$", "1024."],
    ["1000000", "1,000,000", r"1\,000\,000", "10^6", "10^{6}"],
    ["-12", "−12", "$-12$", "(-12)", r"\text{-12}"],
    ["204", "204.0", "0204", r"\mathbf{204}", "**204**"],
    ["0", "-0", "0.0", r"\frac{0}{5}"],
    # powers and roots
    [r"\sqrt{2}/2", r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}", r"2^{-1/2}"],
    ["2^{100}", "1267650600228229401496703205376", r"4^{50}"],
    [r"2\sqrt{3}", r"\sqrt{12}", r"2 \cdot \sqrt{3}"],
    [r"\sqrt[3]{8}", "2", r"8^{1/3}"],
    [r"3^{5}", "243", r"3^5", r"9 \cdot 27"],
    # constants and functions
    [r"2\pi", r"2 \pi", r"\pi \cdot 2", r"\frac{4\pi}{2}"],
    [r"\ln 2", r"\ln(2)", r"\ln{2}"],
    [r"e^{2}", "e^2", r"e \cdot e"],
    [r"\sin(x)", r"\sin x", r"\sin{x}"],
    # expressions
    ["(x+1)^2", "x^2+2x+1", r"(x+1)(x+1)", "1+2x+x^2"],
    ["x^2-y^2", "(x-y)(x+y)", "-y^2+x^2"],
    [r"\frac{n(n+1)}{2}", r"n(n+1)/2", r"\frac{n^2+n}{2}"],
    ["3+4i", "4i+3"],
    # units and degrees
    ["10", r"10\text{ cm}", r"10 \mathrm{~cm}", r"10\,\text{cm}"],
    ["90", r"90^\circ", r"90^{\circ}", "90°"],
    ["25", r"25\text{ square units}", r"\$25"],
    # equations
    ["x=5", "x = 5", "$x=5$"],
    ["y=2x+1", "y = 2x + 1", "2x+1=y"],
    # intervals, sets, tuples
    ["(1,2)", "(1, 2)", r"\left(1,2\right)", r"\left( 1, 2 \right)"],
    ["[0,1]", "[0, 1]", r"\left[0,1\right]"],
    [r"(-\infty,3]", r"(-\infty, 3]", r"\left(-\infty, 3\right]"],
    [r"\{1,2,3\}", r"\{3,2,1\}", r"\left\{1, 2, 3\right\}"],
    [r"(\frac{1}{2}, 3)", "(0.5, 3)", "(1/2,3)"],
    [r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{bmatrix}1\\2\end{bmatrix}"],
    [r"(-\infty,0)\cup(1,\infty)", r"(1,\infty)\cup(-\infty,0)"],
    # percentages
    [r"50\%", "50%", r"50 \%"],
    # texts and choices
    [r"\text{even}", "even", "Even", r"\mathrm{even}"],
    [r"\text{no solution}", "no solution", "No solution"],
    ["B", r"\text{B}", "(B)", r"\textbf{(B)}", "**B**", r"\mathrm{(B)}"],
    [r"\infty", r"\text{infinity}".replace("text{infinity}", "infty"), r"+\infty"],
]
# An answer, and another that it isn't.
DIFFERENT = [
    ("1/2", "1/3"), ("0.5", "0.05"), ("7/4", "4/7"), ("1.75", "1.7"), ("-3/8", "3/8"), (r"\frac{7}{4}", "7"),
    (r"\frac{7}{4}", "4"), ("2.5", "25"), ("1024", "1025"), ("1,024", "1"), ("1,024", "24"), ("10^{3}", "3"),
    ("10^{3}", "10"), ("9007199254740993", "9007199254740992"), ("100000000000000001", "100000000000000000"), ("-12", "12"),
    ("204", "20.4"), ("204", "2040"), ("0", "1"), ("5-3", "-3"), ("2 or 3", "2"), ("2 or 3", "3"), ("2, 3", "2"),
    ("2, 3", "3"), (r"2 \text{ or } 3", "3"), (r"\sqrt{2}", "2"), (r"\sqrt{2}", r"\sqrt{3}"),
    (r"\frac{\sqrt{2}}{2}", r"\sqrt{2}"), ("2^{100}", "2^{101}"), ("2^{100}", "200"), (r"2\sqrt{3}", "6"),
    (r"\sqrt[3]{8}", r"\sqrt{8}"), ("x^2", "x"), ("x^2", "y^2"), ("2", "-2"), (r"\pm 2", "2"), (r"2\pi", r"\pi"),
    (r"2\pi", "2"), (r"\ln 2", "2"), (r"\ln 2", r"\log_{10} 2"), ("e^2", "2"), ("e^2", "e"), (r"\sin x", r"\cos x"),
    ("(x+1)^2", "x^2+1"), ("x^2-y^2", "x^2+y^2"), (r"\frac{n(n+1)}{2}", r"\frac{n(n-1)}{2}"), ("3+4i", "3-4i"),
    ("3+4i", "7"), (r"10\text{ cm}", "100"), (r"90^\circ", "45"), ("x=5", "6"), ("x=5", "x=-5"), ("y=2x+1", "y=2x-1"),
    ("(1,2)", "(2,1)"), ("(1,2)", "[1,2]"), ("(1,2)", "(1,2]"), ("(1,2)", "(1,3)"), ("[0,1]", "[0,1)"),
    (r"(-\infty,3]", r"(-\infty,3)"), (r"(-\infty,3]", r"[3,\infty)"), (r"\{1,2,3\}", r"\{1,2\}"),
    (r"\{1,2,3\}", r"\{1,2,4\}"), (r"\{1,2\}", "1"), (r"(\frac{1}{2}, 3)", "(0.5, 4)"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}"),
    (r"(-\infty,0)\cup(1,\infty)", r"(-\infty,1)\cup(1,\infty)"), (r"50\%", r"5\%"), ("even", "odd"),
    (r"\text{even}", r"\text{odd}"), ("no solution", "0"), ("B", "C"), (r"\text{B}", "A"), ("(B)", "D"),
    (r"\textbf{(B)}", "E"), (r"\infty", r"-\infty"), (r"\infty", "0"), ("0.333", "1/3"), ("3.14", r"\pi"),
    ("1.41", r"\sqrt{2}"), ("12", "21"), ("1e3", "3"), ("1/0", "0"), ("a+b", "a-b"), ("2x", "x^2"), ("2x", "2"),
    ("f(x)=x", "x^2"), ("17", "1.7"), ("4!", "4"), ("4!", "12"),
]  # fmt: skip
PAIRS = [(answer, reference, True) for forms in SAME for answer, reference in permutations(forms, 2)] + [
    (answer, reference, False) for pair in DIFFERENT for answer, reference in (pair, pair[::-1])
]


def test_labelled_pairs() -> None:
    assert len(PAIRS) > 300
    found = [grade_math(f"So the answer is \\boxed{{{answer}}}.", reference).correct for answer, reference, _ in PAIRS]
    missed = [pair for pair, correct in zip(PAIRS, found, strict=True) if correct is not pair[2]]
    assert len(missed) <= len(PAIRS) / 100, missed


@pytest.mark.parametrize(
    ("answer", "extracted"),
    [
        (r"We get $x = 3$. **Final answer:** $\frac{1}{2}$", r"\frac{1}{2}"),
        ("The final answer is 12.", "12"),
        ("First 3, then 4, so there are 204 of them in all", "204"),
        ("42", "42"),
        ("$$\n7\n$$", "7"),
    ],
)
def test_extraction(answer: str, extracted: str) -> None:
    verdict = grade(f"<think>\\boxed{{1}}</think>{answer}", extracted, "math")
    assert (verdict.correct, verdict.extracted) == (True, extracted)


def test_nothing_to_extract() -> None:
    assert grade("I could not find out what is asked for here", "2", "math").reason == NOT_EXTRACTED


def test_a_comparison_that_takes_too_long() -> None:
    """sympy stops for no exception: math-verify#55. The next comparison goes on in a new process."""
    assert grade(r"\boxed{9^{9^{9^{9}}}}", "5", "math").reason == TIMED_OUT
    assert grade(r"\boxed{\frac{10}{4}}", "5/2", "math").correct is True


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("**Answer: 42**", "42", True),
        ("**The answer is 42.**", "42", True),
        ("**Final answer: 42**", "42", True),
        ("The final answer is $42$, since $a=6$.", "42", True),
        (r"The answer is $\frac{3}{4}$ where $x$ is the length.", "3/4", True),
        (r"\boxed{42} as seen, so \boxed{43", "42", True),
        (r"\boxed{(1{,}000, 2)}", "(1000,2)", True),
        (r"\boxed{\frac{1{,}000}{3}}", "1000/3", True),
        (r"\boxed{10\,\mathrm{m/s}}", "10", True),
        (r"\boxed{5 \text{ dollars}}", "5", True),
        (r"\boxed{(0, 1)}", r"\{0, 1\}", False),
    ],
)
def test_what_is_taken_and_compared(answer: str, reference: str, right: bool) -> None:
    assert grade(answer, reference, "math").correct is right
