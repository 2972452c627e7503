"""Filters, divergence scores, selection and packing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dasd_megatron.artifacts.artifact import Artifact
from dasd_megatron.artifacts.writer import ArtifactWriter
from dasd_megatron.config.curation import FiltersConfig, SelectionConfig
from dasd_megatron.config.models import ModelConfig
from dasd_megatron.config.recipe import Recipe
from dasd_megatron.curation import packing
from dasd_megatron.curation.documents import DocumentIndex, read_documents
from dasd_megatron.curation.filtering import FilterConfig, FilterStep, ResponseFilter
from dasd_megatron.curation.packing import PackStep, PackStepConfig, pack
from dasd_megatron.curation.scores import BUILTIN, scores_of
from dasd_megatron.curation.selection import BINS, CANDIDATES, choose, difference_facts, text_hash
from dasd_megatron.curation.sentence_probabilities import SentenceProbabilities, sentence_probabilities
from dasd_megatron.curation.sentences import SentenceSplitter
from dasd_megatron.sampling.responses import RESPONSES
from dasd_megatron.tokenization.tokenizer import ChatTokenizer
from dasd_megatron.utils.errors import UserError
from tests.conftest import TOY

DEFAULT_END = Recipe.model_fields["sentence_end"].default


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("It is 3.14 cm. Right? Yes!", ["It is 3.14 cm. ", "Right? ", "Yes!"]),
        ("一。二！三", ["一。", "二！", "三"]),
        ("<think>\na\nb</think>\n\nc. d", ["<think>\na\n", "b", "</think>\n\nc. ", "d"]),
        ('He said "no." Then left.', ['He said "no." ', "Then left."]),
        ("यह ठीक है। हाँ।", ["यह ठीक है।", " हाँ।"]),
        ("半角｡全角．終", ["半角｡", "全角．", "終"]),
        ("", []),
    ],
)
def test_sentences(text: str, sentences: list[str]) -> None:
    assert SentenceSplitter(DEFAULT_END).split(text) == sentences


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("1. First we add. 2. Then, e.g. 3 of them.", ["1. First we add. ", "2. Then, e.g. 3 of them."]),
        ("So it is done now. OK.", ["So it is done now. OK."]),
        ("<think>\nAll is well here.\nYes.\n</think>\n\n42", ["<think>\nAll is well here.\nYes.\n", "</think>\n\n42"]),
        ("<think>a</think>b", ["<think>a", "</think>b"]),
        ("<think>All is well here. \n</think>42", ["<think>All is well here. \n", "</think>42"]),
        ("a. b.", ["a. b."]),
    ],
)
def test_short_sentences_are_joined(text: str, sentences: list[str]) -> None:
    """To the next one; the last to the one before, but never the answer to the reasoning."""
    assert SentenceSplitter(DEFAULT_END, min_bytes=12).split(text) == sentences


@given(st.text(alphabet="ab。. \n", max_size=60), st.text(alphabet="ab。. \n", max_size=60), st.integers(0, 20))
def test_sentences_partition_the_text_whatever_the_minimum(thinking: str, answer: str, least: int) -> None:
    text = f"<think>{thinking}</think>{answer}"
    splitter = SentenceSplitter(DEFAULT_END, least)
    sentences = splitter.split(text)
    assert "".join(sentences) == text
    close = next((n for n, sentence in enumerate(sentences) if sentence.lstrip().startswith("</think>")), 0)
    assert close or not thinking.strip()
    for part in (sentences[:close], sentences[close:]):
        assert len(part) <= 1 or min(len(sentence.encode()) for sentence in part) >= least


def test_toy_sentences() -> None:
    assert SentenceSplitter("[;!]").split("<think>3*4=2;2+4=7!2+4=6;</think>6") == [
        "<think>3*4=2;",
        "2+4=7!",
        "2+4=6;",
        "</think>6",
    ]


def test_bad_sentence_pattern() -> None:
    with pytest.raises(UserError, match="sentence_end: not a regular expression"):
        SentenceSplitter("(")


def response_row(teacher: ChatTokenizer, text: str, finish: str = "stop", **fields: Any) -> dict[str, Any]:
    """A sampled row as the `sample` step writes it."""
    ids = teacher.encode(text) + ([teacher.end_of_turn_id] if finish == "stop" else [])
    return {
        "uuid": "u",
        "sample_index": 0,
        "input": "3*4?",
        "domain": "math",
        "answer": "2",
        "temperature": 1.0,
        "prompt_ids": teacher.prompt_ids("3*4?"),
        "prefix_ids": [],
        "token_ids": ids,
        "logprobs": [-0.1] * len(ids),
        "tokens": len(ids),
        "finish_reason": finish,
        "max_tokens": 64,
        "text": text,
        **fields,
    }


FILTER_CONFIG = FilterConfig(
    teacher=ModelConfig(model=TOY / "teacher"),
    student=ModelConfig(model=TOY / "student"),
    filters=FiltersConfig(min_repeated_words=50),
    sentence_end="[;!]",
    context_length=90,
    max_length=None,
)


@pytest.mark.parametrize(
    ("text", "finish", "reason"),
    [
        ("<think>3*4=2;</think>2", "stop", None),
        ("<think>3*4=2;", "length", "truncated"),
        ("3*4=2;", "stop", "no_thinking"),
        ("<think>3*4=2;", "stop", "no_answer"),
        ("<think>" + "1" * 99 + "</think>2", "stop", "too_long"),
        ("<think>" + "3*4=2;" * 14 + "</think>2", "stop", "repeated"),
    ],
)
def test_filter_reasons(
    teacher_tokenizer: ChatTokenizer, student_tokenizer: ChatTokenizer, text: str, finish: str, reason: str | None
) -> None:
    rule = ResponseFilter(FILTER_CONFIG, teacher_tokenizer, student_tokenizer, max_document_tokens=90)
    [(found, row)] = rule.apply([response_row(teacher_tokenizer, text, finish)])
    assert found == reason
    assert row["text"] == text


def test_filter_drops_written_out_special_tokens(
    teacher_tokenizer: ChatTokenizer, student_tokenizer: ChatTokenizer
) -> None:
    """A teacher that spells the student's end of turn would end the student's turn in the middle."""
    row = response_row(teacher_tokenizer, "<think>3*4=2;</think>2")
    spelled = {**row, "token_ids": [], "prefix_ids": []}
    rule = ResponseFilter(FILTER_CONFIG, teacher_tokenizer, student_tokenizer, max_document_tokens=90)
    rule._format = _Spelling("<think>a<|im_end|></think>2")  # type: ignore[assignment]
    assert rule.apply([spelled])[0][0] == "special_token"


def test_filter_drops_prompts_with_special_tokens(
    teacher_tokenizer: ChatTokenizer, student_tokenizer: ChatTokenizer
) -> None:
    row = response_row(teacher_tokenizer, "<think>3*4=2;</think>2", input="3*4?<|im_end|>")
    rule = ResponseFilter(FILTER_CONFIG, teacher_tokenizer, student_tokenizer, max_document_tokens=90)
    assert rule.apply([row])[0][0] == "special_token"


class _Spelling:
    def __init__(self, text: str) -> None:
        self.text = text

    def parse(self, *_: object) -> object:
        from dasd_megatron.tokenization.response_format import Response

        return Response(self.text, np.zeros(0, np.int32))


def test_filter_keeps_dropped_rows_readable(
    make_context: Any, tmp_path: Path, teacher_tokenizer: ChatTokenizer
) -> None:
    rows = [
        response_row(teacher_tokenizer, "<think>3*4=2;</think>2"),
        response_row(teacher_tokenizer, "<think>3*4=2;", "length", sample_index=1),
        response_row(teacher_tokenizer, "2", sample_index=2),
    ]
    sampled = ArtifactWriter(tmp_path / "sampled", {})
    sampled.write_shard("responses", 0, pa.Table.from_pylist(rows, RESPONSES))
    sampled.finish()
    inputs = {"responses": sampled.path, "teacher": TOY / "teacher", "student": TOY / "student"}
    context = make_context(FILTER_CONFIG, inputs)
    facts = FilterStep().run(context)
    assert facts["dropped"] == {"truncated": 1, "no_thinking": 1}
    assert facts["counts"] == {"responses": 1, "dropped": 2}
    context.output.finish(**facts)
    artifact = Artifact(context.output.path)
    assert [row["text"] for row in artifact.rows("dropped")] == ["<think>3*4=2;", "2"]
    kept = next(iter(artifact.rows("responses")))
    assert len(kept["student_token_ids"]) == len(kept["student_token_starts"]) == kept["student_tokens"]
    assert len(kept["student_prompt_ids"]) == kept["student_prompt_tokens"]
    assert (kept["sample_index"], kept["token_ids"], kept["logprobs"]) == (
        0,
        rows[0]["token_ids"],
        pytest.approx(rows[0]["logprobs"]),
    )
    assert kept["student_token_ids"][-1] == ChatTokenizer(TOY / "student").end_of_turn_id


def test_sentence_probabilities_are_geometric_means() -> None:
    row = {
        "text": "ab;c",
        "token_starts": [0, 1, 2, 3, 4],  # a b ; c end-of-turn
        "logprobs": [math.log(p) for p in (0.9, 0.4, 0.5, 0.3, 0.8)],
        "student_token_starts": [0, 3, 4],  # "ab;" c end-of-turn
        "student_logprobs": [math.log(p) for p in (0.2, 0.6, 0.7)],
    }
    found = sentence_probabilities(row, SentenceSplitter(";"))
    np.testing.assert_allclose(found.teacher, [(0.9 * 0.4 * 0.5) ** (1 / 3), math.sqrt(0.3 * 0.8)])
    np.testing.assert_allclose(found.student, [0.2, math.sqrt(0.6 * 0.7)])


def test_markup_counts_on_neither_side() -> None:
    """The student is no likelier to be surprised in the first sentence because it never writes `<think>` by itself."""
    random = np.random.default_rng(0)
    first, others = [], []
    for _ in range(200):
        text = "<think>\nOne two three.\nFour five six.\nSeven eight nine.\n</think>\n\nTen."
        # A token a byte, but for the markup: the student writes it, the teacher's (harmony) is made of other tokens.
        opening, closing = len("<think>\n"), text.index("\n</think>")
        content = [n for n in range(opening, len(text)) if not closing <= n < text.index("Ten")]
        logprobs = -random.exponential(0.5, len(content))
        row = {
            "text": text,
            "token_starts": [-1, -1, *content, len(text)],
            "logprobs": [-0.1, -0.1, *logprobs, -0.1],
            "student_token_starts": [0, 7, *content, closing, closing + 1, closing + 9, len(text)],
            "student_logprobs": [-14.0, -20.0, *(logprobs * random.uniform(0.5, 2)), -14.0, -20.0, -9.0, -0.1],
        }
        for mean in ("token", "byte"):
            kinds = sentence_probabilities(row, SentenceSplitter(DEFAULT_END), mean).kinds(0.1)
            first.append(kinds[0] == "Teacher")
            others += [kind == "Teacher" for kind in kinds[1:]]
    assert 0.05 < np.mean(others) < 0.95
    assert abs(np.mean(first) - np.mean(others)) < 0.1


@given(st.lists(st.integers(0, 999_999), min_size=1, max_size=20), st.floats(-3, 0))
def test_means_per_byte_are_unbiased_on_digits(numbers: list[int], surprise: float) -> None:
    """A student that cuts a number into digits, a teacher into three at a time, at equal probability of the whole."""
    text = "".join(f"It is {number}.\n" for number in numbers)
    places = [n for n, character in enumerate(text)]
    teacher = [n for n in places if not (text[n].isdigit() and text[n - 1].isdigit())]
    shares = np.diff([*teacher, len(text)])
    row = {
        "text": text,
        "token_starts": teacher,
        "logprobs": surprise * shares,
        "student_token_starts": places,
        "student_logprobs": [surprise] * len(places),
    }
    by_byte = sentence_probabilities(row, SentenceSplitter(DEFAULT_END), "byte")
    np.testing.assert_allclose(by_byte.difference, 0, atol=1e-9)
    np.testing.assert_allclose(by_byte.teacher, np.exp(surprise))


def test_markup_and_tokenless_sentences_are_left_out() -> None:
    row = {
        "text": "a;b;c",
        "token_starts": [-1, 0, 2, 4],
        "logprobs": [-9.0, -0.1, -0.2, -0.3],
        "student_token_starts": [0, 4],  # no token starts in "b;"
        "student_logprobs": [-1.0, -2.0],
    }
    found = sentence_probabilities(row, SentenceSplitter(";"))
    np.testing.assert_allclose(found.teacher, np.exp([-0.1, -0.3]))


def test_kinds_and_scores() -> None:
    found = SentenceProbabilities(np.array([0.9, 0.1, 0.5]), np.array([0.1, 0.9, 0.4]))
    assert found.kinds(0.5) == ["Teacher", "Student", "Shared"]
    scores = scores_of(found, BUILTIN, 0.5)
    assert scores["share_above"] == pytest.approx(1 / 3)
    assert scores["mean_difference"] == pytest.approx(0.1 / 3)
    assert scores["mean_log_ratio"] == pytest.approx(math.log(0.5 / 0.4) / 3)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=300))
def test_quantiles_and_shares_are_those_of_the_differences(values: list[float]) -> None:
    """Up to the width of a bin."""
    found = difference_facts(np.histogram(values, BINS, (-1, 1))[0])
    width = 2 / BINS
    for share, quantile in found["quantiles"].items():
        exact = np.quantile(values, float(share), method="inverted_cdf")
        assert exact - 1e-3 <= quantile <= exact + width + 1e-3
    for threshold, share in found["teacher_share"].items():
        bounds = [np.mean(np.asarray(values) > float(threshold) + shift) for shift in (width, -width)]
        assert bounds[0] - 1e-3 <= share <= bounds[1] + 1e-3


def candidate(uuid: str, index: int, share: float, mean: float = 0.0, text: str | None = None) -> dict[str, Any]:
    scores = {"share_above": share, "mean_difference": mean, "mean_log_ratio": -share}
    kinds = {"Teacher": 1, "Student": 1, "Shared": 1}
    return {
        "uuid": uuid,
        "sample_index": index,
        "text_hash": text_hash(text or f"{uuid}{index}"),
        **scores,
        **kinds,
    }


FOUR_OF_EACH = [candidate(u, i, share=i / 4, mean=-i) for u in "abc" for i in range(4)]


def chosen_of(candidates: list[dict[str, Any]], selection: SelectionConfig, seed: int) -> set[tuple[str, int]]:
    """(uuid, sample_index) of the chosen ones."""
    chosen = choose(pa.Table.from_pylist(candidates, CANDIDATES), selection, seed)
    return {(row["uuid"], row["sample_index"]) for row, taken in zip(candidates, chosen, strict=True) if taken}


def test_best_score_within_each_prompt() -> None:
    assert chosen_of(FOUR_OF_EACH, SelectionConfig(), seed=0) == {("a", 3), ("b", 3), ("c", 3)}
    assert chosen_of(FOUR_OF_EACH, SelectionConfig(score="mean_log_ratio"), seed=0) == {("a", 0), ("b", 0), ("c", 0)}


def test_ties_go_to_the_mean_difference() -> None:
    tied = [candidate("a", 0, 0.5, 0.1), candidate("a", 1, 0.5, 0.3), candidate("a", 2, 0.5, 0.2)]
    assert chosen_of(tied, SelectionConfig(), seed=0) == {("a", 1)}


def test_budget_takes_every_prompts_first_choice_first() -> None:
    chosen = chosen_of(FOUR_OF_EACH, SelectionConfig(responses_per_prompt=2, total=4), seed=0)
    assert {("a", 3), ("b", 3), ("c", 3)} < chosen
    assert len(chosen) == 4


def test_repeats_of_a_text_are_skipped() -> None:
    same = [candidate("a", 0, 0.9, text="x"), candidate("a", 1, 0.8, text="x"), candidate("a", 2, 0.1, text="y")]
    assert chosen_of(same, SelectionConfig(responses_per_prompt=2), seed=0) == {("a", 0), ("a", 2)}


def test_random_choice_ignores_scores_and_depends_on_the_seed() -> None:
    many = [candidate(f"p{n}", i, share=i / 4) for n in range(200) for i in range(4)]
    first = chosen_of(many, SelectionConfig(method="random"), seed=0)
    assert first == chosen_of(list(reversed(many)), SelectionConfig(method="random"), seed=0)
    assert first != chosen_of(many, SelectionConfig(method="random"), seed=1)
    counts = np.bincount([index for _, index in first], minlength=4)
    assert counts.min() > 25  # 50 expected of each


@given(st.lists(st.integers(1, 64), max_size=200))
def test_packs_hold_every_document_once_and_fit(lengths: list[int]) -> None:
    packs = pack(lengths, 64)
    assert sorted(index for group in packs for index in group) == list(range(len(lengths)))
    loads = [sum(lengths[index] for index in group) for group in packs]
    assert all(load <= 64 for load in loads)
    # Best fit: no two packs could have been one.
    assert len([load for load in loads if load <= 32]) <= 1


def test_packs_of_reasoning_lengths_are_full() -> None:
    """Log-normal lengths with the second moment of the paper's figure 8; windows as the step makes them."""
    random = np.random.default_rng(0)
    sigma = math.sqrt(math.log(1.8))
    lengths = random.lognormal(math.log(20_000) - sigma**2 / 2, sigma, 14_000).astype(np.int32)
    lengths = lengths[lengths <= 65_536]
    numbers = np.arange(len(lengths), dtype=np.int32)
    windows = DocumentIndex(numbers, numbers, numbers, lengths).windows(packing.WINDOW * 65_536)
    packs = [pack(window.length.tolist(), 65_536) for window in windows]
    assert len(windows) == 2
    assert lengths.sum() / (65_536 * sum(map(len, packs))) >= 0.999


