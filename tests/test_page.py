"""The page in a browser: what people see of it and do with it, in headless Chromium, with real keys, clicks and files."""

from __future__ import annotations

import hashlib
import random
import re
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from browser_rig import CHROMIUM, Browser, Page, running_browser
from gateway_rig import Gateway, NodeGateway, memory_gateway, node_gateway

from ingest.limits import NAME_SIZE_MAX, SMALL_OBJECT_MAX

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")

READ, WRITE = "reader-0123456789", "writer-0123456789"
TOKENS = f"read-only {READ}\nread-write {WRITE}\n"
LARGE = random.Random(1).randbytes(6 * SMALL_OBJECT_MAX + 1)
# How a name is shown: what can't be seen, or changes how its neighbours look, as an escape.
HOSTILE = {
    "..": "..",
    ".": ".",
    "a/../b": "a/../b",
    "../../etc/passwd": "../../etc/passwd",
    "/": "/",
    "ends with/": "ends with/",
    " two  blanks ": " two  blanks ",
    "50%": "50%",
    "%2e%2e%2f": "%2e%2e%2f",
    "?x=1&y=2": "?x=1&y=2",
    "#hash": "#hash",
    "a+b": "a+b",
    "grün 日本 🦀": "grün 日本 🦀",
    "<img src=x onerror=document.title='owned'>": "<img src=x onerror=document.title='owned'>",
    "\"'><script>document.title='owned'</script>": "\"'><script>document.title='owned'</script>",
    "javascript:document.title='owned'": "javascript:document.title='owned'",
    "__proto__": "__proto__",
    "line\nbreak": "line\\u{a}break",
    "nul\0": "nul\\u{0}",
    "\u202egpj.exe": "\\u{202e}gpj.exe",
    "zero\u200bwidth": "zero\\u{200b}width",
}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeGateway]:
    with node_gateway(tmp_path_factory.mktemp("node") / "data", "--http-workers=2") as running:
        yield running


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with running_browser(tmp_path_factory.mktemp("browser")) as running:
        yield running


