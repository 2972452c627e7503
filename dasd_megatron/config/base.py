"""The base of all config sections, the types that settings share, and which settings shape a result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    create_model,
    model_serializer,
)
from pydantic.fields import FieldInfo

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(gt=0, strict=True)]  # strict: `yes` is no number
NonNegative = Annotated[int, Field(ge=0, strict=True)]
Temperature = Annotated[float, Field(ge=0, le=10)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
# Slurm's days-hours:minutes:seconds. YAML 1.1 reads an unquoted 04:00:00 as a number, so it has to be quoted.
TimeLimit = Annotated[str, Field(pattern=r"^(\d+-)?\d+:[0-5]\d:[0-5]\d$")]


def _one_message(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """Instead of one message for each thing that it might have been."""
    try:
        return validate(value)
    except ValidationError:
        raise ValueError("give a positive whole number, or one for each domain: {math: 1000}") from None


# How many of something, in all or by domain.
Count = Annotated[
    Positive | Annotated[dict[str, Positive], Field(min_length=1)],
    WrapValidator(_one_message),
]

T = TypeVar("T")


class _ExecutionOnly:
    """Marks a setting that says how a step runs and shapes none of its results, so that no artifact's name depends on it."""


ExecutionOnly = Annotated[T, _ExecutionOnly()]


class Config(BaseModel):
    """A section of a recipe or a step's config: immutable, and an unknown key is an error."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    def result_settings(self) -> dict[str, Any]:
        """The settings that shape a result, as JSON values: what artifacts are named by and manifests show."""
        return {
            name: _plain(getattr(self, name))
            for name, field in type(self).model_fields.items()
            if _shapes_result(field)
        }


def _shapes_result(field: FieldInfo) -> bool:
    return not any(isinstance(mark, _ExecutionOnly) for mark in field.metadata)


def _plain(value: Any) -> Any:
    if isinstance(value, Config):
        return value.result_settings()
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


C = TypeVar("C", bound=Config)


class Overrides(Config):
    """A section of which only what differs is written down; made by `overrides_of`."""

    def written(self) -> dict[str, Any]:
        """The settings that were written down."""
        return {name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set}

    def applied_to(self, common: C) -> C:
        """`common` with these differences."""
        return type(common)(**{**common.model_dump(), **self.written()})

    @model_serializer(mode="plain")
    def _serialize(self) -> dict[str, Any]:
        return self.written()


def overrides_of(config: type[Config]) -> type[Overrides]:
    """A section whose keys are those of `config`, each with its type and checks, and none of them required."""
    fields: dict[str, Any] = {
        name: (
            field.rebuild_annotation(),
            Field(default=None, validate_default=False, description=field.description),
        )
        for name, field in config.model_fields.items()
    }
    doc = f"Settings of `{config.__name__}` that differ; any of them may be left out."
    made: type[Overrides] = create_model(f"{config.__name__}Overrides", __base__=Overrides, __doc__=doc, **fields)
    return made


def section_of(annotation: Any) -> type[Config] | None:
    """The section in a field's type, where there is one: of `Model | None`, Model."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return annotation
    if get_origin(annotation) is dict:
        return None
    return next((found for argument in get_args(annotation) if (found := section_of(argument))), None)
