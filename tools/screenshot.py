"""`make screenshot`: docs/page.png and docs/page-phone.png, of a node with some load on it.

About a minute: the plots show what was going on meanwhile. The text is in the machine's own font.
"""

from __future__ import annotations

import io
import itertools
import math
import random
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import quote

from browser_rig import Page, running_browser
from gateway_rig import Gateway, node_gateway
from PIL import Image

DOCS = Path(__file__).parent.parent / "docs"
SECONDS = 70
SIZES = {
    "backups/2026-11-20/catalog.db": 7_340_032,
    "backups/2026-11-20/mail.tar.zst": 18_211_904,
    "backups/2026-11-21/catalog.db": 7_602_176,
    "measurements/station-4/2026-11-21T00.csv": 418_220,
    "measurements/station-4/2026-11-21T12.csv": 402_871,
    "measurements/station-7/2026-11-21T00.csv": 97_312,
    "notes/Grüße aus Łódź?.txt": 1_204,
    "photos/2026/11/harbour.jpg": 3_914_220,
    "photos/2026/11/lighthouse at 50%.jpg": 4_271_093,
    "readme.txt": 812,
}
UPLOADS = {"evening.mov": 9_300_000, "harbour.jpg": 3_700_000, "ferry.mov": 8_100_000, "tide.jpg": 2_100_000}


def make_load(gateway: Gateway, ended: threading.Event) -> None:
    """Objects of the namespace `store`, a few hundred a second at most: more and fewer of them, like waves."""
    data = random.Random(3).randbytes(1 << 17)
    with gateway.connect() as connection:
        for number in itertools.count():
            wave = 1 + math.sin(time.monotonic() / 5) * 0.8
            connection.request("POST", f"/store/{number}", data[: int(60_000 * wave)])
            for _ in range(2 + int(wave)):
                connection.request("GET", f"/store/{random.Random(number).randrange(number + 1)}")
            if ended.wait(0.05 / wave):
                return


def save(page: Page, name: str) -> None:
    image = Image.open(io.BytesIO(page.screenshot()))
    image.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(
        DOCS / name, optimize=True
    )
    print(f"docs/{name}: {(DOCS / name).stat().st_size // 1000} kB")


def main() -> None:
    ended = threading.Event()
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        with node_gateway(directory / "data") as node, running_browser(directory) as browser:
            gateway = node.gateway
            for name, size in SIZES.items():
                gateway.request("PUT", f"/objects/{quote(name)}", random.Random(name).randbytes(size))
            gateway.request(
                "PUT", "/objects/photos/2026/11/harbour.jpg", b"x" * SIZES["photos/2026/11/harbour.jpg"]
            )
            gateway.request("POST", "/blob/abc", b"blob")
            gateway.request("POST", "/files/a", b"file")
            load = threading.Thread(target=make_load, args=(gateway, ended))
            load.start()
            try:
                page = browser.page(f"http://127.0.0.1:{gateway.address[1]}/")
                page.emulate(1080, 860, 1.5)
                time.sleep(SECONDS)
                for name, size in UPLOADS.items():
                    (directory / name).write_bytes(bytes(size))
                page.throttle(upload_bytes_per_s=900_000)
                page.click("#folder")
                page.type("photos/2026/11/")
                page.choose("#choose", [directory / name for name in UPLOADS])
                page.wait("document.querySelector('progress').value > 0.5")
                page.click("#objects button", "History of photos/2026/11/harbour.jpg")
                page.wait("document.querySelector('.history tbody')")
                page.evaluate("(document.activeElement.blur(), scrollTo(0, 0))")
                save(page, "page.png")
                page.emulate(390, 844, 1.5, "dark")
                page.evaluate("scrollTo(0, 0)")
                save(page, "page-phone.png")
            finally:
                ended.set()
                load.join()


if __name__ == "__main__":
    main()