class View:
    """The page of a gateway, opened by a test; at its end the console must be free of errors but those in ``expected``."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._pages: list[Page] = []
        self.expected: tuple[str, ...] = ()

    def open(self, gateway: Gateway, **hash: str) -> Page:
        page = self._browser.page(f"http://127.0.0.1:{gateway.address[1]}/#{urlencode(hash)}")
        self._pages.append(page)
        page.emulate()
        return page

    def close(self) -> None:
        for page in self._pages:
            complaints = [
                text for text in page.complaints() if not any(part in text for part in self.expected)
            ]
            page.close()
            assert complaints == []


@pytest.fixture
def view(browser: Browser) -> Iterator[View]:
    opened = View(browser)
    yield opened
    opened.close()


def put(gateway: Gateway, name: str, data: bytes = b"data", **headers: str) -> None:
    path = "/objects/" + quote(name, safe="")
    assert gateway.request("PUT", path, data, headers=headers).status == 200


def names(page: Page) -> list[str]:
    return list(
        page.evaluate("[...document.querySelectorAll('#objects a.name')].map((one) => one.textContent)")
    )


def listed(page: Page, count: int) -> list[str]:
    """The names that are shown, once there are so many."""
    page.wait("document.querySelectorAll('#objects a.name').length === count", count=count)
    return names(page)


def queued(page: Page, state: str, count: int = 1) -> list[str]:
    """What stands in the queue for the uploads that are in this state, once there are so many."""
    page.wait("document.querySelectorAll(`#queue > .${state}`).length === count", state=state, count=count)
    return page.texts(f"#queue > .{state}")


def status(page: Page, text: str, region: str = "#list-status") -> None:
    page.wait("document.querySelector(region).textContent.includes(text)", region=region, text=text)


@pytest.fixture
def files(tmp_path: Path) -> Callable[..., list[Path]]:
    def make(**contents: bytes) -> list[Path]:
        for name, content in contents.items():
            (tmp_path / name).write_bytes(content)
        return [tmp_path / name for name in contents]

    return make


# --- uploads and downloads


def test_files_are_chosen_and_come_back(view: View, node: NodeGateway, files: Any) -> None:
    page = view.open(node.gateway, prefix="chosen/")
    status(page, "No names")
    page.click("#folder")
    page.type("chosen/")
    page.choose("#choose", files(large=LARGE, small=b"small", empty=b""))
    queued(page, "done", 3)
    assert page.text("#queue-status") == "3 of 3 uploaded"
    assert listed(page, 3) == ["chosen/empty", "chosen/large", "chosen/small"]
    for name, data in (("large", LARGE), ("small", b"small"), ("empty", b"")):
        page.click("a.name", f"chosen/{name}")
        assert page.browser.downloaded() == (name, data)
        assert node.gateway.request("GET", f"/objects/chosen/{name}").body == data
    page.click("#clear-queue")
    page.wait("!document.querySelector('#queue').children.length")
    assert page.evaluate("document.querySelector('#files').value") == ""  # or the same file were no change
    page.choose("#choose", files(small=b"small"))
    queued(page, "taken")


def test_files_with_names_that_addresses_know(view: View, node: NodeGateway, files: Any) -> None:
    named = {
        name: name.encode()
        for name in ("50%", "%2e%2e", "?q=1&r#h", "a+b", " blank ", "grün 🦀", "<b>", "..x")
    }
    page = view.open(node.gateway, prefix="../named/")
    status(page, "No names")
    page.click("#folder")
    page.type("../named/")
    page.choose("#choose", files(**named))
    queued(page, "done", len(named))
    assert listed(page, len(named)) == [f"../named/{name}" for name in sorted(named, key=str.encode)]
    for name, data in named.items():
        assert node.gateway.request("GET", f"/objects/{quote(f'../named/{name}', safe='')}").body == data


def test_files_and_directories_are_dropped(view: View, node: NodeGateway, tmp_path: Path) -> None:
    tree = {"album/one.jpg": b"1", "album/deeper/two.jpg": b"2" * 5000, "album/deeper/three": LARGE}
    for name, data in tree.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    (tmp_path / "album alone.txt").write_bytes(b"alone")
    page = view.open(node.gateway, prefix="album")
    status(page, "No names")
    page.drag("dragEnter", [tmp_path / "album"])
    page.drag("dragOver", [tmp_path / "album"])
    page.wait("document.querySelector('#drop-veil').checkVisibility()")
    assert page.text("#drop-veil") == "Drop to upload into objects"
    page.drag("drop", [tmp_path / "album", tmp_path / "album alone.txt"])
    queued(page, "done", 4)
    assert not page.evaluate("document.querySelector('#drop-veil').checkVisibility()")
    assert listed(page, 4) == ["album alone.txt", *sorted(tree)]
    for name, data in (tree | {"album alone.txt": b"alone"}).items():
        assert node.gateway.request("GET", f"/objects/{quote(name)}").body == data


def test_progress_cancel_and_the_queue(view: View, node: NodeGateway, files: Any) -> None:
    page = view.open(node.gateway, namespace="store", prefix="slow-")
    status(page, "No names")
    page.throttle(upload_bytes_per_s=1_000_000)
    page.choose("#choose", files(**{f"slow-{number}": LARGE for number in range(4)}))
    queued(page, "sending", 2)
    queued(page, "waiting", 2)
    seen = [0.0]
    while seen[-1] < 0.4:  # so much that the gateway has begun a version of it
        bar = "((bar) => bar.value > seen && bar.value)(document.querySelector('progress'))"
        seen.append(page.wait(bar, seen=seen[-1]))
    assert len(seen) > 3 and seen[-1] < 1
    shown = page.evaluate("document.querySelector('.sending .progress-text').innerText")
    assert re.fullmatch(r"[\d.]+ k?M?B of 1\.57 MB, [\d.]+ k?M?B/s, \d+ s left", shown)
    page.click("#queue button", "Cancel: slow-0")
    page.click("#queue button", "Cancel: slow-3")
    assert len(queued(page, "cancelled", 2)) == 2
    queued(page, "sending", 2)  # the one that waited has its turn
    page.throttle()
    queued(page, "done", 2)
    assert page.text("#queue-status") == "2 of 4 uploaded"
    assert listed(page, 2) == ["slow-1", "slow-2"]
    # What was cancelled on its way is no object, and the gateway knows why.
    assert node.gateway.request("GET", "/store/slow-0").status == 404
    history = page.wait(
        "fetch('/store/slow-0?history').then((answer) => answer.json())"
        ".then((steps) => steps[0]?.state === 'failed' && steps)"
    )
    assert [step["state"] for step in history] == ["failed", "pending"]
    page.click("#clear-queue")
    assert page.text("#queue-status") == ""


def test_a_name_that_is_there_is_replaced_only_when_asked(view: View, node: NodeGateway, files: Any) -> None:
    put(node.gateway, "taken", b"before")
    page = view.open(node.gateway, prefix="taken")
    listed(page, 1)
    page.choose("#choose", files(taken=b"after"))
    (text,) = queued(page, "taken")
    assert "There is an object of this name." in text
    assert page.text("#queue-status") == "0 of 1 uploaded, 1 to be decided"
    assert node.gateway.request("GET", "/objects/taken").body == b"before"
    page.click("#queue button", "Replace: taken")
    queued(page, "done")
    assert node.gateway.request("GET", "/objects/taken").body == b"after"
    page.wait("document.querySelector('td.size').textContent === '5 B'")  # the list knows it
    page.click("#objects button", "History of taken")
    page.wait("document.querySelectorAll('.history tbody tr').length === 5")
    states = [row.split("\t")[1] for row in page.texts(".history tbody tr")]
    assert sorted(states) == ["deleted", "ok", "ok", "pending", "pending"] and states[-1] == "pending"
    etag = node.gateway.request("HEAD", "/objects/taken").headers["etag"].strip('"')
    assert page.text(".history code") == etag
    assert page.evaluate("document.querySelector('#objects button').ariaExpanded") == "true"
    page.click("#objects button", "History of taken")
    assert page.evaluate("document.querySelector('.history')") is None


def test_what_the_gateway_refuses_is_said(view: View, node: NodeGateway, files: Any) -> None:
    view.expected = ("status of 400",)
    page = view.open(node.gateway, namespace="blob")
    page.choose("#choose", files(**{"no-blob": b"x", "blob1": b"blob"}))
    queued(page, "done")
    (text,) = queued(page, "failed")
    assert "Alphanumeric IDs only." in text
    assert page.text("#queue-status") == "1 of 2 uploaded, 1 failed"
    assert listed(page, 1) == ["blob1"]
    assert not page.evaluate(
        "[...document.querySelectorAll('#objects button')].some((one) => one.innerText === 'Delete')"
    )
    page.click("#queue button", "Remove: no-blob")
    page.wait("document.querySelectorAll('#queue > li').length === 1")


def test_each_namespace_has_its_rules(view: View, node: NodeGateway, files: Any) -> None:
    with socket.create_connection(node.gateway.alone["stream"]) as stream:
        stream.sendall(b"streamed")
        stream.shutdown(socket.SHUT_WR)
        assert stream.recv(9, socket.MSG_WAITALL)[8] == 1
    page = view.open(node.gateway, namespace="files")
    page.choose("#choose", files(once=b"once"))
    queued(page, "done")
    page.choose("#choose", files(once=b"again"))
    (text,) = queued(page, "failed")
    assert "There is an object of this name, and here it stays." in text
    assert node.gateway.request("GET", "/files/once").body == b"once"

    page = view.open(node.gateway, namespace="sos")
    assert not page.evaluate("document.querySelector('#folder').checkVisibility()")
    page.choose("#choose", files(content=b"content"))
    queued(page, "done")
    sha1 = hashlib.sha1(b"content").hexdigest()  # among the blobs, which are shown here too
    page.wait(
        "[...document.querySelectorAll('#objects a.name')].some((a) => a.innerText === name)", name=sha1
    )
    assert node.gateway.request("GET", f"/fetch/{sha1}").body == b"content"

    page = view.open(node.gateway, namespace="store")
    page.choose("#choose", files(stored=b"1"))
    queued(page, "done")
    page.choose("#choose", files(stored=b"2"))
    queued(page, "taken")
    page.click("#queue button", "Replace: stored")
    queued(page, "done", 2)
    assert node.gateway.request("GET", "/store/stored").body == b"2"

    assert "stream" in page.texts("#namespaces a")
    page.click("#namespaces a", "stream")
    page.wait("document.querySelector('#namespaces [aria-current]').innerText === 'stream'")
    assert page.evaluate("document.title") == "stream \u2013 ingest"
    assert not page.evaluate("document.querySelector('#choose').checkVisibility()")
    (streamed,) = listed(page, 1)
    page.drop(files(nowhere=b"x"))
    page.click("a.name", streamed)
    assert page.browser.downloaded()[1] == b"streamed"
    assert len(page.texts("#queue > li")) == 2  # nothing came of the drop


# --- the list


def test_search_and_pages(view: View, node: NodeGateway) -> None:
    expected = [f"paged/{number:03}" for number in range(120)]
    for name in expected:
        put(node.gateway, name, b"")
    page = view.open(node.gateway, prefix="paged/")
    assert listed(page, 50) == expected[:50]
    assert page.text("#list-status") == "The first 50 names that begin with “paged/”."
    assert page.evaluate("document.querySelector('#previous').disabled")
    page.click("#next")
    status(page, "50 more names")
    assert names(page) == expected[50:100]
    page.reload()  # what is looked at stands in the address
    assert listed(page, 50) == expected[50:100]
    page.click("#next")
    assert listed(page, 20) == expected[100:]
    assert page.evaluate("document.querySelector('#next').disabled")
    page.click("#previous")
    assert listed(page, 50) == expected[50:100]
    page.evaluate("history.back()")
    assert listed(page, 20) == expected[100:]
    page.evaluate("document.querySelector('#prefix').select()")
    page.click("#prefix")
    page.evaluate("document.querySelector('#prefix').select()")
    page.type("paged/11")
    assert listed(page, 10) == expected[110:]
    assert page.text("#list-status") == "10 names that begin with “paged/11”."
    page.type("7")
    assert listed(page, 1) == ["paged/117"]
    page.type("x")
    status(page, "No names that begin with “paged/117x”.")


def test_a_last_page_that_is_full(view: View, node: NodeGateway) -> None:
    for number in range(50):
        put(node.gateway, f"full/{number:02}", b"")
    page = view.open(node.gateway, prefix="full/")
    listed(page, 50)
    assert page.text("#list-status") == "50 names that begin with “full/”."
    assert page.evaluate("document.querySelector('#next').disabled")


def test_names_that_strangers_wrote(view: View, browser: Browser) -> None:
    """Each is listed as text, downloaded and deleted; each has other bytes."""
    with memory_gateway() as gateway:
        view.expected = ("status of 503",)  # no node has figures
        for name in HOSTILE:
            put(gateway, name, name.encode())
        for number, (name, shown) in enumerate(HOSTILE.items()):
            if number % 8 == 0:  # Chromium asks after ten downloads from one tab
                page = view.open(gateway)
                shown_names = [HOSTILE[known] for known in sorted(HOSTILE, key=str.encode)]
                assert listed(page, len(HOSTILE)) == shown_names
            page.click("a.name", shown)
            assert browser.downloaded()[1] == name.encode()
        left = len(HOSTILE)
        for name, shown in HOSTILE.items():
            page.click("#objects button", f"History of {shown}")
            page.wait("document.querySelector('.history tbody')")
            page.click("#objects button", f"Delete {shown}")
            page.wait("document.querySelector('#delete-name').textContent === shown", shown=shown)
            page.click("#delete-form .danger")
            left -= 1
            listed(page, left)
            assert ("objects", name) not in gateway.store.live
        status(page, "Deleted")
        assert page.evaluate("document.title") == "objects \u2013 ingest"
        assert page.evaluate("document.querySelectorAll('main img, main script').length") == 0


def test_a_search_for_what_strangers_wrote(view: View) -> None:
    with memory_gateway() as gateway:
        view.expected = ("status of 503",)
        for name in HOSTILE:
            put(gateway, name, b"")
        page = view.open(gateway)
        for name in ("..", "50%", "?x=1&y", "#hash", "a+b", "grün 日本 🦀", "<img", "%2e"):
            page.evaluate("document.querySelector('#prefix').select()")
            page.click("#prefix")
            page.evaluate("document.querySelector('#prefix').select()")
            page.type(name)
            expected = [HOSTILE[found] for found in sorted(HOSTILE, key=str.encode) if found.startswith(name)]
            status(page, f"that begin with “{name}”")
            page.wait("new URLSearchParams(location.hash.slice(1)).get('prefix') === name", name=name)
            assert listed(page, len(expected)) == expected


# --- deleting


def test_deleting_asks_first(view: View, node: NodeGateway) -> None:
    view.expected = ("status of 412",)
    for name in ("gone/1", "gone/2", "gone/3"):
        put(node.gateway, name)
    page = view.open(node.gateway, prefix="gone/")
    listed(page, 3)
    for way in ("Escape", "button"):
        page.click("#objects button", "Delete gone/2")
        page.wait("document.querySelector('#delete-dialog').open")
        assert page.focused() == "Keep it"
        if way == "button":
            page.click("#delete-form button", "Keep it")
        else:
            page.press("Escape")
        page.wait("!document.querySelector('#delete-dialog').open")
        assert page.focused() == "Delete gone/2"
    assert node.gateway.request("GET", "/objects/gone/2").status == 200
    page.click("#objects button", "Delete gone/2")
    page.click("#delete-form button", "Delete")
    assert listed(page, 2) == ["gone/1", "gone/3"]
    status(page, "Deleted gone/2.")
    assert page.focused() == "gone/3"  # what stands where it stood
    assert node.gateway.request("GET", "/objects/gone/2").status == 404

    put(node.gateway, "gone/3", b"another one meanwhile")
    page.click("#objects button", "Delete gone/3")
    page.click("#delete-form button", "Delete")
    page.wait("document.querySelector('#delete-error').textContent.includes('has changed')")
    assert page.text("#delete-error").endswith(".")
    page.press("Escape")
    assert node.gateway.request("GET", "/objects/gone/3").body == b"another one meanwhile"


# --- without a mouse, and for all eyes


def test_all_of_it_by_keyboard(view: View, node: NodeGateway, browser: Browser) -> None:
    for name in ("keys/1", "keys/2"):
        put(node.gateway, name, name.encode())
    page = view.open(node.gateway)
    page.wait("document.querySelector('#objects a.name')")
    page.tab_to("prefix")
    page.type("keys/")
    assert listed(page, 2) == ["keys/1", "keys/2"]
    page.tab_to("keys/1")
    page.press("Enter")
    assert browser.downloaded() == ("1", b"keys/1")
    page.tab_to("History of keys/1")
    page.press("Enter")
    page.wait("document.querySelector('.history tbody tr')")
    assert page.focused() == "History of keys/1"
    page.tab_to("Delete keys/1")
    page.press(" ")
    page.wait("document.querySelector('#delete-dialog').open")
    assert page.focused() == "Keep it"
    page.press("Tab")
    assert page.focused() == "Delete"
    page.press("Enter")
    assert listed(page, 1) == ["keys/2"]
    assert page.focused() == "keys/2"


def test_a_list_that_changes_keeps_the_focus(view: View, node: NodeGateway, files: Any) -> None:
    put(node.gateway, "kept/b")
    page = view.open(node.gateway, prefix="kept/")
    listed(page, 1)
    page.evaluate("document.querySelector('#folder').value = 'kept/'")
    page.choose("#choose", files(a=b"a"))
    page.click("#objects button", "History of kept/b")
    page.wait("document.querySelector('.history tbody')")
    queued(page, "done")
    assert listed(page, 2) == ["kept/a", "kept/b"]
    assert page.focused() == "History of kept/b"
    assert page.evaluate("document.querySelector('.history').previousElementSibling.innerText").startswith(
        "kept/b"
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_width_and_both_schemes(view: View, node: NodeGateway, files: Any, scheme: str) -> None:
    put(node.gateway, "wide/" + "x" * (NAME_SIZE_MAX - 5))
    put(node.gateway, "wide/and a/b c/name.txt", LARGE)
    page = view.open(node.gateway, prefix="wide/")
    listed(page, 2)
    page.choose("#choose", files(**{"y" * 250: b"y"}))
    page.wait("document.querySelector('#queue > .done, #queue > .taken')")
    page.click("#objects button", "History of wide/and a/b c/name.txt")
    page.wait("document.querySelector('.history tbody')")
    for width in (320, 390, 768, 1100, 1920):
        page.emulate(width, 800, scheme=scheme)
        page.wait("innerWidth === width", width=width)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for control in ("#choose", "#folder", "#prefix", "#objects button", "#queue button"):
            box = page.evaluate(
                "document.querySelector(control).getBoundingClientRect().toJSON()", control=control
            )
            assert box["left"] >= 0 and box["right"] <= width and box["height"] >= 18, (width, control, box)
    ground = luminance(page.evaluate("getComputedStyle(document.documentElement).backgroundColor"))
    assert (ground > 0.5) is (scheme == "light")
    pale = {}
    for what in (
        "h1",
        ".hint",
        "dt",
        ".unit",
        ".reading-1 .unit",
        "#objects .time",
        "#objects button",
        "#list-status",
        "th .directory",
        ".history .ok",
    ):
        text = luminance(page.evaluate("getComputedStyle(document.querySelector(what)).color", what=what))
        contrast = (max(text, ground) + 0.05) / (min(text, ground) + 0.05)
        if contrast < 4.5:
            pale[what] = contrast
    assert pale == {}  # WCAG 2.2, 1.4.3


def luminance(color: str) -> float:
    """Of `rgb(r, g, b)`, as WCAG defines it."""
    channels = [int(part) / 255 for part in color[color.index("(") + 1 : -1].split(",")[:3]]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_whatever_takes_input_has_a_name(view: View, node: NodeGateway, files: Any) -> None:
    put(node.gateway, "named")
    page = view.open(node.gateway, prefix="named")
    listed(page, 1)
    page.choose("#choose", files(named=b"x"))
    queued(page, "taken")
    page.call("Accessibility.enable")
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    controls = [
        (one["role"]["value"], one.get("name", {}).get("value", ""))
        for one in nodes
        if not one["ignored"]
        and one["role"]["value"]
        in ("button", "textbox", "searchbox", "link", "table", "region", "navigation", "list", "columnheader")
    ]
    assert {"button", "textbox", "searchbox", "link", "table", "navigation", "columnheader"} <= {
        role for role, _ in controls
    }
    assert [role for role, name in controls if not name and role not in ("list",)] == []
    assert ("button", "Delete named") in controls and ("button", "Replace: named") in controls


# --- tokens


def test_a_token_is_asked_for(view: View, browser: Browser, tmp_path: Path, files: Any) -> None:
    tokens = tmp_path / "tokens"
    tokens.touch(0o600)
    tokens.write_text(TOKENS)
    view.expected = ("status of 401", "status of 403")
    with node_gateway(tmp_path / "data", f"--token-file={tokens}", "--http-workers=2") as node:
        for name, data in (("locked", LARGE), ("locked too", b"x")):
            path = f"/objects/{quote(name)}"
            assert (
                node.gateway.request("PUT", path, data, headers={"Authorization": f"Bearer {WRITE}"}).status
                == 200
            )
        page = view.open(node.gateway)
        assert names(page) == []
        give_token(page, "no-token-that-is-known")
        page.wait("document.querySelector('#token-refused').textContent.includes('not known')")
        give_token(page, READ)
        assert listed(page, 2) == ["locked", "locked too"]
        page.wait("document.querySelector('#readiness').textContent === 'ready'")
        page.click("a.name", "locked")
        assert browser.downloaded() == ("locked", LARGE)
        page.click("a.name", "locked too")
        assert browser.downloaded() == ("locked too", b"x")

        page.click("#objects button", "Delete locked too")
        page.click("#delete-form button", "Delete")
        page.wait(
            "document.querySelector('#delete-error').textContent === 'This token is good for reading only.'"
        )
        page.press("Escape")
        page.choose("#choose", files(refused=b"x"))
        assert "This token is good for reading only." in queued(page, "failed")[0]

        page.reload()  # it stays in the tab
        assert listed(page, 2) == ["locked", "locked too"]
        assert not page.evaluate("document.querySelector('#token-dialog').open")
        page.click("#token-button", "Forget token")
        page.wait("document.querySelector('#token-dialog')?.open")
        page.press("Escape")
        status(page, "A token is needed")
        assert page.evaluate("sessionStorage.length") == 0
        page.click("#token-button", "Enter token")
        give_token(page, WRITE)
        listed(page, 2)
        page.choose("#choose", files(stored=LARGE))
        queued(page, "done")
        assert listed(page, 3) == ["locked", "locked too", "stored"]

        tokens.write_text(f"read-write other-{WRITE}\n")
        assert node.process is not None
        node.process.send_signal(signal.SIGHUP)
        page.wait(
            "fetch('/catalog/namespaces', { headers: { Authorization: token } }).then((answer) => answer.status === 401)",
            token=f"Bearer {WRITE}",
        )
        page.evaluate("document.querySelector('#prefix').focus()")
        page.type("sto")
        give_token(page, f"other-{WRITE}")
        assert listed(page, 1) == ["stored"]
        assert WRITE not in page.evaluate("location.href")


def give_token(page: Page, token: str) -> None:
    page.wait("document.querySelector('#token-dialog').open && document.activeElement.id === 'token'")
    page.wait("document.querySelector('#token').value === ''")
    page.type(token)
    page.press("Enter")


# --- the figures of the node


def test_figures_are_drawn(view: View, node: NodeGateway) -> None:
    page = view.open(node.gateway, prefix="figures/")
    page.wait("document.querySelector('#readiness').textContent === 'ready'")
    put(node.gateway, "figures/1", LARGE)
    frames = "+document.querySelector('#figures .value').textContent.replace(',', '')"
    figures = "[...document.querySelectorAll('#figures > div')].map((one) => one.innerText)"
    value, shown = page.wait(f"((frames) => frames > 0 && [frames, {figures}])({frames})")
    assert value < 1e6
    assert shown[4].startswith("Space") and "free" in shown[4]
    assert all("\u2013" not in text for text in shown), shown
    lines = page.evaluate(
        "[...document.querySelectorAll('#figures .line')].map((line) => line.getAttribute('d'))"
    )
    assert len(lines) == 7 and all(line.startswith("M") for line in lines)
    assert page.evaluate("document.querySelector('#node-notice').hidden")


def test_samples_that_follow_too_fast_are_left_out(view: View, node: NodeGateway) -> None:
    """Two processes of the gateway answer, each with a sample of its own: between them may be less than a millisecond."""
    page = view.open(node.gateway, prefix="figures/")
    page.wait("document.querySelector('#readiness').textContent === 'ready'")
    taken = page.evaluate(
        "(async () => { const { sample } = await import('/page/figures.js'); const began = performance.now();"
        " for (let i = 0; i < 10; i++) await Promise.all(Array.from({ length: 6 }, sample));"
        " return (performance.now() - began) / 1000; })()"
    )
    queue = page.evaluate(
        "document.querySelectorAll('#figures .plot')[2].querySelector('.line').getAttribute('d')"
    )
    assert 1 <= queue.count(",") <= 2 + taken + 1  # one a second, and what the page did by itself


def test_rates_are_those_of_the_counters(view: View, node: NodeGateway) -> None:
    def sample(time: float, frames: int, commits: list[list[Any]]) -> dict[str, Any]:
        return {
            "time": time,
            "received": {"frames": frames, "bytes": frames * 1474},
            "sent": {"frames": 2 * frames, "bytes": 2 * frames * 1474},
            "commits": {"count": commits[-1][1], "latency": commits},
        }

    before = sample(100.0, 1000, [[0.001, 5], [0.002, 5], [0.004, 5], [None, 5]])
    now = sample(104.0, 9000, [[0.001, 5], [0.002, 55], [0.004, 104], [None, 105]])
    page = view.open(node.gateway)
    rate = "import('/page/figures.js').then((figures) => figures.rate(before, now))"
    found = page.evaluate(rate, before=before, now=now)
    assert found == pytest.approx(
        {
            "received": 2000,
            "sent": 4000,
            "receivedMB": 2.948,
            "sentMB": 5.896,
            "p50": 2.0,
            "p99": 4.0,
        }
    )
    assert page.evaluate(rate, before=now, now=before) is None
    assert page.evaluate(rate, before=before, now=sample(105.0, 10, before["commits"]["latency"])) is None
    idle = page.evaluate(rate, before=before, now=before | {"time": 105.0})
    assert (idle["received"], idle["p50"], idle["p99"]) == (0, None, None)


def test_a_node_without_figures_is_said_plainly(view: View) -> None:
    view.expected = ("status of 503",)
    with memory_gateway() as gateway:
        put(gateway, "still listed")
        page = view.open(gateway)
        admin = f"127.0.0.1:{gateway.admin[1]}"
        status(page, f"The admin port of the node, {admin}, can't be reached", "#node-notice")
        assert listed(page, 1) == ["still listed"]
        assert page.text("#readiness") == ""
        assert "0" not in "".join(page.texts("#figures .value"))


def test_a_gateway_that_went_away(view: View, files: Any) -> None:
    view.expected = ("ERR_CONNECTION_REFUSED", "status of 503", "ERR_CONNECTION_RESET", "ERR_EMPTY_RESPONSE")
    with memory_gateway() as gateway:
        page = view.open(gateway)
        status(page, "No objects here yet.")
    page.choose("#choose", files(late=b"x"))
    assert "The gateway can't be reached, or the connection broke." in queued(page, "failed")[0]
    page.click("#prefix")
    page.type("x")
    status(page, "The gateway can't be reached")


# --- what the policy closes


def test_nothing_else_runs_in_the_page(view: View, node: NodeGateway) -> None:
    """Markup from a string, the script that somebody uploaded, a frame, another host."""
    put(node.gateway, "evil.js", b"document.title = 'owned'", **{"Content-Type": "text/javascript"})
    page = view.open(node.gateway, prefix="none")
    status(page, "No names")
    view.expected = ("Content Security Policy", "TrustedHTML", "Trusted", "ERR_BLOCKED_BY_CSP", "Refused")
    thrown = "(() => { try { %s; return ''; } catch (error) { return String(error); } })()"
    assert "TrustedHTML" in page.evaluate(thrown % "document.body.innerHTML = '<p>'")
    script = "document.createElement('script').src = '/objects/evil.js'"
    assert "TrustedScriptURL" in page.evaluate(thrown % script)
    assert "TrustedScript" in page.evaluate(thrown % "setTimeout('1')")
    page.evaluate(
        "addEventListener('securitypolicyviolation', (event) => (globalThis.violated = event.violatedDirective))"
    )
    page.evaluate("document.body.append(Object.assign(document.createElement('iframe'), { src: '/' }))")
    assert page.wait("globalThis.violated") == "frame-src"
    assert page.evaluate("fetch('http://127.0.0.2:1/').then(() => 'sent', () => 'not sent')") == "not sent"
    assert page.evaluate("document.title") == "objects \u2013 ingest"
