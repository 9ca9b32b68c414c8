"""The style sheet of the pages. System fonts, light and dark, wide and narrow, screen and paper; nothing is fetched.

The colours `t0` to `t7` of models and series stay apart for readers with protanopia, deuteranopia and tritanopia, and each stands out
from the background (WCAG 1.4.11); the tests hold them to it.
"""

from collections.abc import Mapping

FONT = 'Inter, ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'
TONES = 8
LIGHT: Mapping[str, str] = {
    "bg": "#f6f7f9",
    "card": "#ffffff",
    "ink": "#16191f",
    "soft": "#5c6573",
    "line": "#e1e5ea",
    "code": "#f0f2f5",
    "pass": "#12794a",
    "pass-bg": "#e3f5ec",
    "fail": "#b3261e",
    "fail-bg": "#fdeae8",
    "warn": "#8a5a00",
    "warn-bg": "#fdf3dc",
    "link": "#1f5fbf",
    **{f"t{i}": c for i, c in enumerate(["#2563eb", "#7b8494", "#b4460f", "#125c40", "#7a1fa2", "#b8860b", "#d3005c", "#1b2a4a"])},
}
DARK: Mapping[str, str] = {
    "bg": "#0f1216",
    "card": "#171b21",
    "ink": "#e8ebf0",
    "soft": "#9aa4b2",
    "line": "#2a313b",
    "code": "#1f252d",
    "pass": "#5bd39a",
    "pass-bg": "#12301f",
    "fail": "#ff8a80",
    "fail-bg": "#3a1816",
    "warn": "#f0bd5b",
    "warn-bg": "#352608",
    "link": "#7fb2ff",
    **{f"t{i}": c for i, c in enumerate(["#6ea0ff", "#8b93a1", "#e88363", "#62f0b7", "#9a62b4", "#f0e766", "#dc1f6d", "#d0e0ff"])},
}


def _named(colours: Mapping[str, str]) -> str:
    return ";".join(f"--{name}:{colour}" for name, colour in colours.items())


_TONES = "".join(f".t{i}{{fill:var(--t{i})}}" for i in range(TONES)) + ".ink{fill:var(--ink)}"

