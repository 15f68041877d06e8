"""The chat page: in a real browser, headless, against a real server that asks for a key."""

import os
import shutil
import string
import threading
import urllib.request
from urllib.error import HTTPError

import numpy as np
import openai
import pytest
from selenium import webdriver
from selenium.webdriver import Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from jaxfusion.generation import engine
from jaxfusion.generation.decode import BLOCK
from tests.serving.running import data_url, png, saved, serving

KEY = "secret"
MANY = 1000  # blocks, more than all answers have
PICTURE = np.random.default_rng(5).integers(0, 256, (8, 8, 3), np.uint8)
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # which root has to do without
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-proxy-server",
)
HAND_OVER = """
    const [name, kind, data] = arguments, bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    const files = new DataTransfer(), settings = {bubbles: true, cancelable: true};
    files.items.add(new File([bytes], name, {type: "image/png"}));
    document.body.dispatchEvent(kind === "paste"
        ? new ClipboardEvent(kind, {clipboardData: files, ...settings})
        : new DragEvent(kind, {dataTransfer: files, ...settings}));
"""
# Pictures are read no further until letGo.
HOLD = """
    const read = createImageBitmap, held = [];
    window.createImageBitmap = (file) => new Promise((go) => held.push(go)).then(() => read(file));
    window.letGo = () => held.splice(0).forEach((go) => go());
"""


@pytest.fixture(scope="module")
def running(tiny):
    """What it says are letters and nothing else, and as many as it may."""
    model, params = tiny
    letters = np.array(model.tokenizer.encode(string.ascii_lowercase))
    text = params["text_embedding"]
    table = np.zeros(text["embedding"].shape, np.float32)
    table[letters] = text["embedding"][letters]
    with serving(model, params | {"text_embedding": text | {"embedding": table}}, api_keys=(KEY,)) as running:
        yield running


@pytest.fixture(scope="module")
def chromium():
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (browser and driver):
        why = "NO BROWSER, so nobody has seen the chat page work: apt-get install chromium chromium-driver"
        (pytest.fail if "CI" in os.environ else pytest.skip)(why)
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options, webdriver.ChromeService(driver)) as chromium:
        yield chromium


class Page:
    """As a person sees it."""

    def __init__(self, browser: webdriver.Chrome, url: str) -> None:
        self.browser = browser
        browser.get(url)

    def one(self, name: str):
        return self.browser.find_element(By.CSS_SELECTOR, name)

    def all(self, name: str) -> list:
        return self.browser.find_elements(By.CSS_SELECTOR, name)

    def texts(self, name: str) -> list[str]:
        return [element.text for element in self.all(name)]

    def until(self, condition):
        return WebDriverWait(self.browser, 20, 0.05).until(lambda _: condition())

    def give_key(self, key: str) -> None:
        self.one("#key").clear()
        self.one("#key").send_keys(key, Keys.ENTER)

    def ask(self, words: str) -> None:
        self.one("#words").send_keys(words, Keys.ENTER)

    def end(self) -> str:
        """What the last answer says when it has ended."""
        self.until(lambda: self.all(".answer") and not self.all(".growing"))
        return self.texts(".answer .said")[-1]

    def hand_over(self, name: str, how: str, data: bytes) -> None:
        self.browser.execute_script(HAND_OVER, name, how, data_url(data).partition(",")[2])


