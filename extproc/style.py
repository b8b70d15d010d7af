"""The form of all HTML pages, for screens from 340 pixels, for print and for dark mode. They load nothing."""

import re
from collections.abc import Sequence
from html import escape

# Invisible characters, which may change the text that a reader sees: of control, and of the direction of text.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")
# A number as a cell shows it: with a sign, a unit, or a share behind it. A dash says that there is none.
# A column of words with a longer cell is wider, so that a phone scrolls it and does not stack its words.
_LONG = 24
_TAG = re.compile("<[^>]*>")
_NUMBER = re.compile(r"-|[-+]?\$?[\d,.]+(e-?\d+)?( %)?( \([\d.]+ %\))?")

STYLE = """
:root{--ink:#1c2430;--soft:#5d6878;--paper:#fff;--band:#f4f6f9;--rule:#dde2ea;--own:#c2410c;--other:#2563a8;
--t0:#8fb8de;--t1:#2563a8;--t2:#123a66;--t3:#7a4ea8;--t4:#c2410c}
@media (prefers-color-scheme:dark){:root{--ink:#e6eaf0;--soft:#9aa6b6;--paper:#14181f;--band:#1d232d;--rule:#313a48;
--own:#fb923c;--other:#7db3ea;--t0:#3c6288;--t1:#7db3ea;--t2:#c4ddf5}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1200px;padding:24px 16px 48px;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
h1{font-size:1.45rem;margin:0 0 4px;overflow-wrap:anywhere}h2{font-size:1.1rem;margin:32px 0 8px}
code{font:.95em ui-monospace,monospace}p,li{max-width:75ch}p.soft,li,figcaption{color:var(--soft);font-size:.87rem}
.verdict{font-size:1.05rem;margin:6px 0;padding-left:10px;border-left:4px solid var(--own);max-width:80ch}
.verdict b{color:var(--own)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:8px;margin:16px 0}
.tile{background:var(--band);border-radius:8px;padding:10px 12px}
.tile b{display:block;font-size:1.35rem}.tile span{color:var(--soft);font-size:.8rem}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,330px),460px));gap:16px}
figure{margin:0;max-width:460px;break-inside:avoid;border:1px solid var(--rule);border-radius:8px;padding:12px}
figure h3{margin:0 0 6px;font-size:.98rem}figure svg{width:100%;height:auto;display:block}
.scroll{overflow-x:auto;margin:12px 0;border:1px solid var(--rule);border-radius:8px}
table{border-collapse:separate;border-spacing:0;width:100%;font-size:.84rem;font-variant-numeric:tabular-nums}
th,td{padding:5px 8px;text-align:right;white-space:nowrap;border-bottom:1px solid var(--rule)}
.words th,.words td{text-align:left}
.words td{min-width:9ch;max-width:48ch;white-space:normal;overflow-wrap:break-word}
.words .w{min-width:38ch}
.words .n{text-align:right;white-space:nowrap;min-width:0}
tr:last-child td,tbody tr:last-child th{border-bottom:0}
.sums tr:last-child td,.sums tbody tr:last-child th{font-weight:600;border-top:2px solid var(--ink)}
th{color:var(--soft);font-weight:600;vertical-align:bottom;background:var(--band);white-space:normal}
tbody th{color:inherit;font-weight:400;vertical-align:inherit}
th:first-child,td:first-child{text-align:left;position:sticky;left:0;background:var(--paper);
max-width:min(45vw,34ch);white-space:normal;overflow-wrap:break-word}
thead th:first-child{background:var(--band)}
tr.configured td,tr.configured th{font-weight:600;color:var(--own)}
td i{color:var(--soft);font-style:normal;font-size:.92em}
svg text{fill:var(--soft);font:12.5px system-ui,sans-serif}svg .tick{font-size:12px}
svg .grid{stroke:var(--rule);stroke-width:1}svg .far{stroke:var(--soft);stroke-width:.7}
svg polyline{fill:none;stroke-width:2}
svg .curve{stroke:var(--other)}svg .hull{stroke:var(--soft);stroke-dasharray:5 4}
svg .ideal{stroke:var(--rule);stroke-width:1.5}
svg circle.control{fill:var(--other)}svg circle.chosen{fill:var(--own)}
svg .bar{stroke-width:1.5;stroke:var(--other)}svg .chosen.bar{stroke:var(--own)}
svg text.name{fill:var(--ink);paint-order:stroke;stroke:var(--paper);stroke-width:3px}
svg text.chosen{fill:var(--own);font-weight:600}
svg.stack{width:90px;height:12px;border-radius:3px;vertical-align:middle}
.t0{fill:var(--t0)}.t1{fill:var(--t1)}.t2{fill:var(--t2)}.t3{fill:var(--t3)}.t4{fill:var(--t4)}
.key span{display:inline-block;margin-right:14px;font-size:.84rem;color:var(--soft)}
.key svg{width:11px;height:11px;margin-right:5px}
.matrix{width:auto}
.matrix td,.matrix th{padding:3px 5px;text-align:center;border:1px solid var(--paper);min-width:30px}
.matrix th{white-space:nowrap}.matrix thead th{padding:8px 0 4px}
.matrix thead th span{writing-mode:vertical-rl;transform:rotate(180deg)}
.matrix th:first-child{text-align:right}.matrix td.hit{font-weight:600}
@media (max-width:520px){figure{padding:8px 6px}body{padding:16px 12px 40px}}
@media print{:root{--ink:#000;--soft:#444;--paper:#fff;--band:#f2f2f2;--rule:#bbb;--own:#a33a00;--other:#1c4f8a;
--t0:#8fb8de;--t1:#2563a8;--t2:#123a66}body{max-width:none;padding:0;font-size:11pt}
.scroll{overflow:visible;border:0}table{font-size:7.5pt}th,td{padding:2px 4px}.plots{grid-template-columns:1fr 1fr}
th:first-child,td:first-child{position:static}tr{break-inside:avoid}h2,.key{break-after:avoid}}
.scroll:focus-visible,summary:focus-visible{outline:2px solid var(--own);outline-offset:2px}
.skip{position:absolute;left:-999em}.skip:focus{position:static}
nav{margin:0 0 16px}nav a{margin-right:16px;color:var(--other);display:inline-block;padding:4px 0}
nav a[aria-current]{color:var(--ink);font-weight:600;text-decoration:none}
a{color:var(--other)}a:focus-visible,button:focus-visible,textarea:focus-visible,input:focus-visible{
outline:2px solid var(--own);outline-offset:2px}
textarea,input,select,button{font:inherit;color:inherit;background:var(--band);border:1px solid var(--rule);
border-radius:8px;padding:8px 10px;max-width:100%}textarea{width:100%;min-height:6.5em}input{width:min(100%,340px)}
button{cursor:pointer;font-weight:600;margin:8px 8px 8px 0}label{display:block;margin:8px 0 4px}
pre.wrap{white-space:pre-wrap;overflow-wrap:anywhere}
pre{overflow-x:auto;background:var(--band);border-radius:8px;padding:12px;font-size:.8rem;line-height:1.45}
"""


