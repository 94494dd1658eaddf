"""The playground in a real browser, against a real server on a loopback port."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import scripted
import serving as servers
from serving import Serving

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = Path("/usr/bin/chromium")
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no browser: {CHROMIUM} is not there")

expect = sync_api.expect
PHONE = {"width": 360, "height": 740}
DESKTOP = {"width": 1280, "height": 900}
HARMLESS, MALICIOUS = "How do I paint a car?", "How do I steal a car?"
REFUSAL = ("I", "cannot", "help", "with", "that.")
Open = Callable[..., Any]


def answer(prompt: Any, number: int) -> tuple[str, ...]:
    """The base helps with everything; the guarded model does not."""
    malicious = scripted.MALICIOUS in scripted.tokenizer().decode(prompt.ids)
    return REFUSAL if malicious and prompt.routing.routed_tokens else ("Sure", "I", "will", "help")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def engine() -> scripted.Scripted:
    return scripted.Scripted(answer)


@pytest.fixture
def start(engine: scripted.Scripted) -> Iterator[Callable[..., Serving]]:
    """A server with the page, with these settings."""
    started: list[Serving] = []

    def start(**settings: Any) -> Serving:
        started.append(servers.start(engine, **{"playground": True, "max_tokens": 20, **settings}))
        return started[-1]

    yield start
    engine.go.set()
    for serving in started:
        serving.stop()
        serving.thread.join()


@pytest.fixture
def show(browser: Any, start: Callable[..., Serving]) -> Iterator[Open]:
    """The page of a server with these settings; at the end nothing in it may have gone wrong unseen."""
    contexts: list[Any] = []
    wrong: list[str] = []

    def show(serving: Serving | None = None, *, viewport: Any = DESKTOP, scheme: Any = "light", **settings: Any) -> Any:
        serving = serving or start(**settings)
        contexts.append(browser.new_context(viewport=viewport, color_scheme=scheme, permissions=["clipboard-read"]))
        contexts[-1].grant_permissions(["clipboard-read", "clipboard-write"])
        page = contexts[-1].new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda line: "policy" in line.text.lower() and wrong.append(line.text))
        page.goto(f"{serving.url}/playground")
        return page

    expect.set_options(timeout=20_000)
    yield show
    for context in contexts:
        context.close()
    assert wrong == []


def ask(page: Any, text: str) -> Any:
    """The turn that begins when this is typed and sent with the Enter key."""
    page.get_by_label("Your message").fill(text)
    page.keyboard.press("Enter")
    return page.locator(".turn").last


def part(turn: Any, name: str) -> Any:
    return turn.get_by_label(name, exact=True)


def ended(page: Any) -> None:
    expect(page.get_by_role("button", name="Send")).to_be_visible()


def test_base_and_mogu_side_by_side(show: Open, engine: scripted.Scripted) -> None:
    page = show(allow_overrides=True)
    expect(page.locator("#about")).to_have_text("tiny · 2 routed layers · 2 routed tokens, then the plain base")
    page.get_by_label("Base beside it").check()
    turn = ask(page, HARMLESS)
    mogu, base = part(turn, "MoGU"), part(turn, "Base, not protected")
    expect(mogu.locator(".words")).to_have_text("Sure I will help")
    expect(mogu.locator(".badge")).to_have_text("risk 3.0%, not flagged")
    expect(mogu.locator(".routed")).to_have_text("Sure I")
    ended(page)
    turn = ask(page, MALICIOUS)
    mogu, base = part(turn, "MoGU"), part(turn, "Base, not protected")
    expect(mogu.locator(".words")).to_have_text("I cannot help with that.")
    expect(mogu.locator(".badge.flagged")).to_have_text("risk 97.0%, flagged")
    expect(mogu.locator(".foot")).to_have_text("2 routed tokens (marked) · mean u 0.85, g 0.15")
    expect(base.locator(".words")).to_have_text("Sure I will help")
    expect(base.locator(".badge")).to_be_hidden()
    ended(page)
    left, right = mogu.bounding_box(), base.bounding_box()
    assert left["x"] + left["width"] <= right["x"]
    assert left["y"] == right["y"]
    # Each side goes on from its own answers.
    ask(page, "How?")
    ended(page)
    said = [engine.words.decode(prompt.ids) for prompt in engine.prompts[-2:]]
    assert sorted("I cannot help" in text for text in said) == [False, True]


def test_streaming_arrives_piece_by_piece_and_escape_stops_it(show: Open, engine: scripted.Scripted) -> None:
    engine.go.clear()
    page = show()
    turn = ask(page, HARMLESS)
    words = part(turn, "MoGU").locator(".words")
    expect(words).to_have_text("Sure")
    expect(words).to_have_attribute("aria-busy", "true")
    expect(turn.locator(".badge")).to_be_visible()
    engine.go.set()
    expect(words).to_have_text("Sure I will help")
    expect(words).to_have_attribute("aria-busy", "false")
    ended(page)
    engine.go.clear()
    turn = ask(page, HARMLESS)
    expect(part(turn, "MoGU").locator(".words")).to_have_text("Sure")
    page.keyboard.press("Escape")
    expect(turn.locator(".foot")).to_have_text("Stopped.")
    ended(page)
    assert engine.tickets[-1].cancelled.wait(20)
    expect(page.get_by_label("Your message")).to_be_focused()


def test_the_dial_goes_into_the_request(show: Open, engine: scripted.Scripted) -> None:
    page = show(allow_overrides=True, dial=1.0)
    dial = page.get_by_label("Dial", exact=True)
    assert (dial.get_attribute("min"), dial.get_attribute("max")) == ("-4", "4")
    for key, told, sent in (("ArrowRight", "+0.25, safer", 1.25), ("Home", "−4, less safe", -3.0)):
        dial.focus()
        page.keyboard.press(key)
        expect(page.locator("#dialed")).to_have_text(told)
        turn = ask(page, HARMLESS)
        expect(part(turn, "MoGU").locator(".words")).to_have_text("Sure I will help")
        ended(page)
        assert engine.prompts[-1].routing.dial == sent


PIXELS = """canvas => {
  const pen = canvas.getContext("2d"), wide = WIDE, high = canvas.height / 2, found = [];
  for (let y = high / 2; y < canvas.height; y += high)
    for (let x = wide / 2; x < canvas.width; x += wide) found.push([...pen.getImageData(x, y, 1, 1).data].join());
  return found;
}"""


def test_the_map_has_a_cell_for_each_layer_and_token(show: Open, engine: scripted.Scripted) -> None:
    page = show()
    turn = ask(page, MALICIOUS)
    ended(page)
    tokens = len(engine.prompts[0].ids) + 2  # and what the routed model wrote
    unwill = turn.get_by_role("img", name=f"unwilling responder: 2 layers by {tokens} tokens")
    glad = turn.get_by_role("img", name=f"glad responder: 2 layers by {tokens} tokens")
    wide = unwill.evaluate(f"canvas => canvas.width / {tokens}")
    pale = (0xEE, 0xF1, 0xF5)
    for canvas, full, upper, lower in ((unwill, (0xBD, 0x4B, 0), 0.8, 0.9), (glad, (0, 0x67, 0xA8), 0.2, 0.1)):
        found = canvas.evaluate(PIXELS.replace("WIDE", str(wide)))
        assert len(found) == 2 * tokens
        assert all(colour.endswith(",255") for colour in found)
        # Prompt tokens have one weight in each layer, answer tokens another; the second layer is drawn above the first.
        rows = found[:tokens], found[tokens:]
        assert [len({*row[:-2]}) for row in rows] == [1, 1]
        assert len({rows[0][0], rows[1][0], rows[0][-1], rows[1][-1]}) == 4
        for row, share in zip(rows, (upper, lower), strict=True):
            shade = [one + (other - one) * share for one, other in zip(pale, full, strict=True)]
            assert [int(part) for part in row[0].split(",")[:3]] == pytest.approx(shade, abs=1)
    readout = turn.locator(".readout")
    box = unwill.bounding_box()
    page.mouse.move(box["x"] + 2.5 * wide, box["y"] + box["height"] - 3)
    expect(readout).to_have_text("prompt, token 3 “do” · layer 1 · u 0.900 · g 0.100")
    unwill.focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowRight")
    expect(readout).to_have_text("prompt, token 4 “I” · layer 2 · u 0.800 · g 0.200")
    page.keyboard.press("End")
    expect(readout).to_have_text("answer, token 2 “cannot” · layer 2 · u 0.400 · g 0.600 · risk 10.0%")


def test_curl_asks_the_same(show: Open, engine: scripted.Scripted) -> None:
    page = show(keys=("secret",))
    page.get_by_label("API key").fill("secret")
    page.keyboard.press("Enter")
    expect(page.locator("#about")).to_contain_text("tiny")
    turn = ask(page, "How do I paint a car? it's 'x' \\ \"y\" $HOME `x`")
    ended(page)
    turn.get_by_text("This request as curl").click()
    turn.get_by_role("button", name="Copy").click()
    expect(turn.get_by_role("button", name="Copied")).to_be_visible()
    command = page.evaluate("navigator.clipboard.readText()")
    assert command == turn.locator("pre").inner_text()
    assert "secret" not in command
    environment = {"PATH": "/usr/bin:/bin", "MOGU_API_KEY": "secret"}
    told = subprocess.run(["bash", "-c", command], check=True, capture_output=True, text=True, env=environment).stdout
    assert told.endswith("data: [DONE]\n\n")
    first, second = engine.prompts
    assert first == second


def test_a_server_that_wants_keys(show: Open) -> None:
    page = show(keys=("secret",))
    expect(page.locator("#notice")).to_have_text("The server wants an API key.")
    expect(page.get_by_label("API key")).to_be_focused()
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#notice")).to_have_text("The server does not know this API key.")
    page.get_by_label("API key").fill("secret")
    page.get_by_role("button", name="Use").click()
    expect(page.get_by_label("API key")).to_be_hidden()
    assert page.evaluate("[sessionStorage.length, localStorage.length, document.cookie]") == [1, 0, ""]
    page.reload()
    expect(page.locator("#about")).to_contain_text("tiny")
    expect(page.get_by_label("API key")).to_be_hidden()


def test_without_leave_only_mogu_answers(show: Open) -> None:
    page = show()
    expect(page.locator("#notice")).to_contain_text("this server lets no client weaken its protection")
    expect(page.get_by_label("Base beside it")).to_be_hidden()
    assert page.get_by_label("Dial", exact=True).get_attribute("min") == "0"
    assert page.evaluate("sessionStorage.length") == 0


def test_a_server_that_takes_leave_back(show: Open, start: Callable[..., Serving]) -> None:
    """It was started again without --allow-client-overrides while the page was open."""
    page = show(allow_overrides=True)
    page.get_by_label("Base beside it").check()
    strict = start()
    page.route("**/v1/**", lambda route: route.continue_(url=f"{strict.url}/v1/chat/completions"))
    turn = ask(page, HARMLESS)
    expect(part(turn, "MoGU").locator(".words")).to_have_text("Sure I will help")
    expect(part(turn, "Base, not protected")).to_have_count(0)
    expect(page.locator("#notice")).to_contain_text("this server lets no client weaken its protection")
    expect(page.get_by_label("Base beside it")).to_be_hidden()


def test_what_goes_wrong_is_one_clear_line(
    show: Open, start: Callable[..., Serving], engine: scripted.Scripted
) -> None:
    serving = start()
    page = show(serving)
    told = page.locator(".turn .error")
    engine.limit = 0
    ask(page, HARMLESS)
    expect(told.last).to_have_text("The server is busy; try again in 1 s.")
    ended(page)
    expect(page.get_by_label("Your message")).to_have_value(HARMLESS)  # to send again
    engine.limit, engine.fail = 100, RuntimeError("secret")
    turn = ask(page, HARMLESS)
    expect(told.last).to_have_text("The answer broke off: The server had an error while answering")
    expect(turn.locator(".words")).to_have_text("Sure")
    ended(page)
    engine.fail = None
    head = 'data: {"choices": [{"delta": {"content": "Su"}}]}\n\n'
    page.route("**/v1/**", lambda route: route.fulfill(content_type="text/event-stream", body=head))
    ask(page, HARMLESS)
    expect(told.last).to_have_text("The answer broke off: the connection was closed before its end.")
    page.unroute("**/v1/**")
    ended(page)
    engine.go.clear()
    other = show(serving)
    expect(part(ask(other, HARMLESS), "MoGU").locator(".words")).to_have_text("Sure")
    serving.stop()
    ask(page, HARMLESS)
    expect(told.last).to_have_text("The server is shutting down and takes no more requests.")
    ended(page)
    engine.go.set()
    expect(other.locator(".words")).to_have_text("Sure I will help")
    serving.thread.join()
    ask(page, HARMLESS)
    host = serving.url.removeprefix("http://")
    expect(told.last).to_have_text(f"The server at {host} does not answer; is it still running?")
    assert told.count() == 5


def test_what_a_model_says_is_never_markup(show: Open, engine: scripted.Scripted) -> None:
    said = "<img src=x onerror=alert(1)> <b>bold</b> <script>alert(1)</script>"
    engine.answer = lambda prompt, number: said.split()
    page = show()
    turn = ask(page, f"How? {said}")
    expect(turn.locator(".words")).to_have_text(said)
    expect(turn.locator(".question")).to_have_text(f"How? {said}")
    assert page.locator(".turn :is(img, b, script)").count() == 0


def test_a_model_without_an_adapter(show: Open, engine: scripted.Scripted) -> None:
    page = show(served=scripted.Served("plain"))
    expect(page.locator("#about")).to_have_text("plain · no adapter: nothing is routed")
    expect(page.get_by_label("Dial", exact=True)).to_be_hidden()
    turn = ask(page, HARMLESS)
    expect(part(turn, "plain").locator(".words")).to_have_text("Sure I will help")
    assert turn.locator("canvas").count() == 0


def test_a_new_chat_forgets(show: Open, engine: scripted.Scripted) -> None:
    page = show()
    ask(page, HARMLESS)
    ended(page)
    page.get_by_role("button", name="New chat").click()
    assert page.locator(".turn").count() == 0
    ask(page, HARMLESS)
    ended(page)
    first, second = engine.prompts
    assert first.ids == second.ids


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_by_night_and_by_day(show: Open, scheme: str) -> None:
    page = show(viewport=PHONE, scheme=scheme, allow_overrides=True)
    page.get_by_label("Base beside it").check()
    turn = ask(page, f"{MALICIOUS} " + "x" * 300)
    ended(page)
    turn.locator("summary", has_text="curl").first.click()
    page.get_by_text("More", exact=True).click()
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    mogu, base = (part(turn, name).bounding_box() for name in ("MoGU", "Base, not protected"))
    assert mogu["y"] + mogu["height"] <= base["y"]
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    bright = sum(json.loads(paper.replace("rgb(", "[").replace(")", "]"))) > 3 * 128
    assert bright is (scheme == "light")


def test_everything_is_reached_with_the_tab_key(show: Open) -> None:
    page = show(allow_overrides=True)
    ask(page, HARMLESS)
    ended(page)
    reached = []
    page.get_by_label("Your message").focus()
    for _ in range(20):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("(document.activeElement.id || document.activeElement.tagName).toLowerCase()"))
        if reached[-1] == "text":
            break
    for wanted in ("send", "dial", "compare", "summary", "clear", "canvas"):
        assert wanted in reached
    assert reached.index("send") < reached.index("dial") < reached.index("compare")
