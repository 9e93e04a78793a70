"""A hook of MkDocs: formulas become MathML, which browsers show without scripts."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

_FORMULA = re.compile(r'class="arithmatex">\\([(\[])(.*?)\\[)\]]<', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """Replaces the TeX of a page."""
    converted = _FORMULA.sub(_converted, content)
    if 'class="arithmatex">\\' in converted:
        raise ValueError("a formula was not recognised")
    return converted


def _converted(found: re.Match[str]) -> str:
    bracket, tex = found.groups()
    display = "inline" if bracket == "(" else "block"
    return f'class="arithmatex">{convert(html.unescape(tex), display=display)}<'
