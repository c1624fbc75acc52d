"""How a page looks: one style sheet, two themes, paper."""

LIGHT = """--paper:#fff;--ink:#1c1c1c;--soft:#5a5a5a;--rule:#dcdcdc;--link:#005a8f;
--c0:#0072b2;--c1:#d55e00;--c2:#009e73;--c3:#b5578f;--c4:#56b4e9;--c5:#d99200;--c6:#7d7d7d;"""

DARK = """--paper:#16181b;--ink:#e6e4e0;--soft:#a9a7a3;--rule:#393c40;--link:#7cc4f0;
--c0:#58aee8;--c1:#f08a3c;--c2:#2fc39a;--c3:#dd93be;--c4:#a5d8f7;--c5:#edc04a;--c6:#949494;"""

CSS = f"""
:root{{color-scheme:light dark;{LIGHT}}}
@media (prefers-color-scheme:dark){{:root{{{DARK}}}}}
@media print{{:root{{color-scheme:light;{LIGHT}}}}}
*{{box-sizing:border-box}}
html{{-webkit-text-size-adjust:100%}}
body{{margin:0;background:var(--paper);color:var(--ink);font:1.0625rem/1.55 Charter,"Iowan Old Style",
"Palatino Linotype",Palatino,Georgia,"Liberation Serif",serif}}
main{{max-width:60rem;margin:0 auto;padding:3rem 1.25rem 4rem}}
p,figcaption,h1,h2{{max-width:42rem}}
h1{{font-size:2.1rem;line-height:1.15;font-weight:600;margin:0}}
h2{{font-size:1.2rem;line-height:1.3;font-weight:600;margin:3.2rem 0 .7rem}}
p{{margin:0 0 .8rem}}
a{{color:var(--link);text-decoration-thickness:.06em;text-underline-offset:.15em}}
.paper{{color:var(--soft);margin:.35rem 0 0}}
.verdict{{font-size:1.3rem;line-height:1.45;margin:0 0 .8rem}}
.state{{font-weight:600}}
figure{{margin:1rem 0 0}}
figcaption,table,dl,.legend,svg{{font-family:system-ui,
-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}}
figcaption{{font-size:.875rem;line-height:1.5;color:var(--soft);margin-top:.5rem}}
svg{{display:block;width:100%;height:auto;overflow:visible}}
svg *{{stroke-linejoin:round;stroke-linecap:butt}}
svg text{{fill:var(--ink)}}
svg.narrow{{display:none}}
code{{font:.86em ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace;overflow-wrap:anywhere}}
dl{{margin:0;font-size:.9rem}}
dl div{{display:flex;gap:1rem;padding:.28rem 0;border-bottom:1px solid var(--rule)}}
dt{{color:var(--soft)}}
dd{{margin:0;overflow-wrap:anywhere;font-variant-numeric:tabular-nums}}
.facts{{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,16rem),1fr));gap:0 2rem}}
.facts div{{justify-content:space-between}}
.facts dd{{text-align:right}}
.lines dt{{flex:0 0 9.5rem}}
.after{{margin-top:1rem}}
.legend{{display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;list-style:none;margin:.2rem 0 .4rem;padding:0;font-size:.875rem}}
.legend i{{font-style:normal;margin-right:.4em}}
.scroll{{overflow-x:auto;margin-top:.6rem}}
.scroll th:first-child{{position:sticky;left:0;background:var(--paper);padding-right:1rem}}
.scroll:focus-visible{{outline:2px solid var(--link);outline-offset:2px}}
table{{border-collapse:collapse;font-size:.875rem;line-height:1.4;font-variant-numeric:tabular-nums;min-width:100%}}
th,td{{padding:.28rem .7rem;white-space:nowrap;text-align:left}}
th:first-child{{padding-left:0}}
th:last-child,td:last-child{{padding-right:0}}
.n{{text-align:right}}
.long{{white-space:normal;min-width:14rem}}
small{{display:block;color:var(--soft)}}
.above,.below{{font-weight:600}}
.above{{color:color-mix(in srgb,var(--c0) 60%,var(--ink))}}
.below{{color:color-mix(in srgb,var(--c1) 60%,var(--ink))}}
thead th{{color:var(--soft);font-weight:500;border-bottom:1px solid var(--ink);vertical-align:bottom}}
tbody th{{font-weight:500}}
tbody tr+tr>*{{border-top:1px solid var(--rule)}}
@media (min-width:64rem){{
div.wide{{margin-inline:calc((100% - min(100vw - 4rem,84rem))/2)}}
.wide th,.wide td{{padding-inline:.5rem}}
.wide table{{min-width:60rem;margin:0 auto}}
}}
@media (max-width:44rem){{
main{{padding:1.6rem 1rem 3rem}}
h1{{font-size:1.7rem}}
.verdict{{font-size:1.15rem}}
.long{{min-width:9rem}}
svg.wide{{display:none}}
svg.narrow{{display:block}}
}}
@media print{{
body{{font-size:10.5pt}}
main{{max-width:none;padding:0}}
h2{{margin-top:1.6rem;break-after:avoid}}
figure,tr,dl div{{break-inside:avoid}}
svg.wide{{display:block}}
svg.narrow{{display:none}}
.scroll{{overflow:visible}}
}}
"""
