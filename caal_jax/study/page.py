"""study.md and study.html: the plan, the table and the checks, for readers."""

from pathlib import Path

from caal_jax import files
from caal_jax.report.page import template

HOW_TO_READ = (
    "Means over seeds; brackets are 95 % intervals over patients and seeds, both drawn anew. "
    "Differences of the pixel AP are paired: both rows get the same patients and seeds in each "
    "resample. p-values are two-sided, not below that of a test of signs of so many patients, and "
    "adjusted for all comparisons of the table (Holm). "
    "Planted AP: on anomalies of kinds that no task makes, in held-out healthy scans. Null: AUROC "
    "of held-out healthy against normal test scans, one value for each seed, 0.5 where they look "
    "alike. Leak: largest change of a test score when its scan is predicted again, alone."
)


def columns(found):
    """(headings, lines of text cells) of the table, best pixel AP first."""
    others = [row["name"] for row in found["rows"] if not row["seeds"]]
    headings = ["task / equalise / localiser / confidence", "seeds", "pixel AP", "image AUROC"]
    headings += ["minus plain", *(f"minus {name}" for name in others)]
    headings += ["planted AP", "null", "leak", "ECE", "AURC", "error AUROC", "minutes"]
    lines = []
    for row in sorted(found["rows"], key=lambda row: -_or_least(row["pixel.ap"]["value"])):
        against = row.get("against", {})
        plain = next((one for name, one in against.items() if name not in others), None)
        line = [row["name"], str(len(row["seeds"]) or ""), _interval(row["pixel.ap"])]
        line += [_interval(row["image.auroc"]), _difference(plain)]
        line += [_difference(against.get(name)) for name in others]
        line += [_number(row.get("planted_ap"))]
        line += [", ".join(f"{value:.2f}" for value in row.get("null_auroc", []))]
        line += [_number(row.get("leak"))]
        line += [_number(row["confidence"].get(name)) for name in ("ece", "aurc", "error_auroc")]
        line += [_number(row["seconds"] / 60) if "seconds" in row else ""]
        lines.append(line)
    return headings, lines


def facts(found):
    """Sentences about data, plan and cost."""
    plan, data = found["plan"], found["data"]
    base = plan["study"]
    stamp = f" [{data['stamp']}]" if data["stamp"] else ""
    return [
        f"{data['name']}{stamp}: {data['num_train']} images for training, {data['num_test']} test "
        f"cases, share of abnormal pixels {_number(data['prevalence'])}.",
        f"{base['num_steps']} steps at {base['image_size']} x {base['image_size']}, batch "
        f"{base['batch_size']}; {found['num_done']} of {found['num_cells']} cells done, "
        f"{found['seconds'] / 60:.0f} minutes in all.",
        f"Planned {plan['written']} at commit {plan['git_commit']}; primary metric "
        f"{plan['primary_metric']}. {plan['rule_for_the_best']}",
        HOW_TO_READ,
    ]


def markdown(found):
    """The page as Markdown."""
    headings, lines = columns(found)
    rows = [headings, ["---"] * len(headings), *lines]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return "\n\n".join(["# Study", *facts(found), table]) + "\n"


def write_page(path, found):
    """The same as one HTML file that opens offline and runs no script."""
    headings, lines = columns(found)
    page = template("study.html.jinja").render(
        name=found["data"]["name"],
        stamp=found["data"]["stamp"],
        facts=facts(found),
        headings=headings,
        lines=lines,
    )
    files.write_text(Path(path), page)


def _or_least(value):
    return value if value == value else -1.0


def _number(value):
    return "" if value is None or value != value else f"{value:.3g}"


def _interval(one):
    return f"{_number(one['value'])} [{_number(one['ci95'][0])}, {_number(one['ci95'][1])}]"


def _difference(one):
    if one is None or one["value"] != one["value"]:
        return ""
    low, high = one["ci95"]
    return f"{one['value']:+.3f} [{low:+.3f}, {high:+.3f}], p = {one['p_holm']:.2g}"