def test_too_long_a_document_is_refused() -> None:
    with pytest.raises(UserError, match=r"65 tokens, more than packing\.context_length=64"):
        pack([65], 64)


# What packing reads of a filtered response.
PACKABLE = pa.schema(
    [
        ("uuid", pa.string()),
        ("sample_index", pa.int32()),
        ("prefix_bytes", pa.int32()),
        *((name, pa.list_(pa.int32())) for name in ("student_prompt_ids", "student_token_ids", "student_token_starts")),
        ("student_prompt_tokens", pa.int32()),
        ("student_tokens", pa.int32()),
    ]
)


def filtered_row(index: int, prompt: int, response: int, prefix_bytes: int = 0) -> dict[str, Any]:
    return {
        "uuid": f"u{index}",
        "sample_index": 0,
        "prefix_bytes": prefix_bytes,
        "student_prompt_ids": list(range(prompt)),
        "student_token_ids": list(range(100, 100 + response)),
        "student_token_starts": list(range(response)),
        "student_prompt_tokens": prompt,
        "student_tokens": response,
    }


def filtered(folder: Path, *shards: list[dict[str, Any]]) -> Artifact:
    writer = ArtifactWriter(folder, {})
    for shard, rows in enumerate(shards):
        writer.write_shard("responses", shard, pa.Table.from_pylist(rows, PACKABLE))
    writer.finish(counts={"responses": sum(map(len, shards))})
    return Artifact(folder)


