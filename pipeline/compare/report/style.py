"""The style sheet of compare.html.  Colours of rows are in theme.py."""

from __future__ import annotations

CSS = """
:root{--paper:#fff;--ground:#f4f6f9;--ink:#1b1f24;--muted:#5d6776;--line:#dfe3e9;--good:#0a7a55;--bad:#c2293b;
 --goodbg:#e2f5ec;--badbg:#fde8ea}
@media (prefers-color-scheme:dark){:root{--paper:#14171c;--ground:#0d0f13;--ink:#e8ebf0;--muted:#98a2b3;
 --line:#2b313b;--good:#4fd3a5;--bad:#ff7b8a;--goodbg:#12312a;--badbg:#3a1a20}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
 "DejaVu Sans",sans-serif}
main{max-width:1280px;margin:0 auto;padding:clamp(12px,3vw,32px);display:grid;gap:20px;
 grid-template-columns:minmax(0,1fr)}
header,section{background:var(--paper);border:1px solid var(--line);border-radius:14px;padding:clamp(16px,2.5vw,28px)}
h1{margin:0;font-size:14px;font-weight:600;color:var(--muted);overflow-wrap:anywhere}
h2{margin:0 0 14px;font-size:18px}
h3{margin:22px 0 8px;font-size:15px}
p{margin:0 0 12px}
.ship{font-size:clamp(26px,5vw,40px);font-weight:700;line-height:1.15;margin:4px 0 18px;letter-spacing:-.02em}
.ship b{color:var(--row)}
.ship.none{color:var(--bad)}
.figures{display:grid;grid-template-columns:repeat(4,minmax(0,1fr));gap:10px;margin-bottom:16px}
.figures div{background:var(--ground);border-radius:10px;padding:12px 14px}
.figures b{display:block;font-size:22px;letter-spacing:-.01em;font-variant-numeric:tabular-nums}
.figures span,.why{color:var(--muted)}
.why{margin:0;overflow-wrap:anywhere}
.scroll{overflow-x:auto;-webkit-overflow-scrolling:touch}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:14px}
th,td{padding:8px 9px;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}
tr:last-child>*{border-bottom:0}
thead th{color:var(--muted);font-weight:500;font-size:12.5px;vertical-align:bottom;white-space:normal;line-height:1.25}
th:first-child{text-align:left;position:sticky;left:0;background:var(--paper);font-weight:600}
td:nth-child(-n+3),thead th:nth-child(-n+3){text-align:left}
#classes td,#classes th+th,#split td,#split th+th,.build td,.build th+th{text-align:right}
.build td.text,.build thead th:last-child{text-align:left}
i{display:inline-block;width:10px;height:10px;border-radius:3px;background:var(--row);margin-right:8px}
.badge{font-weight:600;font-size:12.5px;color:var(--muted)}
.badge.pass,td.good{color:var(--good)}
.badge.fail,td.bad{color:var(--bad)}
td.good{background:var(--goodbg)}
td.bad{background:var(--badbg)}
.failures{margin:14px 0 0;padding-left:20px;color:var(--muted);overflow-wrap:anywhere}
.failures b{color:var(--bad)}
.panels{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:20px;align-items:start}
img{display:block;width:100%;height:auto}
.strip{margin:0 0 18px}
.strip p{margin:0 0 6px;color:var(--muted);overflow-wrap:anywhere}
.strip b{color:var(--ink);font-weight:600;margin-right:6px}
.four{display:grid;grid-template-columns:repeat(4,minmax(0,1fr));gap:8px}
@media (max-width:720px){.four,.figures{grid-template-columns:repeat(2,minmax(0,1fr))}}
figure{margin:0}
figure img{border-radius:8px;background:var(--ground)}
figcaption{font-size:12px;color:var(--muted);padding:4px 2px}
details{border-top:1px solid var(--line);padding:10px 0}
details:first-of-type{border-top:0}
summary{cursor:pointer;font-weight:600}
summary .badge{margin-left:8px}
details p{margin:10px 0;color:var(--muted)}
pre{overflow-x:auto;background:var(--ground);border-radius:10px;padding:12px 14px;font:12.5px/1.5 ui-monospace,
 "SF Mono",Menlo,"DejaVu Sans Mono",monospace;margin:10px 0 0}
dl{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:6px 18px;margin:0;font-size:14px}
dt{color:var(--muted)}
dd{margin:0;overflow-wrap:anywhere}
@media print{body{background:#fff}header,section{border:0;padding:12px 0;break-inside:avoid}}
"""
