"""The report's figures that a run with one benchmark doesn't draw."""

from __future__ import annotations

from dasd_megatron.report.figures import accuracy_by_benchmark


def test_all_benchmarks_at_once() -> None:
    """A group a benchmark, a bar a model, at the highest temperature; the same numbers give the same file."""
    accuracy = {"mean": 0.5, "low": 0.4, "high": 0.6}
    of_models = {model: {"greedy": {}, "1": {"accuracy": accuracy}} for model in ("student", "low_temperature")}
    drawn = accuracy_by_benchmark({"aime24": of_models, "gpqa_diamond": of_models})
    assert drawn.startswith("<svg")
    assert drawn == accuracy_by_benchmark({"aime24": of_models, "gpqa_diamond": of_models})
    assert drawn != accuracy_by_benchmark({"aime24": of_models})
