"""The report's style sheet. It is inlined: a report is one file that needs no other."""

CSS = """
:root {
  --page: #f6f7f9; --card: #ffffff; --ink: #1c2430; --soft: #5b6675; --faint: #98a2b0;
  --edge: #dfe3e9; --after: #1f6fd6; --before: #77808d; --tint: #eaf2fd;
  --good: #147a43; --good-tint: #e3f4ea; --bad: #b3372b; --bad-tint: #fbe9e7;
  --s0: #1f6fd6; --s1: #d2691e; --s2: #2b8a5f; --s3: #8a4fbf; --mark: #fff0cf;
  color-scheme: light dark;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12161c; --card: #1b2129; --ink: #e6eaf0; --soft: #a3aebc; --faint: #6f7b8a;
    --edge: #2d3641; --after: #74b0ff; --before: #a0abb8; --tint: #1d2c40;
    --good: #67d199; --good-tint: #17342a; --bad: #ff8f82; --bad-tint: #3d2224;
    --s0: #74b0ff; --s1: #f2a25c; --s2: #62cf9d; --s3: #c59bf2; --mark: #4a3d17;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.5;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 36px 24px 64px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.01em; }
h2 { font-size: 19px; margin: 44px 0 14px; }
h3 { font-size: 14px; margin: 0; font-weight: 600; }
p { margin: 0 0 10px; } .soft { color: var(--soft); } .small { font-size: 13px; }
code { font: 12.5px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace;
  overflow-wrap: anywhere; }
.panel { background: var(--card); border: 1px solid var(--edge); border-radius: 12px;
  padding: 18px 20px; }
.notice { border-left: 4px solid var(--bad); background: var(--bad-tint); border-radius: 8px;
  padding: 10px 14px; margin: 14px 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 14px;
  margin: 22px 0 0; }
.tile .value { font-size: 30px; font-weight: 650; letter-spacing: -0.02em; line-height: 1.25;
  font-variant-numeric: tabular-nums; }
.tile .label { color: var(--soft); font-size: 13px; }
.delta { display: inline-block; border-radius: 999px; padding: 1px 9px; font-size: 13px;
  font-weight: 600; font-variant-numeric: tabular-nums; white-space: nowrap;
  background: var(--page); color: var(--soft); }
.delta.better { background: var(--good-tint); color: var(--good); }
.delta.worse { background: var(--bad-tint); color: var(--bad); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: right; color: var(--soft); font-weight: 600; font-size: 13px; }
th, td { padding: 7px 12px; border-bottom: 1px solid var(--edge); text-align: right;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; white-space: normal; }
th:last-child, td:last-child { padding-right: 0; }
tbody tr:last-child td { border-bottom: 0; }
td.last { font-weight: 650; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 5px 20px; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(330px, 1fr)); gap: 14px; }
.charts .panel { padding: 14px 14px 6px; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 14px; color: var(--soft); font-size: 12.5px;
  min-height: 20px; margin: 2px 0 4px; }
.legend i { display: inline-block; width: 14px; height: 3px; border-radius: 2px;
  margin-right: 6px; vertical-align: middle; }
svg { width: 100%; height: auto; display: block; }
.grid { stroke: var(--edge); stroke-width: 1; }
.axis { fill: var(--soft); font-size: 11px; font-family: inherit; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.faint { fill: none; stroke-width: 1; opacity: 0.3; }
.reference { stroke: var(--before); stroke-width: 1.5; stroke-dasharray: 5 4; }
.s0 { stroke: var(--s0); } .s1 { stroke: var(--s1); } .s2 { stroke: var(--s2); }
.s3 { stroke: var(--s3); }
.dot { fill: var(--card); stroke-width: 2; }
.hit { fill: transparent; stroke: none; } .hit:hover { fill: var(--soft); fill-opacity: 0.35; }
.choice { display: flex; flex-wrap: wrap; gap: 6px; margin: 0 0 16px; }
.choice + .cards { margin-top: 0; }
.pick { position: absolute; opacity: 0; pointer-events: none; }
.choice label { border: 1px solid var(--edge); background: var(--card); border-radius: 999px;
  padding: 5px 14px; cursor: pointer; font-size: 14px; }
.choice label:hover { border-color: var(--faint); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: 16px; }
.card { background: var(--card); border: 1px solid var(--edge); border-radius: 12px;
  overflow: hidden; display: flex; flex-direction: column; }
.card .picture { background: var(--page); display: flex; justify-content: center;
  align-items: center; height: 216px; border-bottom: 1px solid var(--edge); }
.card img { width: 100%; height: 100%; object-fit: contain; display: block; }
.card .missing { color: var(--faint); font-size: 13px; }
.card .body { padding: 12px 16px 14px; display: flex; flex-direction: column; gap: 10px;
  flex: 1; }
.caption { display: grid; grid-template-columns: 48px minmax(0, 1fr) max-content; gap: 10px;
  align-items: baseline; }
.caption .text, .story li span { overflow-wrap: anywhere; }
.caption .who { font-size: 12px; font-weight: 650; color: var(--before); }
.caption .cider { font-size: 13px; color: var(--soft); font-variant-numeric: tabular-nums; }
.caption.last .who { color: var(--after); } .caption.last .text { font-weight: 600; }
u { text-decoration: underline dotted var(--bad) 1.5px; text-underline-offset: 3px; }
.foot { display: flex; justify-content: space-between; align-items: center; font-size: 12.5px;
  color: var(--faint); margin-top: auto; gap: 10px; }
.refs { margin: 0; padding: 8px 0 0; list-style: none; border-top: 1px solid var(--edge);
  color: var(--soft); font-size: 13px; }
.refs li { padding: 1px 0; }
details summary { cursor: pointer; color: var(--soft); margin: 18px 0 12px; }
.story { display: grid; grid-template-columns: 132px minmax(0, 1fr); gap: 18px;
  margin-bottom: 14px; }
.story img { width: 132px; border-radius: 8px; display: block; }
.story ol { list-style: none; margin: 0; padding: 0; }
.story ol li { display: grid; grid-template-columns: 74px minmax(0, 1fr); gap: 10px;
  padding: 2px 0; }
.story .step { color: var(--soft); font-size: 12.5px; font-variant-numeric: tabular-nums; }
@media (max-width: 560px) {
  main { padding: 22px 14px 40px; } .story { grid-template-columns: 1fr; }
  .cards, .charts { grid-template-columns: 1fr; }
}
@media print { .choice { display: none; } .card, .charts .panel { break-inside: avoid; } }
"""


def picker_css(groups: list[str]) -> str:
    """Shows the cards of the chosen radio button `pick-GROUP`, without a script.

    A card carries the classes of its groups and its place in each as `--GROUP`.
    """
    rules = []
    for group in groups:
        chosen = f"#pick-{group}:checked ~"
        rules.append(f"{chosen} .cards .card:not(.{group}) {{ display: none; }}")
        rules.append(f"{chosen} .cards .card.{group} {{ order: var(--{group}); }}")
        rules.append(
            f"{chosen} .choice label[for=pick-{group}] {{ background: var(--after); "
            "border-color: var(--after); color: var(--card); }"
        )
        rules.append(
            f"#pick-{group}:focus-visible ~ .choice label[for=pick-{group}] "
            "{ outline: 2px solid var(--after); outline-offset: 2px; }"
        )
    return "\n".join(rules)
