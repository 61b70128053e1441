"""The page of a server in headless Chromium: every form by mouse, touch and keyboard, light and dark, on a desk and on a phone.

    tox -e page
    python bench/page.py runs/digits runs/german --shots docs

Without runs it trains tiny ones, in half a minute. It needs playwright, and Debian's chromium or another one that CHROMIUM names.
What is wrong ends it with an error: a message in the console, a request to anywhere else, a control that the keyboard does not
reach, text of little contrast, a page wider than the screen, an answer that does not come. --shots: a folder for screenshots.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
DESK, PHONE = {"width": 800, "height": 760}, {"width": 360, "height": 740}
CONTRAST = 4.5
"""Of text and what is behind it, at least: WCAG 2.2, 1.4.3."""

TEXTS = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (color) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((x) => x / 255).map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (one) => {
    for (let up = one; up; up = up.parentElement) {
      const found = rgba(getComputedStyle(up).backgroundColor);
      if (found[3] === 255) return found;
    }
    return [255, 255, 255];
  };
  const poor = [];
  for (const one of document.querySelectorAll("body *")) {
    const says = [...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!says || !one.checkVisibility() || one.matches(".unseen, option, noscript *, :disabled")) continue;
    const [a, b] = [getComputedStyle(one).color, null].map((x) => x && rgba(x)).map((x) => x ?? behind(one));
    const [x, y] = [light(a.slice(0, 3)), light(b.slice(0, 3))].sort((p, q) => q - p);
    const contrast = (x + 0.05) / (y + 0.05);
    if (contrast < LEAST) poor.push(`${one.tagName} "${one.textContent.trim().slice(0, 30)}" ${contrast.toFixed(2)}`);
  }
  return poor;
}""".replace("LEAST", str(CONTRAST))

CONTROLS = """() => [...document.querySelectorAll("a, button, input, select, textarea, [tabindex]")]
  .filter((one) => one.checkVisibility() && !one.disabled).map((one, n) => (one.dataset.n = n, one.id || one.textContent))"""


@contextlib.contextmanager
def serving(runs: list[str], *more: str) -> Iterator[str]:
    """The address of a real server."""
    words = [sys.executable, "-m", "tasks.serve", *runs, "--port", "0", "--device", "cpu", *more]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}) as process:
        try:
            line = process.stdout.readline()  # type: ignore
            assert "http://" in line, f"no server: {line}"
            yield line[line.index("http://") :].strip()
        finally:
            process.terminate()
    assert process.returncode == 0, "SIGTERM must end in exit code 0"


class Visit:
    """A page that is looked at: what it says in its console, and whom it asks, is held against it."""

    def __init__(self, browser: Browser, address: str, expected: str = "", **context: Any) -> None:
        self.address, self.expected, self.wrong = address, expected, []
        self.context = browser.new_context(**context)
        self.page: Page = self.context.new_page()
        self.page.on("console", lambda said: self.note(said.text) if said.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.note(str(error)))
        self.page.on("request", lambda asked: None if asked.url.startswith((address, "data:", "blob:")) else self.note(asked.url))
        self.page.goto(address)
        self.answer = self.page.locator("#answer")

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *error: object) -> None:
        self.context.close()
        if error[0] is None:
            assert not self.wrong, self.wrong

    def note(self, said: str) -> None:
        if not (self.expected and self.expected in said):
            self.wrong.append(said)

    def choose(self, name: str) -> None:
        self.page.select_option("#model", name)
        expect(self.page.locator("form[data-task]:visible")).to_have_count(1)

    def looks_right(self) -> None:
        """Nothing wider than the screen, and every text can be read."""
        width, most = self.page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        assert width <= most, f"the page is {width} px wide on {most}"
        assert not (poor := self.page.evaluate(TEXTS)), poor

    def keyboard_reaches_all(self) -> None:
        wanted = self.page.evaluate(CONTROLS)
        self.page.evaluate("document.activeElement?.blur()")
        reached = set()
        for _ in range(2 * len(wanted) + 4):
            self.page.keyboard.press("Tab")
            number, seen = self.page.evaluate(
                "[document.activeElement.dataset.n, getComputedStyle(document.activeElement).outlineStyle]"
            )
            if number is not None:
                reached.add(int(number))
                assert seen != "none", f"{wanted[int(number)]}: nothing shows that it has the focus"
        missing = [name for n, name in enumerate(wanted) if n not in reached]
        assert not missing, f"Tab does not reach {missing}"

    def send(self) -> None:
        """By the keyboard: from the form's button."""
        button = self.page.locator("form[data-task]:visible button:not([type=button])")
        button.focus()
        self.page.keyboard.press("Enter")

    def shot(self, folder: str, name: str) -> None:
        if not folder:
            return
        path = Path(folder) / f"{name}.png"
        self.page.screenshot(path=path)
        with Image.open(path) as whole:
            whole.convert("RGB").quantize(48, dither=Image.Dither.NONE).save(path, optimize=True)


