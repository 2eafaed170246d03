"""The report as one HTML page that needs nothing else: images and charts inside, no scripts."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

from PIL import Image

from .charts import COLOURS, Point, bars, scatter
from .intervals import Interval
from .results import Column, ImageResult, Results, Row
from .store import open_rgb

SIDE = 150  # pixels of an image's longer side
EACH = 4  # best, median and worst images of a row
MOST_BARS = 40
MOST_POINTS = 2000

STYLE = """
:root{color-scheme:light dark;--back:#fff;--text:#1c2024;--soft:#60646c;--line:#d9d9e0;
--panel:#f7f7f9;--row-0:#6e56cf;--row-1:#0d9488;--row-2:#d97706;--row-3:#db2777;--row-4:#2563eb;
--row-5:#65a30d}
@media(prefers-color-scheme:dark){:root{--back:#15161a;--text:#e8e8ec;--soft:#a0a3ab;--line:#34363e;
--panel:#1e2026;--row-0:#9e8cfc;--row-1:#2dd4bf;--row-2:#fbbf24;--row-3:#f472b6;--row-4:#7aa2ff;
--row-5:#a3e635}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1000px;padding:28px 20px 60px;background:var(--back);
color:var(--text);font:15px/1.55 system-ui,sans-serif}
h1{font-size:26px;margin:0 0 4px}h2{font-size:19px;margin:38px 0 10px}h3{font-size:15px;
margin:20px 0 6px}p{margin:6px 0}.soft{color:var(--soft)}
.wide{overflow-x:auto;border:1px solid var(--line);border-radius:8px}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:7px 12px;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child,td:first-child{text-align:left}thead th{background:var(--panel);font-weight:600;
white-space:normal;vertical-align:bottom}tbody tr:last-child td{border-bottom:0}
td small{display:block;color:var(--soft)}tr.bound td,tr.theirs td{color:var(--soft)}
tr.theirs td:first-child::after{content:" (published)"}
.key{display:flex;flex-wrap:wrap;gap:4px 18px;margin:0 0 8px}.key i{display:inline-block;width:11px;
height:11px;border-radius:3px;margin-right:6px}
svg{width:100%;height:auto;display:block}svg text{fill:var(--soft);font:12px system-ui,sans-serif}
svg .end{text-anchor:end}svg .middle{text-anchor:middle}svg .small{font-size:11px}
svg .grid{stroke:var(--line);fill:none}svg .whisker{stroke:var(--text);stroke-width:1.4}
svg .bound{stroke:var(--soft);stroke-dasharray:4 3;fill:none}
svg circle{fill-opacity:.6}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(215px,1fr));gap:12px}
.card{border:1px solid var(--line);border-radius:8px;background:var(--panel);padding:8px;
font-size:13px;line-height:1.4;overflow-wrap:anywhere}
.card div{display:flex;gap:6px;align-items:flex-start;margin-bottom:6px;flex-wrap:wrap}
.card img{border-radius:4px;display:block;max-width:100%}.card b{font-variant-numeric:tabular-nums}
.meter{display:inline-block;height:9px;border-radius:3px;vertical-align:middle;margin-right:8px;
background:var(--row-0)}
code{font-size:12.5px;overflow-wrap:anywhere}dt{font-weight:600;margin-top:8px}dd{margin:0}
"""


def page_of(results: Results) -> str:
    """The whole page."""
    colours = "".join(
        f"svg .row-{n}{{fill:var(--row-{n})}}.key .row-{n}{{background:var(--row-{n})}}"
        for n in range(COLOURS)
    )
    sections = [
        _head(results),
        _scores(results),
        _bars(results),
        _scatter(results),
        _failures(results),
        *(_images(results, row) for row in results.rows),
        _facts(results),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(results.title)}</title><style>{STYLE}{colours}</style></head><body>"
        f"{''.join(sections)}</body></html>\n"
    )


def _head(results: Results) -> str:
    rows = ", ".join(escape(f"{row.name} ({len(row.images)} images)") for row in results.rows)
    return f'<h1>{escape(results.title)}</h1><p class="soft">{rows}</p>'


# ---------------------------------------------------------------- the table


def _scores(results: Results) -> str:
    columns = results.columns
    heads = "".join(f"<th>{escape(c.label)}{_arrow(c)}</th>" for c in columns)
    lines = []
    for row in results.rows:
        cells = "".join(f"<td>{interval_html(row.summary(c.name))}</td>" for c in columns)
        lines.append(f"<tr><td><b>{escape(row.name)}</b></td>{cells}</tr>")
    for name, side in (("floor: other subjects", "floor"), ("oracle: same subject", "oracle")):
        found = {key: getattr(bound, side) for key, bound in results.bounds.items()}
        if any(found.values()):
            cells = "".join(f"<td>{interval_html(found.get(c.name))}</td>" for c in columns)
            lines.append(f'<tr class="bound"><td>{name}</td>{cells}</tr>')
    for name, values in results.peers.items():
        told = [values.get(c.name) for c in columns]
        cells = "".join(f"<td>{'' if v is None else number(v)}</td>" for v in told)
        lines.append(f'<tr class="theirs"><td>{escape(name)}</td>{cells}</tr>')
    return (
        f'<h2>Scores</h2><div class="wide"><table><thead><tr><th></th>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _arrow(column: Column) -> str:
    return " ↓" if column.better == "lower" else " ↑"


def interval_html(interval: Interval | None) -> str:
    """A mean with its interval below."""
    if interval is None:
        return ""
    mean = number(interval.mean)
    if interval.low is None:
        return mean
    return f"{mean}<small>{number(interval.low)} – {number(interval.high)}</small>"


def number(value: float) -> str:
    """Three digits after the point for cosines and shares, one for what is times 100."""
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


# ---------------------------------------------------------------- charts


def _key(results: Results) -> str:
    parts = []
    for n, row in enumerate(results.rows):
        parts.append(f'<span><i class="row-{n % COLOURS}"></i>{escape(row.name)}</span>')
    return f'<div class="key">{"".join(parts)}</div>'


def _bars(results: Results) -> str:
    lead = results.lead("likeness")
    if lead is None:
        return ""
    rows = [row.groups(lead.name) for row in results.rows]
    names = sorted({name for row in rows for name in row}, key=lambda n: -_mean(rows, n))
    shown = names
    if len(names) > MOST_BARS:
        shown = names[: MOST_BARS // 2] + names[-MOST_BARS // 2 :]
    bound, lines = results.bounds.get(lead.name), {}
    for name in ("floor", "oracle"):
        found = getattr(bound, name, None)
        if found is not None:
            lines[name] = found.mean
    left = f"The best and worst of {len(names)}. " if len(shown) < len(names) else ""
    return (
        f"<h2>{escape(lead.label)} by subject</h2>{_key(results)}"
        f"{bars(shown, rows, lines, lead.label)}"
        f'<p class="soft">{left}Lines: 95 % intervals over the images of a subject.</p>'
    )


def _mean(rows: Sequence[dict[str, Interval]], name: str) -> float:
    return next((row[name].mean for row in rows if name in row), float("-inf"))


def _scatter(results: Results) -> str:
    across, up = results.lead("prompt"), results.lead("likeness")
    if across is None or up is None:
        return ""
    points = []
    for n, row in enumerate(results.rows):
        for image in row.images[: MOST_POINTS // len(results.rows)]:
            x, y = image.values.get(across.name), image.values.get(up.name)
            if x is not None and y is not None:
                points.append(Point(x, y, n, f"{image.group}: {image.prompt}"))
    if not points:
        return ""
    return (
        "<h2>Likeness against prompt fidelity</h2>"
        f"{_key(results)}{scatter(points, across.label, up.label)}"
    )


def _failures(results: Results) -> str:
    kinds = dict.fromkeys(kind for row in results.rows for kind in row.failures())
    if not kinds:
        return ""
    heads = "".join(f"<th>{escape(row.name)}</th>" for row in results.rows)
    lines = []
    for kind in kinds:
        cells = "".join(_failed(row, kind) for row in results.rows)
        lines.append(f"<tr><td>{escape(kind)}</td>{cells}</tr>")
    return (
        '<h2>Failures</h2><p class="soft">Share of images; an image may fail in several ways.</p>'
        f'<div class="wide"><table><thead><tr><th></th>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _failed(row: Row, kind: str) -> str:
    count = row.failures().get(kind, 0)
    share = count / max(len(row.images), 1)
    return (
        f'<td><span class="meter" style="width:{share * 70:.0f}px"></span>{share:.0%}'
        f"<small>{count} of {len(row.images)}</small></td>"
    )


# ---------------------------------------------------------------- images


def chosen(images: Sequence[ImageResult], column: str) -> dict[str, list[ImageResult]]:
    """The best, median and worst images by a column."""
    known = [image for image in images if image.values.get(column) is not None]
    ordered = sorted(known, key=lambda image: (-image.values[column], image.file))
    if len(ordered) < 3 * EACH:
        return {"from best to worst": ordered}
    middle = (len(ordered) - EACH) // 2
    parts = (ordered[:EACH], ordered[middle : middle + EACH], ordered[-EACH:])
    return dict(zip(("best", "median", "worst"), parts, strict=True))


def _images(results: Results, row: Row) -> str:
    lead = results.lead("likeness")
    if lead is None:
        return ""
    parts = [f"<h2>{escape(row.name)}: images by {escape(lead.label)}</h2>"]
    for name, images in chosen(row.images, lead.name).items():
        cards = "".join(_card(results, image) for image in images)
        parts.append(f'<h3>{name}</h3><div class="cards">{cards}</div>')
    return "".join(parts)


def _card(results: Results, image: ImageResult) -> str:
    shown = inline(Path(image.file), SIDE)
    references = "".join(inline(Path(path), 56) for path in image.references[:4])
    leads = [results.lead(kind) for kind in ("likeness", "prompt")]
    told = []
    for column in leads:
        value = None if column is None else image.values.get(column.name)
        if value is not None:
            told.append(f"{escape(column.label)} <b>{number(value)}</b>")
    failed = f"<br>{escape('; '.join(image.failures))}" if image.failures else ""
    return (
        f'<div class="card"><div>{shown}<span>{references}</span></div>{", ".join(told)}<br>'
        f'<span class="soft">{escape(image.prompt)}{failed}</span></div>'
    )


def inline(path: Path, side: int) -> str:
    """An image inside the page: a small JPEG, or a sentence where it cannot be read."""
    try:
        image = open_rgb(path)
    except ValueError:
        return '<span class="soft">(no image)</span>'
    small = image.width <= side // 2
    scale = side / max(image.size)
    size = tuple(max(round(length * scale), 1) for length in image.size)
    way = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
    written = io.BytesIO()
    image.resize(size, way).save(written, "JPEG", quality=82)
    data = base64.b64encode(written.getvalue()).decode()
    return f'<img src="data:image/jpeg;base64,{data}" width="{size[0]}" height="{size[1]}" alt="">'


# ---------------------------------------------------------------- facts


def _facts(results: Results) -> str:
    facts: list[tuple[str, str]] = []
    for row in results.rows:
        told = {k: v for k, v in row.told.items() if v and k != "seeds"}
        if told:
            facts.append((row.name, "; ".join(f"{k}: {v}" for k, v in told.items())))
    facts += [(f"scored by {name}", value) for name, value in results.models.items()]
    facts += [(f"weights {name}", value) for name, value in results.weights.items()]
    facts.append(("command", results.command))
    listed = "".join(f"<dt>{escape(k)}</dt><dd><code>{escape(v)}</code></dd>" for k, v in facts)
    notes = "".join(f"<p>{escape(note)}</p>" for note in results.notes)
    return f"<h2>How it was measured</h2>{notes}<dl>{listed}</dl>"
