"""The filters, in the order in which they look at a response. Adding one: a module with a subclass of Filter, and a line here
(or a plugin that registers it; recipes then list it under `filters.additional`)."""

from __future__ import annotations

from dasd_megatron.curation.filters.filter import Filter, FilterSetup
from dasd_megatron.utils.registry import Registry

BUILTIN = {
    "special_token": "dasd_megatron.curation.filters.special_tokens:SpecialTokenFilter",
    "too_long": "dasd_megatron.curation.filters.length:LengthFilter",
    "repeated_ngrams": "dasd_megatron.curation.filters.repetition:RepeatedNgramsFilter",
    "repeated_sentences": "dasd_megatron.curation.filters.repetition:RepeatedSentencesFilter",
    "repeated_paragraphs": "dasd_megatron.curation.filters.repetition:RepeatedParagraphsFilter",
}
FILTERS: Registry[type[Filter]] = Registry("filter", BUILTIN)


def build_filters(setup: FilterSetup) -> list[Filter]:
    """The product's own filters, then those that the recipe adds. Raises UserError for a name or setting that isn't known."""
    own = [FILTERS.get(name)(setup, {}) for name in BUILTIN]
    added = setup.limits.additional.items()
    return [*own, *(FILTERS.get(name, "filters.additional")(setup, options) for name, options in added)]
