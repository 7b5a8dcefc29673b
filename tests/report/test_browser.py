"""A report in a real browser, wide and narrow: it needs nothing from elsewhere, complains of nothing, and fits."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest
from test_report import hostile

from mlx_email import report
from mlx_email.report.page import POLICY
from mlx_email.report.parts import TITLES

pytestmark = pytest.mark.slow

WIDTHS = (1280, 390)  # CSS pixels
SETTINGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--hide-scrollbars", "--virtual-time-budget=10000"),
    *("--enable-logging=stderr", "--host-resolver-rules=MAP * ~NOTFOUND", "--window-size=1400,1000"),
    "--allow-file-access-from-files",  # to look into the frames
)
# Shows pages in frames of given widths and writes down what came of it, before and after everything is unfolded.
HARNESS = """<!doctype html><body><pre id="found"></pre><script>
const found = [], wanted = %s;
const look = (page) => {
  const root = page.document.documentElement, wide = page.innerWidth, out = [];
  for (const each of page.document.querySelectorAll('body *')) {
    if (each.closest('.scroll, pre, svg')) continue;
    const box = each.getBoundingClientRect();
    if (box.width && box.right > wide + 1) out.push(each.tagName + '.' + each.className);
  }
  return {overflow: root.scrollWidth - wide, out};
};
const next = () => {
  if (!wanted.length) { document.getElementById('found').textContent = JSON.stringify(found); return; }
  const [file, width] = wanted.shift(), frame = document.createElement('iframe');
  frame.style.cssText = `width:${width}px;height:900px;border:0`;
  frame.onload = () => {
    const page = frame.contentWindow, at = (query) => [...page.document.querySelectorAll(query)];
    const box = (each) => { const r = each.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; };
    const record = {file, width, inner: page.innerWidth, folded: look(page)};
    at('details').forEach((each) => { each.open = true; });
    record.unfolded = look(page);
    record.sections = at('section').map((each) => [each.id, box(each)[3] - box(each)[1]]);
    record.charts = at('svg').map((each) => [box(each), [...each.querySelectorAll('text')].map(box)]);
    record.sizes = at('svg text').map((each) => {
      const turned = each.getScreenCTM();
      return parseFloat(page.getComputedStyle(each).fontSize) * Math.hypot(turned.a, turned.b);
    });
    record.fetched = page.performance.getEntriesByType('resource').map((each) => each.name);
    record.unread = at('svg text').filter((each) =>
      page.getComputedStyle(each).fill === page.getComputedStyle(page.document.body).backgroundColor).length;
    found.push(record);
    frame.remove();
    next();
  };
  frame.src = file;
  document.body.append(frame);
};
next();
</script>"""


@pytest.fixture(scope="session")
def browser() -> str:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if found is None:
        pytest.skip("needs chromium, to look at a page")
    return found


def seen(browser: str, folder: Path, files: list[str], widths=WIDTHS) -> tuple[list[dict], list[str]]:
    """What came of showing files of a folder at some widths, and what the browser's console says."""
    wanted = [[name, width] for name in files for width in widths]
    (folder / "harness.html").write_text(HARNESS % json.dumps(wanted))
    command = [browser, *SETTINGS, f"--user-data-dir={folder / 'profile'}", "--dump-dom", str(folder / "harness.html")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    (text,) = re.findall(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert text, f"the harness did not come to its end:\n{done.stderr[-2000:]}"
    return json.loads(unescape(text)), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def fits(record: dict) -> None:
    """What holds of a report at any width."""
    where = f"{record['file']} at {record['width']}"
    assert record["inner"] == record["width"]
    for state in ("folded", "unfolded"):
        assert record[state] == {"overflow": 0, "out": []}, where
    assert [name for name, _ in record["sections"]] == list(TITLES), where
    assert all(height > 40 for _, height in record["sections"]), where
    assert record["fetched"] == [], where
    for (left, top, right, bottom), texts in record["charts"]:
        assert right - left > 150 and bottom - top > 80, where
        for x0, y0, x1, y1 in texts:  # no label is cut off, or hangs out
            assert x0 >= left - 8 and y0 >= top - 4 and x1 <= right + 8 and y1 <= bottom + 4, where
    assert all(8 <= size <= 18 for size in record["sizes"]), (where, min(record["sizes"]), max(record["sizes"]))
    assert record["unread"] == 0


@pytest.fixture(scope="module")
def pages(made, tmp_path_factory) -> Path:
    """Reports of several runs, by name."""
    pytest.importorskip("matplotlib.figure")
    folder, owners = tmp_path_factory.mktemp("pages"), made(short=True, owners=150, count=900)
    long, bad = made(), made()
    hostile(bad)
    for name, run, drawn in (
        ("long", long, True),
        ("tables", long, False),
        ("owners", owners, True),
        ("bad", bad, True),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(report.draw, "available", lambda drawn=drawn: drawn)
            shutil.copy(report.write(run), folder / f"{name}.html")
    return folder


def test_reports_fit_and_ask_for_nothing(browser, pages):
    names = ["long", "tables", "owners", "bad"]
    found, said = seen(browser, pages, [f"{name}.html" for name in names])
    assert said == []
    for record in found:
        fits(record)
    charts = {record["file"]: len(record["charts"]) for record in found}
    assert charts == {"long.html": 10, "tables.html": 0, "owners.html": 5, "bad.html": 10}


PLANTED = {
    '<img src="https://elsewhere.example/x.png">': "console",
    "<script>document.title = 'run'</script>": "console",
    '<link rel="stylesheet" href="https://elsewhere.example/x.css">': "console",
    '<div style="width:2000px">wide</div>': "overflow",
    "<p>" + "w" * 500 + "</p><style>body { overflow-wrap: normal !important }</style>": "overflow",
    '<svg viewBox="0 0 10 10" class="chart" role="img"><text x="9">far too long</text></svg>': "chart",
    '<svg viewBox="0 0 90 90" class="chart"><text y="20" style="fill: var(--paper)">x</text></svg>': "chart",
}


def test_what_would_be_wrong_is_seen(browser, pages):
    """Planted faults: each of these in the page is found, and nothing in the page without them."""
    text = (pages / "tables.html").read_text()
    for number, planted in enumerate(("", *PLANTED)):
        (pages / f"planted-{number}.html").write_text(text.replace("</main>", f"{planted}</main>"))
    names = [f"planted-{number}.html" for number in range(len(PLANTED) + 1)]
    found, said = seen(browser, pages, names, widths=(390,))
    fits(found[0])
    for name, record, (planted, wrong) in zip(names[1:], found[1:], PLANTED.items(), strict=True):
        complaints = [line for line in said if name in line]
        if wrong == "console":
            assert len(complaints) == 1 and "Content Security Policy" in complaints[0], planted
        else:
            assert not complaints
            with pytest.raises(AssertionError):
                fits(record)


def test_without_its_policy_a_page_would_run_what_stands_in_it(browser, pages):
    """So it is the policy, and not the harness, that keeps things out."""
    text = (pages / "tables.html").read_text()
    assert POLICY in text
    bare = text.replace(POLICY, "").replace("</main>", "<script>console.log('it runs')</script></main>")
    (pages / "bare.html").write_text(bare)
    _, said = seen(browser, pages, ["bare.html"], widths=(390,))
    assert len(said) == 1 and "it runs" in said[0]
