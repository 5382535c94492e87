"""For mkdocs: links of notebooks lead to pages of the site, which the plugin leaves as they are."""

import logging
import posixpath
import re
from typing import Any

_LINK = re.compile(r'href="([^":#]+\.(?:md|ipynb))(#[^"]*)?"')
_log = logging.getLogger("mkdocs.plugins.hooks")


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """The page with addresses instead of paths; a path that leads nowhere is a warning."""
    here = page.file.src_uri
    if not here.endswith(".ipynb"):
        return html

    def address(found: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(here), found[1]))
        file = files.get_file_from_path(path)
        if file is None:
            _log.warning(f"{here} links to {found[1]}, which is not a page")
            return found[0]
        return f'href="{file.url_relative_to(page.file)}{found[2] or ""}"'

    return _LINK.sub(address, html)