CSS = (
    f":root{{color-scheme:light dark;{_named(LIGHT)}}}"
    f"@media(prefers-color-scheme:dark){{:root:not(.paper){{{_named(DARK)}}}}}"
    f":root.paper{{color-scheme:light}}body{{font-family:{FONT}}}{_TONES}"
    """
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font-size:16px;line-height:1.55;font-variant-numeric:tabular-nums;
-webkit-text-size-adjust:100%}
main{max-width:1120px;margin:0 auto;padding:28px 24px 72px}
h1{font-size:2rem;line-height:1.15;margin:0 0 .2em;letter-spacing:-.02em;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:2.2em 0 .7em;letter-spacing:-.01em;scroll-margin-top:12px}
h3{font-size:1rem;margin:1.3em 0 .5em}h3.of{margin-top:1.8em}
p{margin:.4em 0}a{color:var(--link);text-underline-offset:2px}
:focus-visible{outline:3px solid var(--link);outline-offset:2px;border-radius:4px}
code,pre,.mono{font:.86em/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
code{background:var(--code);padding:.1em .35em;border-radius:4px;overflow-wrap:anywhere}
pre{background:var(--code);padding:14px 16px;border-radius:8px;overflow:auto;margin:.6em 0;max-height:30em;white-space:pre}
pre.wrap{white-space:pre-wrap;overflow-wrap:anywhere}
.soft{color:var(--soft)}.small{font-size:.86rem}
.skip{position:absolute;left:-99em}.skip:focus{position:static;display:block;padding:12px 24px}
.hero{background:var(--card);border:1px solid var(--line);border-left:8px solid var(--soft);border-radius:12px;padding:22px 26px}
.hero.good{border-left-color:var(--pass)}.hero.bad{border-left-color:var(--fail)}.hero.mixed{border-left-color:var(--warn)}
.hero .answer{font-size:1.35rem;font-weight:650;margin:.1em 0 .3em}
.good .answer{color:var(--pass)}.bad .answer{color:var(--fail)}.mixed .answer{color:var(--warn)}
.meta{display:flex;flex-wrap:wrap;gap:4px 22px;margin:1em 0 0;padding:0;list-style:none;color:var(--soft);font-size:.88rem}
.meta li{overflow-wrap:anywhere}
.glance{display:grid;grid-template-columns:repeat(auto-fill,minmax(200px,1fr));gap:14px 26px;list-style:none;margin:1.1em 0;padding:0}
.glance>li{border-top:2px solid var(--line);padding-top:8px}.glance p{margin:0;overflow-wrap:anywhere}
.glance .big{font-size:1.5rem;font-weight:650;line-height:1.3;letter-spacing:-.01em}
.glance ul{list-style:none;margin:.15em 0 0;padding:0}.glance .delta{white-space:normal}.glance ul li{line-height:1.4}
nav ul{list-style:none;display:flex;flex-wrap:wrap;gap:4px 20px;margin:18px 0 0;padding:0;font-size:.9rem}
.callout{border-radius:10px;padding:12px 16px;margin:12px 0;border:1px solid;overflow-wrap:anywhere}
.callout.bad{background:var(--fail-bg);border-color:var(--fail)}.callout.mixed{background:var(--warn-bg);border-color:var(--warn)}
.callout p{margin:.15em 0}
.verdicts{display:grid;gap:12px;margin:0;padding:0;list-style:none}
.verdict{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:14px 18px;display:grid;
grid-template-columns:112px minmax(0,1fr) minmax(0,340px);gap:6px 20px;align-items:center}
.verdict>div>.badge{font-size:1.02rem;padding:.3em .95em}.verdict p{margin:0;overflow-wrap:anywhere}.verdict .what{font-weight:600}
.verdict .slices{grid-column:2/-1;margin:6px 0 0}
.badge{display:inline-block;border-radius:999px;padding:.16em .75em;font-weight:650;font-size:.84rem;white-space:nowrap;
background:var(--code);color:var(--soft)}
.badge.pass,.badge.passed{background:var(--pass-bg);color:var(--pass)}
.badge.fail,.badge.error,.badge.gate_failed{background:var(--fail-bg);color:var(--fail)}
.badge.undecided,.badge.interrupted,.badge.skipped,.badge.warning{background:var(--warn-bg);color:var(--warn)}
.card{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:8px 18px 14px;margin:12px 0}
.scroll{overflow-x:auto;margin:0 -4px;padding:0 4px}
table{border-collapse:collapse;width:100%;font-size:.92rem}
th,td{text-align:left;padding:9px 14px 9px 0;border-bottom:1px solid var(--line);vertical-align:top}
tbody tr:last-child td,tbody tr:last-child th{border-bottom:0}
thead th{color:var(--soft);font-weight:600;font-size:.82rem;vertical-align:bottom}
tbody th{font-weight:600}td.num,th.num{text-align:right}td.num{white-space:nowrap}
td .was{display:block;white-space:nowrap}.board td{min-width:138px}.board td.candidate .was{font-weight:650}
td .range,td.candidate .was .range{color:var(--soft);font-size:.82rem;font-weight:400;margin-left:.4em}
.meter{display:block;width:100%;height:6px;border-radius:3px;background:var(--line);margin:5px 0 4px}
.delta{font-size:.82rem;color:var(--soft);white-space:nowrap}.delta.better{color:var(--pass)}.delta.worse{color:var(--fail)}
details{background:var(--card);border:1px solid var(--line);border-radius:12px;margin:10px 0}
summary{cursor:pointer;padding:13px 18px;display:flex;flex-wrap:wrap;gap:4px 14px;align-items:center;list-style:none;border-radius:12px}
summary::-webkit-details-marker{display:none}
summary::before{content:"";width:.45em;height:.45em;border-right:2px solid var(--soft);border-bottom:2px solid var(--soft);
transform:rotate(-45deg);transition:transform .15s}
details[open]>summary::before{transform:rotate(45deg)}
summary .id{font-weight:650;overflow-wrap:anywhere}summary .end{margin-left:auto;color:var(--soft);font-size:.88rem}
details>div{padding:0 18px 16px}
.card details,details details{background:none;border-color:var(--line)}
.plot>details,.slices{border:0}.plot>details>summary,.slices>summary{padding:6px 0;font-size:.88rem}
.plot>details>summary .id,.slices>summary .id{font-weight:400;color:var(--link)}.plot>details>div,.slices>div{padding:0 0 8px}
.notes{list-style:none;margin:.6em 0;padding:0;display:grid;gap:6px}
.notes li{padding:7px 12px;border-radius:8px;background:var(--code);overflow-wrap:anywhere}
.notes li.warning{background:var(--warn-bg);color:var(--ink);border-left:4px solid var(--warn)}
dl{display:grid;grid-template-columns:minmax(110px,max-content) minmax(0,1fr);gap:5px 20px;margin:.5em 0;font-size:.92rem}
dt{color:var(--soft);overflow-wrap:anywhere}dd{margin:0;overflow-wrap:anywhere}
.bars{list-style:none;margin:.4em 0;padding:0;display:grid;gap:7px}
.bars li{display:grid;grid-template-columns:minmax(0,180px) minmax(40px,1fr) 130px;gap:14px;align-items:center;font-size:.92rem}
.bars .name{overflow:hidden;text-overflow:ellipsis;white-space:nowrap}.bars .amount{color:var(--soft)}
.bars .meter{height:12px;border-radius:6px;background:var(--code);margin:0}.fill{fill:var(--t0)}.fill.cached{fill:var(--t1);opacity:.55}
figure{margin:14px 0 18px}figcaption{color:var(--soft);font-size:.86rem;margin-top:4px}
svg.interval{display:block;width:100%;height:auto;max-width:360px}
svg text{font-family:inherit}.label{fill:var(--soft);font-size:12px}
.axis{stroke:var(--line);stroke-width:1.5}.meets{fill:var(--pass-bg)}.bound{stroke:var(--ink);stroke-width:2;stroke-dasharray:4 3}
.whisker{stroke-width:3;stroke:var(--soft)}.dot{fill:var(--soft);stroke:var(--card);stroke-width:1.5}
.whisker.pass{stroke:var(--pass)}.dot.pass{fill:var(--pass)}.whisker.fail{stroke:var(--fail)}.dot.fail{fill:var(--fail)}
.whisker.undecided{stroke:var(--warn)}.dot.undecided{fill:var(--warn)}
.canvas{width:100%;overflow:hidden}.canvas:empty{min-height:120px}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:4px 20px;margin:4px 0;padding:0;font-size:.88rem}
.legend li{display:flex;align-items:center;overflow-wrap:anywhere}.legend svg{width:14px;height:14px;margin-right:7px;flex:none}
.heads{display:grid;grid-template-columns:repeat(auto-fit,minmax(260px,1fr));gap:12px;list-style:none;margin:14px 0;padding:0}
.heads .hero{padding:14px 18px}.heads .answer{font-size:1.05rem}.heads p{overflow-wrap:anywhere}
.runs td{overflow-wrap:anywhere}.runs tbody th{max-width:280px;overflow-wrap:anywhere}.runs svg.interval{max-width:260px;margin-top:6px}
footer{margin-top:48px;color:var(--soft);font-size:.84rem}
@media(max-width:760px){main{padding:14px 12px 48px}h1{font-size:1.5rem}.hero{padding:16px}
.glance{grid-template-columns:repeat(auto-fill,minmax(140px,1fr));gap:12px 16px}.glance .big{font-size:1.25rem}
.verdict{grid-template-columns:minmax(0,1fr)}.verdict .slices{grid-column:1}
dl{grid-template-columns:minmax(0,1fr);gap:0}dd{margin-bottom:8px}
.bars li{grid-template-columns:minmax(0,1fr) auto;gap:2px 10px}.bars .meter{grid-column:1/-1;grid-row:2}
summary .end{margin-left:0;width:100%}.card,details>div,summary{padding-left:12px;padding-right:12px}
.board thead{position:absolute;left:-99em}.board,.board tbody{display:block}
.board tr{display:flex;flex-wrap:wrap;border-bottom:1px solid var(--line);padding:8px 0}
.board th,.board td{border:0;padding:2px 10px 2px 0;min-width:0}.board th{flex:1 0 100%}.board td{flex:1 1 96px}
.board td::before{content:attr(data-label);display:block;color:var(--soft);font-size:.78rem;overflow-wrap:anywhere}
.board .delta,td .was{white-space:normal}td .was .range,td.candidate .was .range{display:block;margin:0}}
@media(max-width:760px){.stacked thead{position:absolute;left:-99em}.stacked,.stacked tbody,.stacked tr,.stacked tr>*{display:block}
.stacked tr{border-bottom:1px solid var(--line);padding:8px 0}.stacked tbody tr:last-child{border-bottom:0}
.stacked td,.stacked th,.stacked td.num{border:0;padding:2px 0;text-align:left;white-space:normal;overflow-wrap:anywhere}
.stacked td[data-label]::before{content:attr(data-label) ": ";color:var(--soft);font-size:.82rem}.stacked td .was{display:inline}}
@media(max-width:760px){.board.runs td{flex-basis:130px}.board.runs td:has(svg){flex-basis:100%}.runs tbody th{max-width:none}}
@media print{:root{--bg:#fff}body{font-size:10.5pt}main{max-width:none;padding:0}details::details-content{content-visibility:visible;
block-size:auto}.verdict,.card,tr,figure{break-inside:avoid}pre{max-height:none;white-space:pre-wrap}.scroll{overflow:visible}nav{display:none}}
"""
)
