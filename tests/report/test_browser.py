"""The report in a real browser: slices move, layers toggle, the gallery sorts, no name is run."""

import base64
import contextlib
import dataclasses
import json
import shutil

import cv2
import matplotlib
import numpy as np
import pytest
from made_up_report import (
    make_cards,
    make_curves,
    make_gallery,
    make_history,
    make_results,
    make_volume_card,
)

from caal_jax.data.phantom import phantom_dataset
from caal_jax.evaluate import evaluate
from caal_jax.localise import read_config
from caal_jax.report import write_report

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on PATH")

HOSTILE = (
    "<script>document.title='run'</script>",
    '"><img src=x onerror="document.title=1">',
    "' autofocus onfocus='document.title=2",
    "</script><script>document.title='run'</script>",
    "<!-- <script>",
    "n" * 3000,
)


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        chromium = playwright.chromium.launch(executable_path=BROWSER, args=options)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    hostile = [
        dataclasses.replace(make_volume_card(name, score=0.3, error=0.3), kind=name)
        for name in HOSTILE
    ]
    return write_report(
        tmp_path_factory.mktemp("run"),
        results=make_results(),
        curves=make_curves(),
        history=make_history(),
        gallery=make_gallery(),
        cards=[*make_cards(), *hostile],
    )


@contextlib.contextmanager
def opened(browser, path):
    """The open page; fails afterwards if it complained or asked for anything but itself."""
    page = browser.new_page(viewport={"width": 1000, "height": 1200})
    messages, requests = [], []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_selector("#viewer:not([hidden])")
    yield page
    page.close()
    assert messages == []
    assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]


@pytest.fixture
def page(browser, path):
    with opened(browser, path) as page:
        yield page


def test_the_report_of_an_evaluation_opens(browser, untrained_run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(untrained_run, workdir)
    facts = json.loads((workdir / "training.json").read_text())
    (workdir / "training.json").write_text(json.dumps(facts | {"notes": []}))
    dataset = phantom_dataset(
        region="brain", size=32, num_train=2, num_validation=2, num_test=3, seed=3
    )
    config = read_config(workdir)
    config.num_resamples = 5
    evaluate(config, workdir, dataset)
    with opened(browser, workdir / "report.html") as page:
        assert sorted(names_shown(page)) == sorted(entry.case_id for entry in dataset.test)


def slice_shown(page):
    return page.text_content("[data-part=slice]")


def names_shown(page):
    cards = page.locator("#gallery > li:not([hidden])")
    return cards.evaluate_all("cards => cards.map(card => card.dataset.name)")


def choose(page, name):
    page.click(f"#gallery li[data-name='{name}'] button")
    page.wait_for_function(
        "name => document.querySelector('[data-part=name]').textContent === name", arg=name
    )


def pixel(page, x=0.5, y=0.5):
    """[r, g, b] of the viewer's canvas at a share of its width and height."""
    code = page.evaluate("document.querySelector('[data-part=canvas]').toDataURL()")
    data = np.frombuffer(base64.b64decode(code.partition(",")[2]), np.uint8)
    picture = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
    height, width = picture.shape[:2]
    return picture[int(y * height), int(x * width)].tolist()


def test_slices_move_by_key_wheel_slider_and_drag(page):
    choose(page, "brain-001")
    assert slice_shown(page) == "Slice 5 of 6"
    bright = pixel(page, 0.9, 0.9)[0]
    page.keyboard.press("ArrowDown")
    assert slice_shown(page) == "Slice 4 of 6"
    # Slice s of the made-up volume is brighter than slice s - 1, by 0.16 of 255.
    assert bright - pixel(page, 0.9, 0.9)[0] == pytest.approx(41, abs=4)
    page.keyboard.press("Home")
    page.keyboard.press("ArrowLeft")
    assert slice_shown(page) == "Slice 1 of 6"
    page.hover("[data-part=canvas]")
    page.mouse.wheel(0, -100)
    page.wait_for_function(
        "document.querySelector('[data-part=slice]').textContent.includes('2 of')"
    )
    page.locator("[data-part=slider]").fill("5")
    assert slice_shown(page) == "Slice 6 of 6"
    box = page.locator("[data-part=canvas]").bounding_box()
    page.mouse.move(box["x"] + 50, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 50, box["y"] + 50 + 12)
    page.mouse.up()
    assert slice_shown(page) == "Slice 4 of 6"
    page.mouse.move(box["x"] + 50, box["y"] + 200)
    assert slice_shown(page) == "Slice 4 of 6"


def test_layers_toggle_and_keep_their_fixed_colours(page):
    choose(page, "brain-001")
    inside = 12 / 32, 12 / 32  # the middle of the truth
    both = pixel(page, *inside)
    page.keyboard.press("a")
    grey = pixel(page, *inside)
    assert grey[0] == grey[1] == grey[2] == pytest.approx(255 * 0.74, abs=3)
    assert both != grey
    page.keyboard.press("a")
    page.keyboard.press("i")
    # An anomaly of 0.9 in inferno, without an image below.
    inferno = [int(c) for c in matplotlib.colormaps["inferno"](round(0.9 * 255), bytes=True)[:3]]
    assert pixel(page, *inside) == pytest.approx(inferno, abs=12)
    page.keyboard.press("a")
    assert pixel(page, *inside) == [0, 0, 0]
    page.keyboard.press("u")
    assert max(pixel(page, *inside)) > 100
    edge = 8 / 32, 12 / 32
    assert pixel(page, *edge) == pytest.approx([255, 176, 0], abs=12)
    page.uncheck("[data-layer=truth]")
    assert pixel(page, *edge) != pytest.approx([255, 176, 0], abs=12)


def test_the_gallery_sorts_and_filters(page):
    made_up = ["brain-001", "brain-002", "brain-003"]

    def order():
        return [name for name in names_shown(page) if name in made_up]

    assert order() == ["brain-001", "brain-003", "brain-002"]  # by error
    page.select_option("#sort", "score")
    assert order() == ["brain-002", "brain-003", "brain-001"]
    page.select_option("#sort", "uncertainty")
    assert order() == ["brain-002", "brain-003", "brain-001"]
    page.select_option("#sort", "name")
    assert order() == made_up
    page.select_option("#filter", "wrong")
    assert names_shown(page) == ["brain-003"]
    assert page.text_content("#count") == "1 of 9 shown"
    page.select_option("#filter", "")
    choose(page, "brain-001")
    page.keyboard.press("n")
    page.wait_for_function("document.querySelector('[data-part=name]').textContent === 'brain-002'")


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_hostile_names_are_shown_and_not_run(page, number):
    title = page.title()
    page.locator("#gallery li button", has_text=HOSTILE[number][:40]).first.click()
    page.wait_for_function(
        "name => document.querySelector('[data-part=name]').textContent === name",
        arg=HOSTILE[number],
    )
    assert HOSTILE[number] in page.text_content("[data-part=facts]")
    assert page.title() == title
    assert page.evaluate("document.documentElement.scrollWidth") <= 1000


def test_a_phone_and_paper_hold_the_page(page):
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.emulate_media(media="print")
    assert not page.is_visible("#viewer")
    assert page.is_visible("#gallery img >> nth=0")


def test_the_policy_lets_no_other_script_run(browser, path):
    page = browser.new_page()
    messages = []
    page.on("console", lambda message: messages.append(message.text))
    source = path.read_text().replace("</body>", "<script>document.title='run'</script></body>")
    page.set_content(source)
    assert page.title() != "run"
    assert any("Content Security Policy" in message for message in messages)
    page.close()
