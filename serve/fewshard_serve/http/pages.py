"""The frame and the look of the page at `/docs`. No script, no font, no network."""

from html import escape

from fewshard_serve import __version__

_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Crect width='16' height='16' rx='3' fill='%231d4ed8'/%3E"
    "%3Cpath d='M4 12V4h8M4 8h5' stroke='white' stroke-width='2' fill='none'/%3E%3C/svg%3E"
)

_STYLE = """
:root { --ink:#14213d; --soft:#5a6478; --line:#dde3ec; --paper:#fff; --panel:#f6f8fb; --accent:#1d4ed8;
  --good:#15803d; --wait:#b45309 }
@media (prefers-color-scheme: dark) { :root { --ink:#e6ebf4; --soft:#9aa6ba; --line:#2a3446; --paper:#0f1624;
  --panel:#172033; --accent:#7aa2ff; --good:#4ade80; --wait:#fbbf24 } }
* { box-sizing:border-box }
body { margin:0; color:var(--ink); background:var(--paper); font:16px/1.55 system-ui,sans-serif }
main, header > div { max-width:64rem; margin:0 auto; padding:0 1.25rem }
header { border-bottom:1px solid var(--line); background:var(--panel) }
header > div { display:flex; flex-wrap:wrap; align-items:baseline; gap:.5rem 1.5rem; padding-block:1rem }
header strong { font-size:1.25rem; letter-spacing:-.01em }
nav { display:flex; gap:1.25rem; margin-left:auto }
a { color:var(--accent); text-decoration:none }
a:hover { text-decoration:underline }
h1 { font-size:1.6rem; letter-spacing:-.02em; margin:2rem 0 .25rem }
h2 { font-size:1.1rem; margin:2rem 0 .5rem }
p { margin:.25rem 0 1rem; max-width:46rem }
.soft { color:var(--soft) }
.scroll { overflow-x:auto; border:1px solid var(--line); border-radius:.6rem }
table { border-collapse:collapse; width:100%; font-size:.94rem }
th, td { padding:.55rem .8rem; text-align:left; white-space:nowrap; border-bottom:1px solid var(--line) }
th { color:var(--soft); font-weight:500; background:var(--panel) }
tr:last-child td { border-bottom:0 }
.number { text-align:right; font-variant-numeric:tabular-nums }
.ready { color:var(--good) }
.waiting { color:var(--wait) }
code, pre { font:.875rem/1.5 ui-monospace,monospace }
pre { margin:.5rem 0; padding:.8rem 1rem; white-space:pre-wrap;
  overflow-wrap:anywhere; background:var(--panel);
  border:1px solid var(--line); border-radius:.6rem }
section { border-top:1px solid var(--line); padding:1rem 0 }
.method { display:inline-block; min-width:3.4rem; font-weight:600; color:var(--accent) }
footer { color:var(--soft); font-size:.9rem; margin:2.5rem 0 }
"""


def page(title: str, body: str) -> str:
    """A whole HTML page; `body` is HTML, `title` is text."""
    return (
        "<!doctype html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title><link rel="icon" href="{_ICON}"><style>{_STYLE}</style></head>\n'
        "<body><header><div><strong>Fewshard</strong>"
        f'<span class="soft">{escape(__version__)}</span>'
        '<nav><a href="/">Console</a><a href="/docs">API</a><a href="/metrics">Metrics</a></nav>'
        "</div></header>\n"
        f"<main>{body}</main></body></html>\n"
    )
