"""θ_t, t^0.56, λ^A_min and `metric` as matplotlib and as HTML set them."""

from __future__ import annotations

import re
import textwrap
from html import escape

_INDEX = re.compile(r"(\b[A-Zdpxλθ]|[Σ‖]|\bmin|\bmax)_(\w+′?)")
_POWER = re.compile(r"\^([\w.]+)")
_PLAIN = {ord(sign): 0xE000 + place for place, sign in enumerate("_^`")}
_SIGNS = {place: sign for sign, place in _PLAIN.items()}


def plain(name: str) -> str:
    """Return a name of which no sign is set in another way, whatever it is.

    >>> as_html(plain("x_0^2 < y"))
    'x_0^2 &lt; y'
    """
    return name.translate(_PLAIN)


def wrapped(text: str, width: int) -> str:
    """Return text in lines of at most `width` characters, beside those that it has."""
    return "\n".join(textwrap.fill(line, max(width, 1)) for line in text.split("\n"))


def as_html(text: str) -> str:
    """Return escaped text with code, superscripts and subscripts.

    >>> as_html("‖θ_t‖ grows as t^0.5 < t: `l2`")
    '‖θ<sub>t</sub>‖ grows as t<sup>0.5</sup> &lt; t: <code>l2</code>'
    """
    text = escape(text).replace("^A_min", "<sup>A</sup><sub>min</sub>")
    text = _POWER.sub(r"<sup>\1</sup>", text)
    text = _INDEX.sub(r"\1<sub>\2</sub>", text)
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", text).translate(_SIGNS)


def as_mathtext(text: str) -> str:
    """Return text with superscripts and subscripts as matplotlib reads them; `code` is plain.

    >>> as_mathtext("‖θ_t‖ grows as t^0.5")
    '‖$θ_{t}$‖ grows as t$^{0.5}$'
    """
    text = text.replace("$", r"\$").replace("`", "").replace("^A_min", r"$^{A}_{min}$")
    text = _POWER.sub(r"$^{\1}$", text)
    return _INDEX.sub(lambda found: f"${found[1]}_{{{found[2]}}}$", text).translate(_SIGNS)
