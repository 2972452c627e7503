"""The filter `special_token`: markers of a conversation that a text spells out."""

from __future__ import annotations

from dasd_megatron.config.base import Config
from dasd_megatron.curation.filters.filter import Filter, FilterSetup, StudentView


class SpecialTokenFilter(Filter):
    """A marker written out in a prompt or response (<|im_end|>, say) would become the real one in the student's tokens."""

    def __init__(self, setup: FilterSetup, options: Config) -> None:
        super().__init__(setup, options)
        self._in_every_prompt = setup.student.special_tokens(setup.student.prompt_ids("0"))

    def reason(self, response: StudentView) -> str | None:
        """`special_token` where there are more than the chat template's own."""
        special_tokens = self.setup.student.special_tokens
        if special_tokens(response.prompt_ids) != self._in_every_prompt or special_tokens(response.response_ids[:-1]):
            return "special_token"
        return None
