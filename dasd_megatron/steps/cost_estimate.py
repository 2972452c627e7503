"""Amounts of data that steps make, and what a step kind can ask of its inputs when it estimates its own. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from dasd_megatron.config.expected import ExpectedConfig
from dasd_megatron.models.flops import training_flops
from dasd_megatron.models.hf_config import read_config, shape_of
from dasd_megatron.models.shape import ModelShape

# Bytes of a token on disk: text, id, log-probability, where it starts in the text, its rank (measured: benchmarks/curation.py).
TEXT, ID, LOGPROB, START, RANK = 1.0, 1.25, 3.4, 0.25, 0.4
# What a step adds, of each token of a prompt and of a response.
SAMPLED = (TEXT + ID, TEXT + ID + LOGPROB)
FILTERED = (ID, TEXT + ID + 2 * START)  # canonical text, the student's tokens, where both models' tokens start
SCORED = (0.0, LOGPROB + RANK)
PACKED = ID
# Of a candidate: its scores.
CANDIDATE = 60


class Unknown(Exception):
    """Something can't be estimated; the message says what would make it known."""


@dataclass(frozen=True)
class Cost:
    """Of one step; None where it isn't known, or where there is nothing to count.

    Attributes:
        amount, unit: what the step makes: 420,000 responses.
        tokens_in: read; of training: trained on, in all epochs.
        tokens_out: written.
        samples: whether the tokens written are new ones, and not passed on.
        evaluates: whether they are answers to held-out problems.
        trains: whether the tokens read are trained on.
        hours: from its start to its end.
        gpu_hours: of all GPUs that its job holds.
        bytes: what stays on disk.
        checkpoint_bytes: what a training stage needs on top while it runs.
        counted: whether what it reads was counted; else it is expected.
        missing: what has to be known for the rest.
    """

    amount: float | None = None
    unit: str = ""
    tokens_in: float | None = None
    tokens_out: float | None = None
    samples: bool = False
    evaluates: bool = False
    trains: bool = False
    hours: float | None = None
    gpu_hours: float | None = None
    bytes: float | None = None
    checkpoint_bytes: float = 0.0
    counted: bool = False
    missing: str | None = None


@dataclass(frozen=True)
class Documents:
    """Responses with their mean lengths in tokens.

    Attributes:
        prompts: how many questions they answer.
        prefix: what a student wrote before the teacher continued.
        spread: mean of the squared lengths, by the square of their mean.
    """

    prompts: float
    count: float
    prompt: float
    response: float
    prefix: float = 0.0
    spread: float = 1.0

    @property
    def length(self) -> float:
        """Of one document: prompt, prefix and response."""
        return self.prompt + self.prefix + self.response

    @property
    def tokens(self) -> float:
        """Of all documents."""
        return self.count * self.length

    def fewer(self, share: float) -> Documents:
        """This share of them."""
        return replace(self, prompts=share * self.prompts, count=share * self.count)

    @property
    def length_while_written(self) -> float:
        """Of a sequence, mean over its tokens as they are written: long responses are in an engine for longer."""
        return self.prompt + self.prefix + self.spread * self.response / 2

    def flops(self, shape: ModelShape) -> float:
        """Of a forward and backward pass: those of so many fewer, longer documents that both the sum of their lengths and that of
        the squared lengths are the same."""
        return self.count / self.spread * training_flops(shape, [self.spread * self.length])

    def bytes(self, by_token: tuple[float, float]) -> float:
        """On disk, by those of each token of a prompt and of a response."""
        prompt, response = by_token
        return self.count * (self.prompt * prompt + (self.prefix + self.response) * response)


@dataclass(frozen=True)
class Packs:
    """Packs of documents, which may be of several lengths."""

    count: int
    documents: tuple[Documents, ...]

    @property
    def tokens(self) -> float:
        """Of all packs, without padding."""
        return sum(documents.tokens for documents in self.documents)

    def flops(self, shape: ModelShape, isolated: bool) -> float:
        """Of a forward and backward pass over all packs."""
        if not isolated:
            return self.count * training_flops(shape, [self.tokens / self.count])
        return sum(documents.flops(shape) for documents in self.documents)


class InputEstimates(Protocol):
    """One step's inputs, as a dry run sees them. Methods name an input; they raise Unknown where nothing can be known."""

    @property
    def expected(self) -> ExpectedConfig:
        """The recipe's assumptions."""

    def prompts(self, name: str) -> float:
        """How many prompts the input has."""

    def documents(self, name: str) -> Documents:
        """Responses of the input."""

    def packs(self, name: str) -> Packs:
        """Packs of the input."""

    def shards(self, name: str) -> int:
        """Into how many parts the input's work is cut."""

    def is_counted(self, name: str) -> bool:
        """Whether the input is finished, so that its amounts are counted and not expected."""

    def inputs_of(self, name: str) -> InputEstimates:
        """The input's own inputs."""

    def own_prompts(self) -> float:
        """Prompts of the step itself: what it has counted if it is finished, else what its kind expects."""

    def own_documents(self) -> Documents:
        """Responses of the step itself, in the same way."""

    def own_packs(self) -> Packs:
        """Packs of the step itself, in the same way."""

    def own_shards(self) -> int:
        """Shards of the step itself."""

    def model_folder(self, name: str) -> Path:
        """The model folder that the input is; of a student yet to be trained, the one that it starts from."""

    def student_shape(self) -> ModelShape:
        """Sizes of the student."""

    def student_bytes(self) -> float | None:
        """Bytes of the student's weights in the precision of training; None where they can't be known here."""


def responses_of(prompts: float, count: float, max_tokens: int, expected: ExpectedConfig) -> Documents:
    """Responses of the expected length, which `max_tokens` may cut."""
    response = min(expected.response_tokens, max_tokens)
    return Documents(prompts, count, expected.prompt_tokens, response, spread=expected.length_spread)


def pass_through_cost(inputs: InputEstimates, size: float) -> Cost:
    """Of a step that reads `responses`, passes some of them on, and writes `size` bytes."""
    made, read = inputs.own_documents(), inputs.documents("responses").tokens
    return Cost(made.count, "responses", read, made.tokens, bytes=size, counted=inputs.is_counted("responses"))


def model_shape(folder: Path) -> ModelShape:
    """The model's sizes. Raises Unknown where it is on another machine, UserError where they can't be read."""
    if not folder.is_dir():
        raise Unknown(f"the sizes of {folder}, which isn't on this machine")
    return shape_of(read_config(folder), folder)