def test_loss_falls_on_the_response_alone(tmp_path: Path) -> None:
    artifact = filtered(tmp_path / "a", [filtered_row(0, prompt=3, response=4)])
    documents = read_documents(DocumentIndex.of([(artifact, None)]), [artifact], mask_prefix=False)
    assert documents.ids.tolist() == [0, 1, 2, 100, 101, 102, 103]
    assert documents.first_targets.tolist() == [3]


@pytest.mark.parametrize(("mask", "first"), [(False, 1), (True, 3)])
def test_prefix_mask(tmp_path: Path, mask: bool, first: int) -> None:
    artifact = filtered(tmp_path / "a", [filtered_row(0, 1, 4, prefix_bytes=2)])
    documents = read_documents(DocumentIndex.of([(artifact, None)]), [artifact], mask_prefix=mask)
    assert documents.first_targets.tolist() == [first]


@pytest.mark.parametrize("window", [1_000, 2])
def test_pack_step_loses_and_doubles_nothing(
    make_context: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    monkeypatch.setattr(packing, "WINDOW", window)
    rows = [filtered_row(index, 2, 3 + index % 9) for index in range(50)]
    responses = filtered(tmp_path / "responses", *(rows[start : start + 10] for start in range(0, 50, 10)))
    context = make_context(PackStepConfig(context_length=32, seed=0), {"responses": responses.path})
    facts = PackStep().run(context)
    context.output.finish(**facts)
    packs = list(Artifact(context.output.path).rows("packs"))
    assert sorted(uuid for row in packs for uuid in row["uuids"]) == sorted(row["uuid"] for row in rows)
    for row in packs:
        assert sum(row["document_lengths"]) == len(row["input_ids"]) == len(row["loss_mask"]) <= 32
    assert facts["counts"]["trained_tokens"] == sum(len(row["student_token_ids"]) for row in rows)
    assert len(Artifact(context.output.path).shards("packs")) == (1 if window == 1_000 else 7)
    by_uuid = {row["uuid"]: [*row["student_prompt_ids"], *row["student_token_ids"]] for row in rows}
    for row in packs:
        assert row["input_ids"] == [token for uuid in row["uuids"] for token in by_uuid[uuid]]
        assert (row["tokens"], row["trained_tokens"]) == (len(row["loss_mask"]), sum(row["loss_mask"]))


def test_mixed_policy_packs_take_off_policy_rows_in_ratio(make_context: Any, tmp_path: Path) -> None:
    inputs = {
        "responses": filtered(
            tmp_path / "mixed", [filtered_row(index, 1, 4, prefix_bytes=2) for index in range(4)]
        ).path,
        "off_policy": filtered(tmp_path / "off", [filtered_row(100 + index, 1, 4) for index in range(30)]).path,
    }
    config = PackStepConfig(context_length=32, seed=0, off_policy_ratio=2.5, mask_prefix=True)
    context = make_context(config, inputs)
    facts = PackStep().run(context)
    assert facts["counts"]["documents"] == 14
    assert facts["counts"]["trained_tokens"] == 4 * 2 + 10 * 4


def test_too_few_off_policy_rows_are_said(
    make_context: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = {
        "responses": filtered(tmp_path / "mixed", [filtered_row(index, 1, 4) for index in range(4)]).path,
        "off_policy": filtered(tmp_path / "off", [filtered_row(100 + index, 1, 4) for index in range(3)]).path,
    }
    facts = PackStep().run(make_context(PackStepConfig(context_length=32, seed=0, off_policy_ratio=2), inputs))
    assert facts["off_policy"] == {"wanted": 8, "taken": 3}
    assert facts["counts"]["documents"] == 7
    assert "off_policy_ratio=2 asks for 8 rows of the stage before, which has 3" in capsys.readouterr().err


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 400))
def test_windows_share_out_the_documents(lengths: list[int], most: int) -> None:
    numbers = np.arange(len(lengths), dtype=np.int32)
    index = DocumentIndex(numbers, numbers, numbers, np.array(lengths, np.int32))
    windows = index.windows(most)
    assert [row for window in windows for row in window.row] == numbers.tolist()
    assert all(0 < sum(window.length) <= most + max(lengths) for window in windows)
