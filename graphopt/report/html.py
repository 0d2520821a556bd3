"""The report as one HTML file that needs nothing else: no script, no font, no picture from elsewhere."""

from __future__ import annotations

from graphopt.report.figures import (
    broken_rules,
    comparison,
    environment_rows,
    headline,
    left_alone,
    stage_rows,
    to_deploy,
)
from graphopt.report.schema import Report

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>graphopt: {{ headline }}</title>
<style>
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #8884; vertical-align: top; }
td.figure { white-space: nowrap; font-variant-numeric: tabular-nums; }
.outcome { white-space: nowrap; font-weight: 600; }
.applied { color: #2a8a3e; } .backed_off { color: #a86b00; } .rolled_back { color: #c0392b; } .skipped { color: #888; }
.rejected { color: #c0392b; }
footer { margin-top: 2rem; color: #888; font-size: .85rem; }
</style>
</head>
<body>
<h1 class="{{ report.result }}">{{ headline }}</h1>
<table>
<thead><tr><th></th><th>before</th><th>after</th><th>change</th></tr></thead>
<tbody>
{% for row in comparison -%}
<tr><td>{{ row.what }}</td><td class="figure">{{ row.before }}</td><td class="figure">{{ row.after }}</td>
<td>{{ row.change }}</td></tr>
{% endfor -%}
</tbody>
</table>
<h2>Passes</h2>
<table>
<thead><tr><th>pass</th><th>outcome</th><th>changes</th><th>remark</th></tr></thead>
<tbody>
{% for stage, (name, outcome, changes, remark) in stages -%}
<tr><td>{{ name }}</td><td class="outcome {{ stage.status }}">{{ outcome }}</td><td class="figure">{{ changes }}</td>
<td>{{ remark }}</td></tr>
{% endfor -%}
</tbody>
</table>
{% for group in left_alone -%}
<h2>Left alone by {{ group.stage }}</h2>
<ul>
{% for where, reason in group.places %}<li>{{ where }}: {{ reason }}</li>
{% endfor %}{% if group.more %}<li>and {{ group.more }} more (all of them are in the JSON report)</li>{% endif %}
</ul>
{% endfor -%}
{% if broken[0] -%}
<h2>Rules of the target</h2>
<ul>
{% for line in broken[0] %}<li>{{ line }}</li>
{% endfor %}{% if broken[1] %}<li>and {{ broken[1] }} more (all of them are in the JSON report)</li>{% endif %}
</ul>
{% endif -%}
{% if deployment -%}
<h2>Deployment</h2>
<ul>
{% for line in deployment %}<li>{{ line }}</li>
{% endfor %}</ul>
{% endif -%}
{% if report.warnings -%}
<h2>Warnings</h2>
<ul>
{% for warning in report.warnings %}<li>{{ warning }}</li>
{% endfor %}</ul>
{% endif -%}
<footer>
<p>graphopt {{ report.graphopt_version }}; {% for key, value in environment -%}
{{ key }} {{ value }}{{ "; " if not loop.last }}{% endfor %}</p>
<p>input sha256 {{ report.input.sha256 }}{% if report.output -%}
<br>output sha256 {{ report.output.sha256 }}{% endif %}</p>
</footer>
</body>
</html>
"""


def as_html(report: Report) -> str:
    """Render the report as a self-contained HTML page; every text from the model is escaped."""
    from jinja2 import Environment, StrictUndefined

    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(TEMPLATE)
    return (
        template.render(
            report=report,
            headline=headline(report),
            comparison=comparison(report),
            environment=environment_rows(report),
            stages=list(zip(report.stages, stage_rows(report), strict=True)),
            left_alone=left_alone(report),
            broken=broken_rules(report),
            deployment=to_deploy(report.deployment) if report.deployment else [],
        )
        + "\n"
    )
