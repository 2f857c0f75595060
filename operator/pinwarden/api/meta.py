"""The common parts of resources: the base model, object metadata, label selectors and conditions.

The models have Python names in code, and the camelCase of the Kubernetes API on the wire. An
unknown field is an error: the API server prunes unknown fields, so such a field belongs to another
version, and must not be lost silently.
"""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic.alias_generators import to_camel

from pinwarden.api.cel import cel

GROUP = "pinwarden.io"
VERSION = "v1alpha1"

_LABEL_VALUE = r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$"
_LABEL_KEY = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]$"
LabelValue = Annotated[str, StringConstraints(max_length=63, pattern=_LABEL_VALUE)]
LabelKey = Annotated[str, StringConstraints(min_length=1, max_length=317, pattern=_LABEL_KEY)]


def describe_error(error: ValidationError, root: str = "object") -> str:
    """Return the first error of a validation as `field: message`; `root` names the whole value."""
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(str(part) for part in first['loc']) or root}: {first['msg']}"


class Model(BaseModel):
    """Base of every part of a resource: immutable, camelCase on the wire, no unknown fields."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        extra="forbid",
        frozen=True,
        use_enum_values=False,
    )

    def to_wire(self) -> dict[str, Any]:
        """Return the JSON object for the API server; absent fields stay absent (H2)."""
        wire: dict[str, Any] = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        return wire


class ObjectMeta(BaseModel):
    """The metadata of a resource that pinwarden uses; other fields are kept unchanged."""

    model_config = ConfigDict(
        alias_generator=to_camel, validate_by_name=True, extra="allow", frozen=True
    )

    name: str
    namespace: str | None = None
    uid: str | None = None
    generation: int | None = None
    resource_version: str | None = None


class LabelSelectorRequirement(Model):
    """An expression about a label key (`metav1.LabelSelectorRequirement`)."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                cel(
                    "(self.operator in ['In', 'NotIn']) == "
                    "(has(self.values) && size(self.values) > 0)",
                    "In and NotIn need at least one value, Exists and DoesNotExist take none",
                    ".values",
                )
            ]
        }
    )

    key: LabelKey = Field(description="Label key of the expression.")
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"] = Field(
        description="Relation of the label's value to the values."
    )
    values: list[LabelValue] = Field(
        default_factory=list,
        max_length=64,
        description="At least one value with In and NotIn, none with Exists and DoesNotExist.",
    )


_ONLY_NOTHING = "the requirements contradict each other: no object can have such labels"


class LabelSelector(Model):
    """Selects the objects that meet all requirements. An empty selector selects every object."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                cel(
                    "!has(self.matchLabels) || !has(self.matchExpressions) || "
                    "self.matchExpressions.all(one, !(one.key in self.matchLabels) || "
                    "one.operator == 'Exists' || "
                    "(one.operator == 'In' && self.matchLabels[one.key] in one.values) || "
                    "(one.operator == 'NotIn' && !(self.matchLabels[one.key] in one.values)))",
                    f"{_ONLY_NOTHING}: an expression excludes a value of matchLabels",
                    ".matchExpressions",
                ),
                cel(
                    "!has(self.matchExpressions) || self.matchExpressions.all(one, "
                    "one.operator != 'DoesNotExist' || self.matchExpressions.all(other, "
                    "other.key != one.key || other.operator in ['DoesNotExist', 'NotIn']))",
                    f"{_ONLY_NOTHING}: a key both exists and does not",
                    ".matchExpressions",
                ),
            ]
        }
    )

    match_labels: dict[LabelKey, LabelValue] = Field(
        default_factory=dict,
        max_length=64,
        description="Labels that an object must have with exactly these values.",
    )
    match_expressions: list[LabelSelectorRequirement] = Field(
        default_factory=list, max_length=32, description="Expressions that must all be true."
    )


class Condition(Model):
    """An aspect of a resource's state (`metav1.Condition`)."""

    type: str = Field(max_length=316, description="Aspect in CamelCase.")
    status: Literal["True", "False", "Unknown"] = Field(description="Whether the aspect is true.")
    reason: str = Field(max_length=1024, description="Cause in one CamelCase word, for programs.")
    message: str = Field(max_length=32768, description="Cause as a sentence.")
    last_transition_time: datetime = Field(description="Time of the last change of the status.")
    observed_generation: int | None = Field(
        None, description="Generation of the spec that the condition is about."
    )