@pytest.fixture
def page(chromium, running):
    page = Page(chromium, running.url)
    page.until(lambda: page.one("#gate").is_displayed() or page.one("h1").text == "tiny")
    if page.one("#gate").is_displayed():
        page.give_key(KEY)
        page.until(lambda: page.one("h1").text == "tiny")
    yield page
    told = [entry["message"] for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"]
    assert [text for text in told if "status of 40" not in text] == []
    names = chromium.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert names and all(name.startswith((running.url, "data:")) for name in names)


@pytest.fixture
def leave(monkeypatch):
    """What the engine takes one of before each block of tokens, so that no answer ends before it has been looked at."""
    leave, decode_block = threading.Semaphore(0), engine.decode_block

    def held(*args, **settings):
        leave.acquire(timeout=30)
        return decode_block(*args, **settings)

    monkeypatch.setattr(engine, "decode_block", held)
    yield leave
    leave.release(MANY)


def numbers(running) -> dict[str, float]:
    lines = urllib.request.urlopen(f"{running.url}/metrics").read().decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def test_it_asks_for_the_servers_key_and_keeps_it(chromium, running):
    page = Page(chromium, running.url)
    chromium.execute_script("sessionStorage.clear()")
    page = Page(chromium, running.url)
    page.until(page.one("#gate").is_displayed)
    page.give_key("wrong")
    page.until(lambda: page.one("#refusal").text == "The server knows no such key.")
    page.give_key(KEY)
    page.until(lambda: page.one("h1").text == "tiny" and not page.one("#gate").is_displayed())
    page = Page(chromium, running.url)
    page.until(lambda: page.one("h1").text == "tiny")


def test_an_answer_streams_and_a_second_question_finds_the_picture_read(page, running, leave, tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(png(PICTURE))
    before = numbers(running)
    page.one("#files").send_keys(str(path))
    page.until(lambda: len(page.all("#pictures img")) == 1)
    page.ask("what is it?")
    grown = []
    for count in (1 + BLOCK, 1 + 2 * BLOCK):
        leave.release()
        page.until(lambda count=count: len(page.one(".growing .said").text) == count)
        grown.append(page.one(".growing .said").text)
    leave.release(MANY)
    first = page.end()
    assert first.startswith(grown[1]) and grown[1].startswith(grown[0])
    assert len(first) == 64 and not page.all("#pictures img")

    between = numbers(running)
    page.one("#words").send_keys("and where?")
    page.one("#send").click()
    second = page.end()
    after = numbers(running)
    assert page.texts(".question .said") == ["what is it?", "and where?"]
    assert page.texts(".answer .said") == [first, second]
    assert len(page.all(".question img")) == 1 and page.one(".question img").get_property("naturalWidth") == 8
    for speed in page.texts(".speed"):
        assert " tokens · " in speed and " tokens/s · first after " in speed
    told = page.texts(".speed")[0]
    assert told.startswith("64 tokens · ") and told.endswith(" · at the length limit")

    name = "jaxfusion_prefix_{}_total".format
    assert before[name("misses")] < between[name("misses")] and before[name("hits")] == between[name("hits")]
    assert after[name("hits")] > between[name("hits")]
    kept = after[name("positions")] - between[name("positions")]
    assert kept >= 1 + running.model.config.tokens_per_image  # <bos> and the picture

    image = {"type": "image_url", "image_url": {"url": data_url(png(PICTURE))}}
    talk = [{"role": "user", "content": [image, {"type": "text", "text": "what is it?"}]}]
    talk += [{"role": "assistant", "content": first}, {"role": "user", "content": "and where?"}]
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key=KEY, max_retries=0) as client:
        for messages, said in ((talk[:1], first), (talk, second)):
            reply = client.chat.completions.create(model="tiny", messages=messages)
            assert reply.choices[0].message.content == said


def test_an_answer_is_stopped_and_a_conversation_begun_anew(page, running, leave):
    def ask_and_see_a_block(words):
        page.ask(words)
        leave.release()
        return page.until(lambda: page.one(".growing .said").text)

    def is_given_up(count):
        """So many tokens, while the next block is not there yet; then the row is free."""
        page.until(lambda: numbers(running)["jaxfusion_answer_tokens_total"] - before == count)
        leave.release()
        page.until(lambda: numbers(running)["jaxfusion_rows_busy"] == 0)

    before, markup = numbers(running)["jaxfusion_answer_tokens_total"], "<img src=x>"
    said = ask_and_see_a_block(markup)
    page.one("#stop").click()
    assert page.end() == said and page.one(".speed").text.startswith(f"{len(said)} tokens · ")
    assert page.one(".speed").text.endswith(" · stopped")
    is_given_up(len(said))
    assert page.texts(".question .said") == [markup] and not page.all("#log img")

    page.one("#anew").click()
    more = ask_and_see_a_block("what is it?")
    page.one("#anew").click()
    assert not page.all("article") and page.one("#hint").is_displayed() and not page.one("#stop").is_displayed()
    is_given_up(len(said) + len(more))
    assert not page.all("article")


def test_pictures_are_pasted_and_dropped_and_what_the_server_refuses_can_be_mended(page):
    page.hand_over("a.png", "paste", png(PICTURE))
    page.until(lambda: len(page.all("#pictures img")) == 1)
    page.hand_over("b.png", "drop", b"no picture")
    page.until(lambda: page.one("#trouble").text == "b.png is no picture that this browser can read.")
    for number in range(2, 6):
        page.hand_over("c.png", "drop", png(PICTURE))
        page.until(lambda count=number: len(page.all("#pictures img")) == count)
    page.ask("how many?")
    page.until(lambda: page.one("#trouble").text == "messages: 5 pictures, and 4 are allowed")
    assert not page.all("article") and page.one("#words").get_property("value") == "how many?"
    page.one(".remove").click()
    page.one("#send").click()
    assert page.end() and not page.one("#trouble").is_displayed() and len(page.all(".question img")) == 4


def test_a_question_waits_for_its_pictures_and_none_of_them_gets_into_a_new_conversation(page):
    page.browser.execute_script(HOLD)
    page.hand_over("a.png", "paste", png(PICTURE))
    page.ask("what is it?")
    assert not page.all("article") and not page.one("#send").is_enabled()
    page.browser.execute_script("letGo()")
    assert len(page.end()) == 64 and len(page.all(".question img")) == 1

    page.hand_over("b.png", "drop", b"no picture")
    page.ask("and this?")
    page.browser.execute_script("letGo()")
    page.until(lambda: page.one("#trouble").text == "b.png is no picture that this browser can read.")
    assert page.texts(".question .said") == ["what is it?"] and page.one("#send").is_enabled()
    assert page.one("#words").get_property("value") == "and this?"

    page.hand_over("c.png", "paste", png(PICTURE))
    page.one("#anew").click()
    page.hand_over("d.png", "paste", png(PICTURE[:4]))
    page.browser.execute_script("letGo()")
    (picture,) = page.until(lambda: page.all("#pictures img"))
    page.until(lambda: picture.get_property("naturalHeight") == 4)
    assert page.one("#send").is_enabled() and not page.all("article")


def test_a_large_picture_is_drawn_smaller(page):
    """Of a kind that the server does not read, and with more pixels than it takes."""
    page.hand_over("large.bmp", "drop", saved(np.zeros((420, 2500, 3), np.uint8), "BMP"))
    page.until(lambda: page.all("#pictures img"))
    picture = page.one("#pictures img")
    page.until(lambda: picture.get_property("naturalWidth") == 2048 and picture.get_property("naturalHeight") == 344)
    page.ask("what is it?")
    assert len(page.end()) == 64


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_it_fits_a_phone_and_a_desk(page, width, scheme):
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    page.hand_over("wide.png", "paste", png(np.full((20, 900, 3), 90, np.uint8)))
    page.until(lambda: page.all("#pictures img"))
    page.ask("long" * 20)
    page.end()
    root = "document.documentElement"
    assert page.browser.execute_script(f"return [innerWidth, {root}.scrollWidth, {root}.scrollHeight]") == [
        width,
        width,
        800,
    ]
    paper = page.one("body").value_of_css_property("background-color")
    assert paper == {"dark": "rgba(15, 17, 21, 1)", "light": "rgba(246, 246, 243, 1)"}[scheme]
    for name in ("#add", "#send", "#anew", "#words"):
        box = page.one(name).rect
        assert box["x"] >= 0 and box["x"] + box["width"] <= width and box["y"] + box["height"] <= 800
        assert box["height"] >= 40


def test_its_files_come_with_a_policy_and_no_others_come(running):
    for path, kind in (("/", "text/html"), ("/static/chat.js", "text/javascript"), ("/static/chat.css", "text/css")):
        with urllib.request.urlopen(running.url + path) as answer:
            assert answer.headers["Content-Type"].startswith(kind)
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            policy = answer.headers["Content-Security-Policy"].split("; ")
        assert "default-src 'none'" in policy and "script-src 'self'" in policy and "trusted-types 'none'" in policy
        assert "unsafe" not in str(policy)
    for path in ("/static/", "/static/index.html", "/static/page.py", "/static/%2e%2e/app.py"):
        with pytest.raises(HTTPError, match="404"):
            urllib.request.urlopen(running.url + path)
