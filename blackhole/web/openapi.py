"""The description of the HTTP API in the format of OpenAPI 3.1, made from the table of routes."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping
from http import HTTPStatus
from typing import Any, Final

from blackhole import __version__
from blackhole.web.base_handler import BaseHandler
from blackhole.web.operations import (
    ERROR_CONTENT,
    OBJECT_SCHEMA,
    Content,
    Operation,
    Parameter,
    errors,
    json_content,
)

DESCRIBE: Final = Operation("GET", "Describe this API", {200: json_content(OBJECT_SCHEMA)})
"""The operation of this module's own handler."""

ALWAYS: Final = errors(HTTPStatus.FORBIDDEN, HTTPStatus.MISDIRECTED_REQUEST)
"""Responses of every operation: to pages of other sites, and to host names that are not allowed."""


class OpenAPIHandler(BaseHandler):
    """GET /openapi.json."""

    description: Mapping[str, Any]

    def get(self) -> None:
        self.write_json(self.description)

    head = get


def describe(
    routes: Mapping[str, Iterable[Operation]],
    path_parameters: Mapping[str, Parameter],
    with_token: Container[str],
    base_path: str = "",
) -> dict[str, Any]:
    """Return the description of paths and their operations, below `base_path`.

    Names in braces are `path_parameters`. Requests for the paths `with_token` need the token.
    """
    paths: dict[str, Any] = {}
    for path, operations in routes.items():
        parts = [path_parameters[name] for name in re.findall(r"\{(\w+)\}", path)]
        for operation in operations:
            described = _operation(path, operation, parts)
            if path in with_token:
                described["security"] = [{"token": []}]
                described["responses"]["401"] = {
                    "description": "Unauthorized",
                    "content": _content(ERROR_CONTENT),
                }
            paths.setdefault(path, {})[operation.method.lower()] = described
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Blackhole",
            "version": __version__,
            "description": "The HTTP API of an SMTP server that accepts any mail and discards it.",
        },
        "servers": [{"url": base_path or "/"}],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}} if with_token else {}
        },
    }


def _operation(path: str, operation: Operation, parts: Iterable[Parameter]) -> dict[str, Any]:
    words = re.findall(r"\w+", path)
    parameters = [
        *(_parameter(part, "path") for part in parts),
        *(_parameter(one, "query") for one in operation.parameters),
    ]
    found: dict[str, Any] = {
        "operationId": "_".join((operation.method.lower(), *words)),
        "summary": operation.about,
        "responses": {
            str(status): {"description": HTTPStatus(status).phrase, "content": _content(content)}
            for status, content in sorted({**operation.responses, **ALWAYS}.items())
        },
    }
    if parameters:
        found["parameters"] = parameters
    if operation.body:
        found["requestBody"] = {"required": operation.is_body_required, "content": _content(operation.body)}
    return found


def _parameter(parameter: Parameter, place: str) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": place,
        "required": place == "path",
        "description": parameter.about,
        "schema": parameter.schema,
    }


def _content(content: Content) -> dict[str, Any]:
    return {content_type: {"schema": schema} for content_type, schema in content.items()}