def draw(visit: Visit) -> None:
    """A three, with the mouse."""
    box = visit.page.locator("#pad").bounding_box()
    assert box
    places = [
        (0.3, 0.22),
        (0.5, 0.15),
        (0.66, 0.25),
        (0.62, 0.4),
        (0.47, 0.48),
        (0.64, 0.56),
        (0.7, 0.7),
        (0.55, 0.84),
        (0.3, 0.78),
    ]
    mouse = visit.page.mouse
    for n, (x, y) in enumerate(places):
        mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=4)
        if n == 0:
            mouse.down()
    mouse.up()


def image_classification(visit: Visit, about: dict[str, Any]) -> None:
    page, answer = visit.page, visit.answer
    page.check("#explain")
    draw(visit)
    expect(answer.locator("h3")).to_have_text(re.compile("|".join(map(re.escape, about["classes"]))))
    expect(page.locator("#map")).to_be_visible()
    page.click("#wipe")
    expect(page.locator("#seen")).to_be_hidden()
    page.focus("#pad")
    for key in ("Space", *["ArrowDown"] * 8, "Space", *["ArrowUp"] * 4):
        page.keyboard.press(key)
    expect(page.locator("#pen")).to_have_text("pen up at 50, 70")
    page.keyboard.press("Enter")
    expect(answer.locator("h3")).to_be_visible()
    page.keyboard.press("Delete")
    page.keyboard.press("Enter")
    expect(page.locator("#error")).to_have_text("draw something first, or choose a picture")
    with tempfile.TemporaryDirectory() as folder:
        Image.linear_gradient("L").save(path := Path(folder) / "picture.png")
        page.set_input_files("#file", path)
        expect(page.locator("#error")).to_be_hidden()
        expect(answer.locator("meter").first).to_be_visible()
        (bad := Path(folder) / "bad.png").write_text("no picture")
        page.set_input_files("#file", bad)
        expect(page.locator("#error")).to_contain_text("none of PNG, JPEG")
        content = [*path.read_bytes()]
    dropped = page.evaluate_handle(
        """(content) => { const found = new DataTransfer();
        found.items.add(new File([new Uint8Array(content)], "a.png", { type: "image/png" })); return found; }""", content
    )  # fmt: skip
    page.dispatch_event("form[data-task=image-classification]", "drop", {"dataTransfer": dropped})
    expect(page.locator("#error")).to_be_hidden()
    page.click("#wipe")
    draw(visit)
    expect(page.locator("#map")).to_be_visible()


def text_classification(visit: Visit, about: dict[str, Any]) -> None:
    visit.page.fill("#text", "the cat 1")
    if about["texts"] == 2:
        visit.page.fill("#pair", "the a")
    visit.send()
    expect(visit.answer.locator("meter")).to_have_count(len(about["classes"]))


def token_classification(visit: Visit, about: dict[str, Any]) -> None:
    visit.page.fill("#tagged", "Ada sees Bob .")
    visit.send()
    expect(visit.answer.locator("pre")).to_contain_text("sees")


def question_answering(visit: Visit, about: dict[str, Any]) -> None:
    visit.page.fill("#question", "who")
    visit.page.fill("#context", "Ada is in Oslo.")
    visit.send()
    expect(visit.answer.locator("pre")).to_contain_text("Oslo")


def translation(visit: Visit, about: dict[str, Any]) -> None:
    visit.page.fill("#lines", "eins zwei drei\ndrei")
    visit.send()
    expect(visit.answer.locator("pre")).to_be_visible()
    assert visit.answer.locator("pre").inner_text().count("\n") == 1
    expect(visit.answer.locator("table.attention thead th")).to_have_count(
        visit.answer.locator("tbody td").count() // rows(visit)
    )
    visit.page.uncheck("#why")
    visit.send()
    expect(visit.answer.locator("table")).to_have_count(0)
    visit.page.check("#why")
    visit.send()
    expect(visit.answer.locator("table")).to_be_visible()


def rows(visit: Visit) -> int:
    return visit.answer.locator("tbody tr").count()


def text_generation(visit: Visit, about: dict[str, Any]) -> None:
    page = visit.page
    page.fill("#prompt", "the cat")
    page.fill("#tokens", "20000")
    visit.send()
    expect(visit.answer.locator("pre")).to_have_text(re.compile(r"the cat[\s\S]{4}"))  # while the rest is still to come
    page.click("#stop")
    expect(page.locator("#stop")).to_be_disabled()
    page.fill("#tokens", "40")
    visit.send()
    expect(page.locator("#stop")).to_be_enabled()
    expect(page.locator("#stop")).to_be_disabled()
    assert visit.answer.inner_text().startswith("the cat")


