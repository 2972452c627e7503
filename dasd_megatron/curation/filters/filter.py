"""What a filter is given, and what it says."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dasd_megatron.config.base import Config
from dasd_megatron.config.curation import FiltersConfig
from dasd_megatron.config.prompts import Grader
from dasd_megatron.curation.sentences import SentenceSplitter
from dasd_megatron.tokenization.tokenizer import ChatTokenizer


@dataclass(frozen=True)
class FilterSetup:
    """What all filters of a step share.

    Attributes:
        limits: the recipe's `filters` section.
        student: its tokenizer.
        splitter: splits a response into sentences.
        max_document_tokens: of a prompt with its response, in the student's tokens.
        grader: which grader tells right answers, of all or by domain; None where wrong ones are welcome.
    """

    limits: FiltersConfig
    student: ChatTokenizer
    splitter: SentenceSplitter
    max_document_tokens: int
    grader: Grader | None = None


@dataclass(frozen=True)
class StudentView:
    """One well-formed response as the student would learn it.

    Attributes:
        row: the sampled row, see sampling/responses.py, without its log-probabilities.
        text: in canonical form, `<think>reasoning</think>answer`.
        prompt_ids: of the prompt, in the student's tokens.
        response_ids: of the response, end of turn included.
    """

    row: Mapping[str, Any]
    text: str
    prompt_ids: Sequence[int]
    response_ids: NDArray[np.int32]


class NoOptions(Config):
    """Of a filter that has no settings of its own."""


class Filter(ABC):
    """Decides about one response at a time."""

    # Its settings under `filters.additional`, where a recipe lists it; they are checked before anything runs.
    options_type: ClassVar[type[Config]] = NoOptions
    options: Config

    def __init__(self, setup: FilterSetup, options: Config) -> None:
        """`options`: an instance of `options_type`."""
        self.setup, self.options = setup, options

    @abstractmethod
    def reason(self, response: StudentView) -> str | None:
        """Why the response must be dropped, a short name that is counted; None to keep it."""
