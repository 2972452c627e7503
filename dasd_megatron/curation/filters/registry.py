"""The filters, in the order in which they look at a response. Adding one: a module with a subclass of Filter, and a line here
(or a plugin that registers it; recipes then list it under `filters.additional`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dasd_megatron.config.base import Config
from dasd_megatron.config.load import validate
from dasd_megatron.curation.filters.filter import Filter, FilterSetup, NoOptions
from dasd_megatron.utils.errors import UserError
from dasd_megatron.utils.registry import Registry

BUILTIN = {
    "special_token": "dasd_megatron.curation.filters.special_tokens:SpecialTokenFilter",
    "too_long": "dasd_megatron.curation.filters.length:LengthFilter",
    "repeated": "dasd_megatron.curation.filters.repetition:RepeatedFilter",
    "wrong_answer": "dasd_megatron.curation.filters.wrong_answer:WrongAnswerFilter",
}
FILTERS: Registry[type[Filter]] = Registry("filter", BUILTIN)


def build_filters(setup: FilterSetup) -> list[Filter]:
    """The product's own filters, then those that the recipe adds. Raises UserError for a name or setting that isn't known."""
    own = [FILTERS.get(name)(setup, NoOptions()) for name in BUILTIN]
    added = additional_filters(setup.limits.additional)
    return [*own, *(kind(setup, options) for kind, options in added)]


def additional_filters(additional: Mapping[str, Mapping[str, Any]]) -> list[tuple[type[Filter], Config]]:
    """The filters that a recipe lists under `filters.additional`, each with its options.

    Raises UserError for a name that isn't registered, one of the product's own, and options that the filter doesn't have.
    """
    found = []
    for name, options in additional.items():
        if name in BUILTIN:
            raise UserError(
                f"filters.additional.{name}: it runs always, and once; its limits are under `filters` (dasd settings filters)"
            )
        kind = FILTERS.get(name, "filters.additional")
        found.append((kind, validate(f"filters.additional.{name}", options, kind.options_type)))
    return found
