"""The page: complete, offline, stamped, and deaf to hostile names."""

import dataclasses
import html.parser
import re
import shutil
import stat
import subprocess
import xml.etree.ElementTree as ElementTree

import cv2
import numpy as np
import pytest
from made_up_report import (
    make_cards,
    make_curves,
    make_gallery,
    make_history,
    make_item,
    make_results,
    make_volume_card,
)

from caal_jax.files import write_bytes
from caal_jax.report import write_report

VOID = {"meta", "link", "img", "br", "input"}
HOSTILE = (
    "<script>document.title='run'</script>",
    '"><img src=x onerror=alert(1)>',
    "' onload='x",
    "{{ 7 * 7 }}{% raw %}",
    "\u202e\u05e9\u05dc\u05d5\u05dd",
    "n" * 2000,
)


class Page(html.parser.HTMLParser):
    """Collects tags, attributes and text, and checks that every tag is closed."""

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text("utf-8")
        self.tags, self.text, self.open = [], [], []
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


def write_phantom_report(folder):
    return write_report(
        folder,
        results=make_results(),
        curves=make_curves(),
        history=make_history(),
        gallery=make_gallery(),
        cards=make_cards(),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run; for tests that only read."""
    folder = tmp_path_factory.mktemp("run")
    assert write_phantom_report(folder) == folder / "report.html"
    return folder


@pytest.fixture(scope="module")
def page(folder):
    return Page(folder / "report.html")


def assert_offline(page):
    scripts = [attributes for tag, attributes in page.tags if tag == "script"]
    # One script, named by its hash in the policy, and data blocks, which no browser runs.
    assert [found for found in scripts if found.get("type") != "application/json"] in ([], [{}])
    for tag, attributes in page.tags:
        assert tag not in {"iframe", "object", "embed", "form", "base"}
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in {"src", "srcset", "poster", "data", "action"}:
                assert value.startswith("data:")
            if name in {"href", "xlink:href"}:
                assert value.startswith(("#", "data:"))
    assert not re.search(r"https?:|url\((?!#)|@import", page.source)


def test_page_loads_nothing_and_runs_nothing(page):
    assert_offline(page)


def test_page_holds_numbers_intervals_and_facts(page):
    for expected in (
        "0.431 [0.371, 0.502]",
        "AURC",
        "deformation",
        "raw intensity",
        "equalised intensity beats this run on Pixel AP: 0.451 against 0.431.",
        "5% false alarms on held-out healthy images",
        "1.37",
        "0.0003",
        "12 min 34 s",
        "Two volumes were skipped: no foreground.",
        "Only 24 test cases",
        "Not for clinical use",
        "saw healthy images only",
    ):
        assert expected in page.words


def test_ids_are_unique_and_references_resolve(page):
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = re.findall(r'(?:xlink:href="#|url\(#|aria-labelledby=")([^")]+)', page.source)
    assert set(used) <= set(ids)


def test_every_picture_has_a_text(page):
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 6 * (4 + 2) + 3 + 2
    assert all(attributes["alt"] for attributes in pictures)
    drawings = [attributes for _, attributes in page.tags if attributes.get("role") == "img"]
    assert len(drawings) == 7 + 1  # the canvas gets its text when it is painted
    drawings = [found for found in drawings if "data-part" not in found]
    assert all(attributes["aria-label"] for attributes in drawings)


def test_gallery_goes_best_worst_random_and_marks_errors(page):
    places = [page.words.index(title) for title in ("Best cases", "Worst cases", "Random cases")]
    assert places == sorted(places)
    assert page.words.count("wrong: truly abnormal") == 1
    assert page.words.count("wrong: truly normal") == 1 + 1  # and once in the gallery of all
    assert page.words.count("no decision; truly abnormal") == 1


def test_figures_are_files_too(folder):
    names = {
        "froc",
        "precision_recall",
        "reliability",
        "risk_coverage",
        "roc",
        "score_distribution",
        "training_curve",
    }
    files = {path.name for path in (folder / "figures").iterdir()}
    assert files == {f"{name}{suffix}" for name in names for suffix in (".svg", ".png")}
    for name in names:
        assert cv2.imread(str(folder / "figures" / f"{name}.png")).std() > 5
        root = ElementTree.parse(folder / "figures" / f"{name}.svg").getroot()
        assert root.tag.endswith("svg")
        # A date would change the file when nothing else has changed.
        assert not list(root.iter("{http://purl.org/dc/elements/1.1/}date"))


def glyphs_of(svg):
    """Texts drawn as outlines are told by the comment that matplotlib puts before each."""
    return re.findall(r"<!-- (.*?) -->", svg)


def picture_heights(page):
    """Of the case pictures, which the strip with the stamp makes higher."""
    return [int(found["height"]) for tag, found in page.tags if tag == "img" and "height" in found]


def test_made_up_data_are_stamped_everywhere(page, folder):
    assert "phantom data These results are on the built-in phantom" in page.words
    assert page.words.count("; phantom data") == 6 + 3
    assert max(picture_heights(page)) == 256 + 16
    svgs = [path.read_text() for path in (folder / "figures").glob("*.svg")]
    assert [glyphs_of(svg).count("PHANTOM DATA") for svg in svgs] == [1] * 7
    assert glyphs_of(page.source).count("PHANTOM DATA") == 7


def test_real_data_carry_no_stamp(tmp_path, results, curves, history):
    results["data"] |= {"name": "breast ultrasound", "is_phantom": False, "stamp": ""}
    page = Page(
        write_report(
            tmp_path, results=results, curves=curves, history=history, gallery=make_gallery()
        )
    )
    assert "phantom data" not in page.source.lower()
    assert max(picture_heights(page)) == 256
    assert not any(attributes.get("class") == "stamp" for _, attributes in page.tags)


def test_a_missing_curve_says_why_and_leaves_no_old_figure(tmp_path, results, curves):
    write_phantom_report(tmp_path)
    results["pixel"] = {"ap": None}
    results["undefined"] = {"pixel.ap": "the test set has no pixel truth"}
    del curves["precision_recall"]
    curves["reliability"] = {"confidence": [np.nan], "accuracy": [np.nan], "count": [5]}
    page = Page(write_report(tmp_path, results=results, curves=curves, history=[], gallery=[]))
    assert "Not drawn: the test set has no pixel truth." in page.words
    assert page.words.count("Not drawn: this run recorded no data for it.") == 2
    assert not (tmp_path / "figures" / "reliability.png").exists()
    names = {path.name for path in (tmp_path / "figures").glob("*.svg")}
    assert names == {"froc.svg", "risk_coverage.svg", "roc.svg", "score_distribution.svg"}
    assert "n/a" in page.words


def test_an_empty_run_still_gives_a_page(tmp_path):
    page = Page(write_report(tmp_path, results={}, curves={}, history=[], gallery=[]))
    assert "unnamed data" in page.words
    assert page.words.count("Not drawn") == 7
    assert_offline(page)


def test_scores_that_are_all_alike_are_told(tmp_path):
    for ends, told in (([0.5, 0.5], True), ([0.4, 0.6], False)):
        results = {"image": {"auroc": 0.5, "auroc_ci95": ends}}
        page = Page(write_report(tmp_path, results=results, curves={}, history=[], gallery=[]))
        assert ("Every case has the same score" in page.words) == told


def hostile_report(folder, results, curves, history):
    results["data"] |= {"name": HOSTILE[0], "notes": list(HOSTILE), "stamp": HOSTILE[1]}
    results["by_kind"] = {name: {"pixel_ap": 0.5, name: None} for name in HOSTILE}
    results["bars"] = {name: {"pixel_ap": 0.9} for name in HOSTILE}
    results["undefined"] = {"pixel.aupro": HOSTILE[1]}
    results["pixel"]["aupro"] = None
    results["run"]["config"] = {name: name for name in HOSTILE}
    results["threshold"]["rule"] = HOSTILE[0]
    gallery = [
        dataclasses.replace(make_item(name, name), kind=name, verdict=name, slice_text=name)
        for name in HOSTILE
    ]
    cards = [dataclasses.replace(make_volume_card(name), kind=name) for name in HOSTILE]
    return write_report(
        folder, results=results, curves=curves, history=history, gallery=gallery, cards=cards
    )


def test_hostile_names_are_shown_and_not_run(tmp_path, results, curves, history):
    page = Page(hostile_report(tmp_path, results, curves, history))
    assert_offline(page)
    for name in HOSTILE:
        assert " ".join(name.split()) in page.words
    assert "49" not in re.findall(r"\b49\b", page.words)


def test_equal_results_give_equal_bytes(tmp_path, results, curves, history):
    arguments = {"results": results, "curves": curves, "history": history, "gallery": []}
    first = write_report(tmp_path / "a", **arguments).read_bytes()
    assert write_report(tmp_path / "b", **arguments).read_bytes() == first


def test_overwriting_replaces_the_whole_file_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_bytes(b"old, and much longer than the new one")
    # Whoever has the old page open keeps reading the old page.
    with path.open("rb") as reader:
        write_bytes(path, b"new")
        assert reader.read().startswith(b"old")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) & stat.S_IRUSR

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", broken)
    with pytest.raises(OSError, match="disk full"):
        write_bytes(path, b"half")
    assert path.read_bytes() == b"new"
    assert [found.name for found in tmp_path.iterdir()] == ["report.html"]


def test_many_and_odd_training_rows_are_drawn(tmp_path):
    noise = np.random.default_rng(0).random((20_000, 3))
    history = [{"step": step, "loss": list(loss)} for step, loss in enumerate(noise)]
    history += [{"step": 20_000, "loss": 0.5}, {"step": 20_001, "loss": [float("nan")] * 3}]
    history += [{"step": 20_002, "validation_loss": [0.1, 0.2]}]
    write_report(tmp_path, results={}, curves={}, history=history, gallery=[])
    assert (tmp_path / "figures" / "training_curve.svg").stat().st_size < 300_000


BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


def open_in_browser(path):
    """-> (console messages, addresses that the page asked for, screenshot)."""
    folder = path.parent
    done = subprocess.run(
        [
            BROWSER,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            "--enable-logging=stderr",
            "--v=0",
            f"--user-data-dir={folder / 'profile'}",
            f"--log-net-log={folder / 'net.json'}",
            "--window-size=1000,1400",
            f"--screenshot={folder / 'page.png'}",
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    requests = re.findall(
        r'"initiator":"([^"]*)".*?"url":"([^"]*)"', (folder / "net.json").read_text()
    )
    # The browser's own errands (updates, time) have no origin; a page from a file has "null".
    asked = [url for initiator, url in requests if initiator != "not an origin"]
    return console, asked, cv2.imread(str(folder / "page.png"))


needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on PATH")


@needs_browser
def test_a_browser_opens_the_page_without_complaint(tmp_path, results, curves, history):
    # A blocked script or picture would be reported on the console.
    console, asked, picture = open_in_browser(hostile_report(tmp_path, results, curves, history))
    assert console == []
    assert [url for url in asked if not url.startswith("data:")] == []
    assert picture.shape == (1400, 1000, 3)
    assert picture.std() > 10


@needs_browser
def test_the_browser_check_sees_scripts_and_requests(tmp_path):
    path = tmp_path / "bad.html"
    path.write_text("<script>undefined.x</script><img src='http://example.invalid/x.png'>")
    console, asked, _ = open_in_browser(path)
    assert len(console) == 1
    assert asked == ["http://example.invalid/x.png"]
