"""The filter `too_long`: documents that fit no pack."""

from __future__ import annotations

from dasd_megatron.curation.filters.filter import Filter, StudentView


class LengthFilter(Filter):
    """A document must fit a pack, the student's positions, and an engine that scores it."""

    def reason(self, response: StudentView) -> str | None:
        """`too_long` where prompt and response together have too many tokens."""
        tokens = len(response.prompt_ids) + len(response.response_ids)
        return "too_long" if tokens > self.setup.max_document_tokens else None