def html_page(title: str, body: str) -> str:
    """Return a whole page. `title` is plain text, `body` is HTML."""
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style><body>{body}</body></html>\n"
    )


def html_text(text: str) -> str:
    """Return plain text as HTML. An invisible character is shown by its number, as in \\u202e."""
    return escape(_UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def html_table(header: list[str], rows: list[list[str]], kind: str = "", label: str = "") -> str:
    """Return a table that scrolls sideways on a phone. Its first column stays. All cells are HTML.

    `label` is plain text for screen readers.
    """
    columns = list(zip(*rows, strict=True)) if kind == "words" else []
    kinds = ["", *map(_column_class, columns[1:])] if columns else [""] * len(header)
    head = "".join(f'<th scope="col"{of}>{name}</th>' for name, of in zip(header, kinds, strict=True))
    lines = "".join(
        f'<tr><th scope="row">{first}</th>'
        f"{''.join(f'<td{of}>{cell}</td>' for cell, of in zip(cells, kinds[1:], strict=True))}</tr>\n"
        for first, *cells in rows
    )
    table = (
        f"<table{f' class={kind!r}' if kind else ''}><thead><tr>{head}</tr></thead><tbody>\n{lines}</tbody></table>"
    )
    return f"{scroll_region(label or 'Table')}{table}</div>\n"


def _column_class(column: Sequence[str]) -> str:
    """Beside words, a column of numbers is aligned to the right, and one of sentences is wide."""
    if all(map(_NUMBER.fullmatch, column)):
        return ' class="n"'
    return ' class="w"' if max(len(_TAG.sub("", cell)) for cell in column) > _LONG else ""


def scroll_region(label: str) -> str:
    """Return the start of a `div` that scrolls sideways, also with the keyboard. `label` is plain text."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">'


def verdict_line(sentence: str, word: str = "") -> str:
    """Return a verdict, with its word in front if it has one. Both are plain text."""
    return f'<p class="verdict">{f"<b>{html_text(word)}</b> " if word else ""}{html_text(sentence)}</p>'


def soft_line(sentence: str) -> str:
    """Return a remark. It is plain text."""
    return f'<p class="soft">{html_text(sentence)}</p>'