def image_generation(visit: Visit, about: dict[str, Any]) -> None:
    page = visit.page
    visit.send()
    visit.answer.locator("img").evaluate("(picture) => picture.decode()")
    page.fill("#count", "3")
    if about.get("classes"):
        page.fill("#chosen", "nowhere")
        visit.send()
        expect(page.locator("#error")).to_contain_text("'nowhere' is no class")
        page.fill("#chosen", "")
    visit.send()
    expect(page.locator("#error")).to_be_hidden()
    visit.answer.locator("img").evaluate("(picture) => picture.decode()")


TRIED = {
    call.__name__.replace("_", "-"): call
    for call in (image_classification, text_classification, token_classification, question_answering, translation,
                 text_generation, image_generation)
}  # fmt: skip


def tried(browser: Browser, address: str, shots: str) -> None:
    """Each model, light on a desk and dark on a phone."""
    seen: set[str] = set()
    for look, size, more in (("light", DESK, {}), ("dark", PHONE, {"is_mobile": True, "has_touch": True})):
        with Visit(browser, address, "422", viewport=size, color_scheme=look, **more) as visit:
            expect(visit.page.locator("#model")).to_be_enabled()
            told = visit.page.evaluate("fetch('v1/models').then((found) => found.json())")["data"]
            for one in told:
                visit.choose(one["id"])
                visit.keyboard_reaches_all()
                TRIED[one["task"]](visit, one["about"])
                visit.looks_right()
                if look == "dark":
                    level = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
                    assert max(map(int, re.findall(r"\d+", level)[:3])) < 64, f"{level} is not dark"
                    if one["task"] == "image-classification":
                        finger(visit)
                if (one["task"], look) in SHOWN and one["task"] + look not in seen:
                    seen.add(one["task"] + look)
                    visit.page.evaluate("document.activeElement.blur()")
                    visit.shot(shots, SHOWN[one["task"], look])
                print(f"{one['id']}, {look}, {size['width']} px: right", flush=True)


SHOWN = {
    ("image-classification", "light"): "page-digit", ("translation", "light"): "page-translation",
    ("text-generation", "dark"): "page-text", ("image-generation", "dark"): "page-sheet",
}  # fmt: skip


def finger(visit: Visit) -> None:
    visit.page.click("#wipe")
    expect(visit.answer.locator("h3")).to_have_count(0)
    visit.page.locator("#pad").tap()
    expect(visit.answer.locator("h3")).to_be_visible()


def asked_for_a_token(browser: Browser, address: str) -> None:
    with Visit(browser, address, "401") as visit:
        for token in ("wrong", "secret"):
            expect(visit.page.locator("#login")).to_be_visible()
            expect(visit.page.locator("#error")).to_contain_text("a bearer token is needed")
            visit.page.fill("#token", token)
            visit.page.keyboard.press("Enter")
        expect(visit.page.locator("#login")).to_be_hidden()
        expect(visit.page.locator("#error")).to_be_hidden()
        expect(visit.page.locator("#model")).to_be_enabled()
    print("a token is asked for, and kept", flush=True)


def strangers(browser: Browser, address: str) -> None:
    """A page of another origin may not make the browser ask, nor may another name of this machine."""
    port = address.rpartition(":")[2]
    with browser.new_context() as context:
        page = context.new_page()
        page.route("http://evil.example/", lambda route: route.fulfill(body="<p>evil</p>", content_type="text/html"))
        page.goto("http://evil.example/")
        status = page.evaluate(
            """async (url) => { const found = [];
            for (const mode of ["cors", "no-cors"]) {
              try { found.push((await fetch(url, { method: "POST", mode, body: "{}" })).type); } catch { found.push("refused"); }
            } return found; }""", f"{address}/v1/completions"
        )  # fmt: skip
        assert status[0] == "refused", status
        found = page.goto(f"http://rebound.example:{port}/v1/models")  # a name that means this machine
        assert found is not None
        assert found.status == 421, found.status
    print("strangers are refused", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*")
    parser.add_argument("--shots", default="")
    given = parser.parse_args()
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium:
        sys.exit("there is no chromium: apt-get install chromium, or name another one in CHROMIUM")
    with contextlib.ExitStack() as stack:
        runs = given.runs
        if not runs:
            sys.path.insert(0, str(ROOT / "tests" / "tasks"))
            from served_runs import train

            runs = [str(run) for run in train(Path(stack.enter_context(tempfile.TemporaryDirectory()))).values()]
        words = ["--host-resolver-rules=MAP rebound.example 127.0.0.1,MAP * ~NOTFOUND,EXCLUDE 127.0.0.1", "--no-sandbox"]
        playing = stack.enter_context(sync_playwright())
        browser = playing.chromium.launch(executable_path=chromium, args=words)
        expect.set_options(timeout=60_000)
        with serving(runs) as address:
            strangers(browser, address)
            tried(browser, address, given.shots)
        with serving(runs[:1], "--token", "secret") as address:
            asked_for_a_token(browser, address)
        browser.close()


if __name__ == "__main__":
    main()
