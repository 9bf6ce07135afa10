"""The files of the dashboard's page, kept in memory."""

from __future__ import annotations

import hashlib
from http import HTTPStatus
from importlib.resources import files
from typing import Final, NamedTuple

from blackhole.web.base_handler import APIError, BaseHandler

STATIC: Final = files("blackhole.web") / "static"
"""A folder, perhaps in an archive (zipapp)."""

CONTENT_TYPES: Final = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "elements.js": "text/javascript; charset=utf-8",
    "charts.js": "text/javascript; charset=utf-8",
    "scenario.js": "text/javascript; charset=utf-8",
    "editor.js": "text/javascript; charset=utf-8",
    "recent.css": "text/css; charset=utf-8",
    "recent.js": "text/javascript; charset=utf-8",
    "namespaces.js": "text/javascript; charset=utf-8",
    "fleet.js": "text/javascript; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "uPlot.min.css": "text/css; charset=utf-8",
    "uPlot.iife.min.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
"""Every file that can be requested, with its content type."""


class StaticFile(NamedTuple):
    """A file in memory."""

    content_type: str
    body: bytes
    etag: str


def load_files() -> dict[str, StaticFile]:
    """Read all files."""
    bodies = {name: (STATIC / name).read_bytes() for name in CONTENT_TYPES}
    return {
        name: StaticFile(CONTENT_TYPES[name], body, f'"{hashlib.sha256(body).hexdigest()[:32]}"')
        for name, body in bodies.items()
    }


class StaticHandler(BaseHandler):
    """GET / and GET /static/NAME."""

    files: dict[str, StaticFile]
    is_page = True

    def get(self, name: str = "index.html") -> None:
        file = self.files.get(name)
        if file is None:
            raise APIError(HTTPStatus.NOT_FOUND, "There is no such file.")
        self.set_header("Content-Type", file.content_type)
        self.set_header("Cache-Control", "no-cache")
        self.set_header("ETag", file.etag)
        if self.check_etag_header():
            self.set_status(HTTPStatus.NOT_MODIFIED)
        else:
            self.write(file.body)

    head = get
