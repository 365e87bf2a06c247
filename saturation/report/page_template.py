"""The page's frame and its style: no font, script or image from anywhere else."""

from __future__ import annotations

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="saturation {version}">
<title>{title}</title>
<style>{style}</style>
<script>{plotly}</script>
</head>
<body>
<header>
<h1>{title}</h1>
<p class="lead">{lead}</p>
<nav>{navigation}</nav>
</header>
<main>
{sections}
</main>
<footer>Written by saturation {version}. This file needs no network.</footer>
<script>
const options = {{responsive: true, displayModeBar: false}};
const charts = {charts};
for (const [id, chart] of Object.entries(charts)) {{
  Plotly.newPlot(id, chart.data, chart.layout, options);
}}
</script>
</body>
</html>
"""

STYLE = """
:root { --ink: #1f2933; --soft: #5f6b76; --line: #e4e7eb; --accent: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0; font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: #f7f8fa; }
header, main, footer { max-width: 1120px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 32px; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 6px; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 44px 0 10px; padding-top: 14px; border-top: 2px solid var(--ink);
  overflow-wrap: anywhere; }
h3 { font-size: 1.05rem; margin: 26px 0 6px; }
.lead, figcaption, footer, .note { color: var(--soft); }
.lead { margin: 0 0 12px; max-width: 75ch; }
nav a { margin-right: 16px; color: var(--accent); overflow-wrap: anywhere; }
ol.guide { background: #fff; border: 1px solid var(--line); border-left: 4px solid var(--accent);
  border-radius: 6px; padding: 14px 20px 14px 40px; max-width: 90ch; }
ol.guide li + li { margin-top: 6px; }
.warning { background: #fff6ed; border: 1px solid #f2cfae; border-radius: 6px; padding: 8px 14px; }
.charts { display: grid; gap: 16px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); }
figure { margin: 0; background: #fff; border: 1px solid var(--line); border-radius: 6px;
  padding: 12px 14px 8px; min-width: 0; }
figure.wide { grid-column: 1 / -1; }
figcaption { font-size: .93rem; margin-bottom: 6px; }
figcaption b { display: block; color: var(--ink); font-size: 1rem; }
.scroll { overflow-x: auto; background: #fff; border: 1px solid var(--line); border-radius: 6px; }
.scroll { margin-bottom: 16px; } pre { margin: 0; padding: 10px 14px; font-size: .85rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; padding: 6px 9px; border-bottom: 1px solid var(--line);
  vertical-align: top; }
thead th { color: var(--soft); font-weight: 600; white-space: nowrap; }
tr:last-child > * { border-bottom: 0; }
td.whole { white-space: nowrap; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
th.number { text-align: right; }
code { font-size: .9em; background: #eef1f4; padding: 1px 5px; border-radius: 4px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 18px; margin: 10px 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
footer { padding: 30px 20px 40px; font-size: .9rem; }
@media (max-width: 560px) { dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: 8px; }
  header, main, footer { padding-left: 12px; padding-right: 12px; } }
"""
