"""The chat page in headless Chromium. Screenshots are left in OSDN_SCREENSHOTS, where that is set."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from harness import PATIENCE, Client, wait_until
from playwright.sync_api import Page, expect, sync_playwright

STATES = "/osdn/v1/states"


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium",
                                             args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


class Chat:
    """A page with nothing stored, and what a person does with it."""

    def __init__(self, browser, server, **context) -> None:
        self.server = server
        self.origin = f"http://{server.http_address}"
        self.context = browser.new_context(**context)
        self.context.set_default_timeout(PATIENCE * 1000)
        self.page: Page = self.context.new_page()
        self.complaints: list[str] = []  # of the browser: policy violations, script errors
        self.page.on("console", lambda m: m.type == "error" and self.complaints.append(m.text))
        self.page.on("pageerror", lambda e: self.complaints.append(str(e)))
        self.page.goto(self.origin)
        expect(self.page.locator("#model")).to_have_text("osdn-mini")

    def set(self, **values) -> Chat:
        opener = self.page.locator("#panel")
        if opener.is_visible():
            opener.click()
        for name, value in values.items():
            self.page.locator(f"#sampling [name={name}]").fill(str(value))
        if opener.is_visible():
            opener.click()
        return self

    def type(self, text: str) -> None:
        self.page.locator("#prompt").fill(text)
        self.page.keyboard.press("Enter")

    def say(self, text: str) -> str:
        before = self.page.locator(".assistant").count()
        self.type(text)
        expect(self.page.locator("#send")).to_be_visible()
        expect(self.page.locator(".assistant")).to_have_count(before + 1)
        return self.answers()[-1]

    def answers(self) -> list[str]:
        return self.page.locator(".assistant .body").all_inner_texts()

    def number(self, name: str) -> float:
        return float(re.match(r"[\d.]+", self.page.locator(f"#{name}").inner_text()).group())

    def states(self) -> list[dict]:
        return self.context.request.get(self.origin + STATES).json()["data"]

    def shoot(self, name: str) -> None:
        folder = os.environ.get("OSDN_SCREENSHOTS")
        if folder:
            self.page.screenshot(path=str(Path(folder) / f"{name}.png"))


@pytest.fixture
def chat(browser, bundled_server):
    opened: list[Chat] = []

    def open_page(**context) -> Chat:
        opened.append(Chat(browser, bundled_server, **context))
        return opened[-1]

    yield open_page
    for page in opened:
        page.context.close()


def test_a_conversation(chat):
    page = chat(color_scheme="light").set(temperature=0, max_tokens=40)
    page.say("My locker number is 4817.")
    first = page.number("position")
    assert "4817" in page.say("What is my locker number?")
    # The second message alone was read: the state holds the rest.
    assert page.number("cached") >= first > 10
    assert page.number("prompt-tokens") < page.number("cached") + 30
    assert page.number("speed") > 0 and page.number("state-bytes") > 100
    assert "median" in page.page.locator("#plot").get_attribute("aria-label")
    page.shoot("light")
    assert len(page.states()) >= 2

    # Undo goes back to the state before; what was undone is not remembered.
    page.page.locator("#undo").click()
    assert len(page.answers()) == 1 and page.number("position") == first
    page.say("What is my locker number?")
    assert page.number("cached") >= first

    # Edit and resend: from the first message on.
    page.page.get_by_role("button", name="Edit").first.click()
    assert page.answers() == []
    assert page.page.locator("#prompt").input_value() == "My locker number is 4817."
    page.page.locator("#prompt").fill("My locker number is 2650.")
    page.page.keyboard.press("Enter")
    expect(page.page.locator("#send")).to_be_visible()
    assert "2650" in page.say("What is my locker number?")
    assert page.complaints == []


def test_fork_resume_and_reload(chat):
    page = chat().set(temperature=0, max_tokens=40)
    page.say("My locker number is 4817.")
    page.say("Tell me a story.")
    page.page.get_by_role("button", name="Fork").first.click()
    expect(page.page.locator("#sessions li")).to_have_count(2)
    assert len(page.answers()) == 1
    assert "4817" in page.say("What is my locker number?")

    # After a reload all is there, and goes on from its states.
    page.page.reload()
    expect(page.page.locator(".assistant")).to_have_count(2)
    page.page.locator("#sessions .open").nth(1).click()
    assert len(page.answers()) == 2
    assert "4817" in page.say("What is my locker number?")
    assert page.number("cached") > 20

    # A state by its id, and one that is not there.
    state = page.states()[0]["state_id"]
    page.page.locator("#resume-id").fill(state)
    page.page.get_by_role("button", name="Resume").click()
    expect(page.page.locator("#messages")).to_contain_text(state)
    page.say("Go on.")
    page.page.locator("#resume-id").fill("no-such-state")
    page.page.get_by_role("button", name="Resume").click()
    expect(page.page.get_by_role("alert")).to_contain_text("no-such-state")

    # Deleting a conversation deletes its states; a state that is gone costs a reading, no more.
    held = len(page.states())
    page.page.get_by_role("button", name=re.compile("^Delete")).first.click()
    wait_until(lambda: len(page.states()) < held, "states were deleted")


def test_a_state_that_is_gone_is_read_again(chat):
    page = chat().set(temperature=0, max_tokens=40)
    page.say("My locker number is 4817.")
    for state in page.states():
        page.context.request.delete(f"{page.origin}{STATES}/{state['state_id']}")
    assert "4817" in page.say("What is my locker number?")
    expect(page.page.locator(".note").last).to_contain_text("read again")


def test_stop_frees_the_slot_and_the_chat_goes_on(chat, bundled_server):
    page = chat(color_scheme="dark", viewport={"width": 390, "height": 780}, has_touch=True)
    page.set(max_tokens=30000, temperature=1)
    client = Client(bundled_server.channel())

    def running() -> int:
        return client.stub.GetCapacity(client.pb.GetCapacityRequest()).running

    # The model would end its story; one that goes on until it is stopped is what is wanted here.
    page.page.route("**/v1/chat/completions", lambda route: route.continue_(
        post_data=route.request.post_data.replace('"stream":true',
                                                  '"stream":true,"ignore_eos":true')))
    page.type("Tell me a story.")
    expect(page.page.locator("#stop")).to_be_visible()
    wait_until(lambda: page.answers()[-1], "some text")
    assert running() == 1
    page.shoot("phone-dark")
    page.page.keyboard.press("Escape")
    wait_until(lambda: running() == 0, "the slot is free")
    expect(page.page.locator(".note").last).to_have_text("stopped")
    page.page.unroute_all()
    page.set(max_tokens=20)
    assert page.say("Go on.")
    # The panel has the phone's whole screen.
    page.page.locator("#panel").click()
    expect(page.page.locator("#plot")).to_be_visible()
    expect(page.page.locator("#log")).to_be_hidden()
    page.shoot("phone-panel")
    assert page.complaints == []


def test_errors_are_shown(chat):
    page = chat().set(top_p=7)
    page.type("Hello.")
    alert = page.page.get_by_role("alert")
    expect(alert).to_contain_text("top_p")
    page.shoot("error")
    assert page.page.locator("#prompt").input_value() == "Hello."  # nothing typed is lost
    page.page.get_by_role("button", name="Dismiss this message").click()
    expect(alert).to_be_hidden()
    page.context.set_offline(True)
    page.set(top_p=0.9)
    page.type("Hello.")
    expect(alert).to_contain_text("cannot be reached")


def test_nothing_from_elsewhere(chat, bundled_server):
    page = chat()
    response = page.context.request.get(page.origin)
    policy = response.headers["content-security-policy"]
    assert "unsafe" not in policy and "default-src 'none'" in policy
    text = response.text()
    assert not re.search(r"(src|href)=[\"'](?!data:)", text) and "http://" not in text
    # What a model or a user writes is text, never markup.
    page.set(max_tokens=1)
    page.say("<img src=x onerror=alert(1)><script>alert(1)</script>")
    assert page.page.locator("#messages img, #messages script").count() == 0
