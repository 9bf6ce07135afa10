"""Operations of the HTTP API: what a request of one method takes, and what its responses are.

An `Operation` is a row of the table of routes. `openapi` prints the description of the API from them, and
handlers check parameters by the same rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final, NamedTuple

from blackhole.smtp.state import PHASES

MAX_ONE_SHOT_COUNT: Final = 1_000_000
"""Times that a one-shot rule can match."""

Schema = Mapping[str, Any]
"""A JSON schema, as OpenAPI 3.1 has them."""

Content = Mapping[str, Schema]
"""Content type -> schema of a body."""


class Parameter(NamedTuple):
    """A parameter of the query, or a part of the path.

    The schema has `minimum`, `maximum` and `default` of a number, or the `enum` of a choice.
    """

    name: str
    about: str
    schema: Schema


class Operation(NamedTuple):
    """A method of a path."""

    method: str
    about: str
    """One line."""
    responses: Mapping[int, Content]
    """Status -> body."""
    parameters: tuple[Parameter, ...] = ()
    """Of the query."""
    body: Content | None = None
    """Of the request."""
    is_body_required: bool = True


def of_type(name: str, **more: Any) -> Schema:
    """Return the schema of a type, such as `string`."""
    return {"type": name, **more}


def record(**properties: Schema) -> Schema:
    """Return the schema of an object that has at least these properties."""
    return {"type": "object", "properties": properties, "required": [*properties]}


def array(items: Schema) -> Schema:
    """Return the schema of an array."""
    return {"type": "array", "items": items}


def json_content(schema: Schema) -> Content:
    """Return a body of JSON."""
    return {"application/json": schema}


TEXT_SCHEMA: Final = of_type("string")
NUMBER_SCHEMA: Final = of_type("number")
COUNT_SCHEMA: Final = of_type("integer", minimum=0)
BOOLEAN_SCHEMA: Final = of_type("boolean")
OBJECT_SCHEMA: Final = of_type("object")

ERROR_CONTENT: Final = json_content(
    {
        "type": "object",
        "properties": {"error": TEXT_SCHEMA, "line": of_type("integer", minimum=1)},
        "required": ["error"],
    }
)
"""The body of every error."""


def errors(*statuses: HTTPStatus) -> Mapping[int, Content]:
    """Return the responses for these errors."""
    return {int(status): ERROR_CONTENT for status in statuses}


ALIVE_CONTENT: Final = json_content(record(alive=BOOLEAN_SCHEMA))
WORKERS_CONTENT: Final = json_content(record(workers=COUNT_SCHEMA))
WAITED_CONTENT: Final = json_content(record(messages=of_type("integer"), seconds=NUMBER_SCHEMA))

RUN_SCHEMA: Final = record(
    name=TEXT_SCHEMA,
    running=BOOLEAN_SCHEMA,
    started=NUMBER_SCHEMA,
    seconds=NUMBER_SCHEMA,
    total=COUNT_SCHEMA,
    rate=record(mean=NUMBER_SCHEMA, peak={"type": ["number", "null"]}),
    cpu_share=NUMBER_SCHEMA,
)

NEXT_RULES_SCHEMA: Final = array(record(count=COUNT_SCHEMA, left=COUNT_SCHEMA))

ONE_SHOT_RULE_SCHEMA: Final[Schema] = {
    "type": "object",
    "description": "The keys of a rule of a scenario, and how often it applies.",
    "properties": {
        "count": of_type("integer", minimum=1, maximum=MAX_ONE_SHOT_COUNT, default=1),
        "phase": {"anyOf": [of_type("string", enum=[*PHASES]), array(of_type("string", enum=[*PHASES]))]},
    },
    "required": ["phase"],
}

SCENARIO_SCHEMA: Final = record(
    name=TEXT_SCHEMA,
    ordered=BOOLEAN_SCHEMA,
    rules=COUNT_SCHEMA,
    names=array(TEXT_SCHEMA),
    set=OBJECT_SCHEMA,
    since=NUMBER_SCHEMA,
    next=NEXT_RULES_SCHEMA,
)

NAMESPACE_SCHEMA: Final = record(
    name=TEXT_SCHEMA,
    made=NUMBER_SCHEMA,
    unused=NUMBER_SCHEMA,
    scenario=TEXT_SCHEMA,
    waiting=COUNT_SCHEMA,
    messages=COUNT_SCHEMA,
)

VARIABLES_PARAMETER: Final = Parameter(
    "set",
    "NAME=VALUE: a value for a variable of the scenario, in place of its default; may be repeated.",
    array(TEXT_SCHEMA),
)

TOML_CONTENT: Final[Content] = {"application/toml": TEXT_SCHEMA}
"""The text of a scenario."""

TRANSACTIONS_CONTENT: Final = json_content(
    record(kept=COUNT_SCHEMA, next=TEXT_SCHEMA, more=BOOLEAN_SCHEMA, transactions=array(OBJECT_SCHEMA))
)
