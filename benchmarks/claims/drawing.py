"""A finding as a picture: for each group of figures a row of bars, with a mark where each was expected. SVG by hand."""

from html import escape
from itertools import groupby

from benchmarks.claims.finding import Figure, Finding

LINE, GAP, LEFT, WIDTH, RIGHT = 22, 34, 210, 380, 110  # pixels
STYLE = (
    "text{font:13px sans-serif;fill:#222}.claim{font-weight:bold}.group{fill:#666}"
    ".bar{fill:#4a7fb5}.mark{stroke:#c33;stroke-width:2}"
)


def drawing(finding: Finding) -> str:
    """An SVG document."""
    by_group = sorted(finding.figures, key=lambda figure: figure.group)
    groups = [list(some) for _, some in groupby(by_group, key=lambda figure: figure.group)]
    parts, y = [_text(10, 22, finding.claim, "claim")], 50
    for group in groups:
        parts.append(_text(10, y, f"{group[0].group}   (line: expected)", "group"))
        longest = max([*(f.measured for f in group), *(f.expected or 0 for f in group), 1e-12])
        for figure in group:
            y += LINE
            parts += _bar(figure, y, WIDTH / longest)
        y += GAP
    size = f'width="{LEFT + WIDTH + RIGHT}" height="{y}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{STYLE}</style>\n' + "\n".join(parts) + "\n</svg>\n"


def _bar(figure: Figure, y: int, scale: float) -> list[str]:
    width = figure.measured * scale
    bar = [
        _text(20, y, figure.name, "name"),
        f'<rect class="bar" x="{LEFT}" y="{y - 12}" width="{width:.1f}" height="15"/>',
        _text(int(LEFT + WIDTH + 10), y, f"{figure.measured:.4g}", "value"),
    ]
    if figure.expected is not None:
        at = LEFT + figure.expected * scale
        bar.append(f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{y - 15}" y2="{y + 6}"/>')
    return bar


def _text(x: int, y: int, words: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x}" y="{y}">{escape(words)}</text>'
