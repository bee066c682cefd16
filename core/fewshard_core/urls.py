"""Hides the user names and passwords in URLs. Errors, log lines and lines of the command pass through it."""

import re

_AFTER_SCHEME = re.compile(r"""(?<=://)[^\s"'<>\\]+""")
_HIDDEN = "***@"


def masked(text: str) -> str:
    """Return the text with `***` in place of the user information of each URL in it.

    A password with an unescaped slash is no valid URL, but whoever reads the message of that mistake must not
    see it either. So everything up to an @ behind the host is hidden too.
    """
    if "://" not in text or "@" not in text:
        return text
    return _AFTER_SCHEME.sub(lambda found: _without_user(found[0]), text)


def _without_user(rest: str) -> str:
    authority, slash, path = rest.partition("/")
    _, sign, host = authority.rpartition("@")
    if sign:
        return f"{_HIDDEN}{host}{slash}{path}"
    _, sign, end = path.rpartition("@")
    return f"{_HIDDEN}{end}" if sign else rest
