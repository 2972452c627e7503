"""What a study leaves behind: study.html, study.json, study.md and its figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from dasd_megatron import __version__
from dasd_megatron.studies.results import KL, Results, results_of
from dasd_megatron.studies.study import Study
from dasd_megatron.studies.study_table import arm_rows, comparison_rows, markdown_lines, measure_title
from dasd_megatron.utils.files import write_atomically, write_json
from dasd_megatron.utils.text_table import text_table

PAGE, NUMBERS, TABLES, FIGURES = "study.html", "study.json", "study.md", "figures"


def conclude(study: Study) -> None:
    """Writes the files and prints the tables, of the seeds with which every arm is done; says what is missing."""
    seeds = study.whole_seeds
    if len(seeds) < len(study.config.seeds):
        left = [seed for seed in study.config.seeds if seed not in seeds]
        print(f"not every arm is done with seed{'s' if len(left) > 1 else ''} {', '.join(map(str, left))}: left out")
    if not seeds:
        return
    results = results_of(study)
    write_study(study, results)
    for benchmark, problems in results.problems.items():
        with_seeds = f"seeds {', '.join(map(str, results.seeds))}"
        print(f"\n{study.config.name}: {benchmark}, {problems:,} problems, {with_seeds} (mean ± standard error)\n")
        print("\n".join(text_table(arm_rows(results, benchmark))))
        if results.comparisons:
            print("\n" + "\n".join(text_table(comparison_rows(results, benchmark), words=(0, 1))))
    print(f"\n{study.config.study_dir / PAGE}    with figures")


def write_study(study: Study, results: Results) -> None:
    """Writes the files into the study's folder."""
    folder = study.config.study_dir
    write_json(folder / NUMBERS, results.as_json())
    _write(folder / TABLES, "\n".join(_markdown(results)) + "\n")
    drawn = {benchmark: _figures(results, benchmark) for benchmark in results.problems}
    for benchmark, figures in drawn.items():
        for caption, svg in figures.items():
            name = "_".join("".join(c if c.isalnum() else " " for c in f"{benchmark} {caption}").split()).lower()
            _write(folder / FIGURES / f"{name}.svg", svg)
    _write(folder / PAGE, _page(study, results, drawn))


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))


def _markdown(results: Results) -> Iterator[str]:
    for benchmark, problems in results.problems.items():
        yield f"### {benchmark}, {problems:,} problems, seeds {', '.join(map(str, results.seeds))}\n"
        yield from markdown_lines(arm_rows(results, benchmark))
        if results.comparisons:
            yield ""
            yield from markdown_lines(comparison_rows(results, benchmark))
        yield ""


def _figures(results: Results, benchmark: str) -> dict[str, str]:
    """SVG by caption."""
    from dasd_megatron.studies import study_figures as figures  # matplotlib

    arms = {name: found[benchmark] for name, found in results.estimates.items()}
    measures = list(next(iter(arms.values())))
    accuracies = [measure for measure in measures if measure != KL]
    drawn = {}
    for measure in measures:
        title = "KL to the teacher" if measure == KL else f"Accuracy, {measure_title(measure).removesuffix(', %')}"
        of_arms = {name: found[measure] for name, found in arms.items() if measure in found}
        drawn[title] = figures.arms_by_measure(of_arms, measure)
        if results.comparisons:
            drawn[f"Differences: {title}"] = figures.differences_by_question(results.comparisons, benchmark, measure)
    aligned = {name: found for name, found in arms.items() if KL in found}
    if aligned:
        drawn["Accuracy and alignment"] = figures.accuracy_against_alignment(aligned, accuracies[-1])
    return drawn


def _page(study: Study, results: Results, drawn: Mapping[str, Mapping[str, str]]) -> str:
    here = Path(__file__).parent
    loader = FileSystemLoader([here, here.parent / "report"])
    benchmarks: list[dict[str, Any]] = [
        {
            "name": benchmark,
            "problems": problems,
            "arms": arm_rows(results, benchmark),
            "comparisons": comparison_rows(results, benchmark),
            "figures": drawn[benchmark],
        }
        for benchmark, problems in results.problems.items()
    ]
    return (
        Environment(loader=loader, autoescape=True)
        .get_template("study.html")
        .render(
            title=study.config.name.replace("_", " "),
            recipe=study.config.recipe,
            seeds=results.seeds,
            arms=study.config.arms,
            benchmarks=benchmarks,
            version=__version__,
        )
    )
