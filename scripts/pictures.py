"""Take the pictures of README and docs from a running stack: `make pictures`, after `make demo`.

It shows what a person sees, in a headless Chromium. It changes little: one prediction is asked for,
and, last, those of a small file.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import FilePayload, Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mlops.database import connect  # noqa: E402
from mlops.dataset.card import load_card  # noqa: E402
from mlops.dataset.rows import load_future, periods_to_come  # noqa: E402
from mlops.settings import Settings, get_settings  # noqa: E402

IMAGES = ROOT / "images"
MONITORING_HEIGHT = 4500
CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--hide-scrollbars",
]


def take_try_it(page: Page, settings: Settings) -> None:
    page.set_viewport_size({"width": 1440, "height": 1300})
    page.goto(settings.streamlit_url)
    button = page.get_by_role("button", name="Predict")
    button.wait_for(timeout=60_000)
    # Another than the reference customer, of whom there is nothing to explain.
    for place, value in enumerate(("31", "1850", "6")):
        field = page.get_by_test_id("stNumberInputField").nth(place)
        field.fill(value)
        field.press("Tab")
    button.click()
    page.get_by_text("Why this score").wait_for(timeout=60_000)
    _settle(page)
    page.screenshot(path=IMAGES / "streamlit-try-it.png")


def take_models(page: Page, settings: Settings) -> None:
    page.set_viewport_size({"width": 1440, "height": 1750})
    page.goto(f"{settings.streamlit_url}/models")
    page.wait_for_selector(".js-plotly-plot", timeout=60_000)
    _settle(page)
    page.screenshot(path=IMAGES / "streamlit-models.png")


def take_monitoring(page: Page, settings: Settings) -> None:
    page.set_viewport_size({"width": 1440, "height": MONITORING_HEIGHT})
    page.goto(f"{settings.streamlit_url}/monitoring")
    page.get_by_role("heading", name="Who asks?").wait_for(timeout=60_000)
    page.wait_for_selector("[data-testid=stSkeleton]", state="detached", timeout=60_000)
    _settle(page)
    # As long as what it shows: it grows with the alerts that fire.
    bottom = page.locator("[class*='st-key-band-']").last.bounding_box()
    assert bottom is not None
    tall = int(bottom["y"] + bottom["height"]) + 32
    middle = page.get_by_role("heading", name="What has the loop done?").bounding_box()
    assert middle is not None
    for name, height in (("", middle["y"] - 16), ("-all", min(tall, MONITORING_HEIGHT))):
        page.screenshot(
            path=IMAGES / f"streamlit-monitoring{name}.png",
            clip={"x": 0, "y": 0, "width": 1440, "height": height},
        )


def take_mage(page: Page, settings: Settings) -> None:
    page.goto(f"{settings.mage_url}/sign-in")
    page.get_by_placeholder("Email").fill(settings.mage_owner_email)
    page.get_by_placeholder("Password").fill(settings.secret("mage_owner_password"))
    page.keyboard.press("Enter")
    page.wait_for_url(lambda url: "sign-in" not in url, timeout=60_000)
    page.set_viewport_size({"width": 1440, "height": 1060})
    page.goto(f"{settings.mage_url}/pipelines")
    page.get_by_text("retrain", exact=True).first.wait_for(timeout=60_000)
    _settle(page)
    page.screenshot(path=IMAGES / "mage-pipelines.png")
    page.set_viewport_size({"width": 1440, "height": 900})
    page.goto(f"{settings.mage_url}/pipelines/retrain/runs")
    page.get_by_text("Completed").first.wait_for(timeout=60_000)
    _settle(page)
    page.screenshot(path=IMAGES / "mage-retrain-runs.png")
    page.goto(f"{settings.mage_url}/pipelines/retrain/edit")
    page.get_by_text("train/fit_candidate").first.wait_for(timeout=60_000)
    _settle(page)
    page.screenshot(path=IMAGES / "mage-retrain.png")


def take_mlflow(page: Page, settings: Settings) -> None:
    page.goto(f"{settings.mlflow_url}/#/models/{settings.card}")
    page.get_by_text("production").first.wait_for(timeout=60_000)
    # The assistant would take a third of the width.
    page.get_by_role("button", name="Close").last.click()
    _settle(page)
    page.screenshot(path=IMAGES / "mlflow-registry.png")


def take_batch(page: Page, settings: Settings) -> None:
    card = load_card(settings.card)
    with connect(settings=settings) as connection:
        rows = load_future(connection, card, *periods_to_come(connection, card)[2:4])
    columns = card.feature_names
    content = rows[columns].sample(1_500, random_state=0).convert_dtypes().to_csv(index=False)
    lines = content.splitlines()
    lines[6] = lines[6].replace(",", ",soon,", 1)  # a bad row, and it is named
    page.set_viewport_size({"width": 1440, "height": 1500})
    page.goto(f"{settings.streamlit_url}/batch")
    page.get_by_test_id("stFileUploader").locator("input[type=file]").set_input_files(
        FilePayload(name="customers.csv", mimeType="text/csv", buffer="\n".join(lines).encode())
    )
    page.get_by_role("button", name="Score").click(timeout=60_000)
    page.wait_for_selector(".js-plotly-plot", timeout=60_000)
    _settle(page)
    page.screenshot(path=IMAGES / "streamlit-batch.png")


def _settle(page: Page) -> None:
    """Wait for what is drawn late: charts have no event that says that they are done."""
    page.wait_for_timeout(2500)


def main() -> int:
    """Take all pictures; return 2 without a Chromium."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        print("no Chromium on PATH: install one (Debian: apt install chromium)", file=sys.stderr)
        return 2
    settings = get_settings()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_ARGUMENTS)
        for take in (take_try_it, take_models, take_monitoring, take_mage, take_mlflow, take_batch):
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            take(page, settings)
            page.close()
            print(take.__name__)
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
