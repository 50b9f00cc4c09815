# SPDX-License-Identifier: MIT
"""Line charts as SVG, by hand: nothing but the standard library."""

import math
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 560, 400
LEFT, RIGHT, TOP, BOTTOM = 70, 150, 40, 50
COLOURS = ["#1b6ca8", "#c0392b", "#6b7a8f", "#b8860b", "#2e7d32"]


def _ticks_log(low, high):
    ticks = [10.0 ** e for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    return [t for t in ticks if low * 0.99 <= t <= high * 1.01]


def _ticks_linear(high):
    step = 10 ** math.floor(math.log10(high or 1))
    for factor in (0.2, 0.5, 1, 2):
        if high / (step * factor) <= 6:
            step *= factor
            break
    return [i * step for i in range(int(high / step) + 1)]


def _text(x, y, text, anchor="middle", extra=""):
    return (f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="12" {extra}>'
            f"{escape(text)}</text>")


def chart(title, x_label, y_label, series, log):
    """series: {name: [(x, y), ...]}; the inside of an <svg>."""
    points = [p for line in series.values() for p in line]
    x_high, y_high = max(p[0] for p in points), max(p[1] for p in points)
    x_low = min(p[0] for p in points) if log else 0
    y_low = min(p[1] for p in points) if log else 0
    if log:
        y_low, y_high = 10 ** math.floor(math.log10(y_low)), 10 ** math.ceil(math.log10(y_high))

    def place(value, low, high, start, end):
        if log:
            value, low, high = math.log10(value), math.log10(low), math.log10(high)
        return start + (value - low) / ((high - low) or 1) * (end - start)

    def px(x):
        return place(x, x_low, x_high, LEFT, WIDTH - RIGHT)

    def py(y):
        return place(y, y_low, y_high * (1 if log else 1.05), HEIGHT - BOTTOM, TOP)

    out = [_text(WIDTH / 2, 22, title, extra='font-weight="bold"'),
           _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, x_label),
           _text(16, HEIGHT / 2, y_label, extra=f'transform="rotate(-90 16 {HEIGHT / 2})"')]
    for x in _ticks_log(x_low, x_high) if log else _ticks_linear(x_high):
        out.append(f'<path d="M{px(x):.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#ddd"/>')
        out.append(_text(px(x), HEIGHT - BOTTOM + 18, f"{x:,.0f}"))
    for y in _ticks_log(y_low, y_high) if log else _ticks_linear(y_high):
        out.append(f'<path d="M{LEFT} {py(y):.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        out.append(_text(LEFT - 8, py(y) + 4, f"{y:g}", "end"))
    labels = []
    for (name, line), colour in zip(series.items(), COLOURS):
        path = "L".join(f"{px(x):.1f} {py(y):.1f}" for x, y in sorted(line))
        out.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out += [f'<circle cx="{px(x):.1f}" cy="{py(y):.1f}" r="3" fill="{colour}"/>'
                for x, y in line]
        labels.append((py(max(line)[1]), name, colour))
    at = 0
    for y, name, colour in sorted(labels):  # beside the ends of the lines, not on each other
        at = max(y, at + 15)
        out.append(_text(WIDTH - RIGHT + 8, at + 4, name, "start", f'fill="{colour}"'))
    return "\n".join(out)


def write(path, charts):
    """charts side by side."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH * len(charts)}" '
                   f'height="{HEIGHT}" font-family="sans-serif">\n'
                   '<rect width="100%" height="100%" fill="white"/>\n')
        for i, inside in enumerate(charts):
            file.write(f'<g transform="translate({i * WIDTH} 0)">\n{inside}\n</g>\n')
        file.write("</svg>\n")
