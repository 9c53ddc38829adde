"""A real Mage: started as the stack starts it, over its API, to the pages that a person sees."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import requests
from pydantic import SecretStr

from mlops.alerting.retrains import close_retrain, open_retrain, unfinished_retrain
from mlops.database import connect
from mlops.dataset.card import load_card
from mlops.dataset.generate import generate_csv
from mlops.orchestration import mage, stuck
from mlops.orchestration.server import PROJECT, mage_command, tokens_set_path
from mlops.serving.exchange import make_folders
from mlops.serving.payload import switch_current
from mlops.settings import ROOT, Settings
from mlops.stack.services import launch_environment, services
from tests.fixtures.postgres import free_ports
from tests.fixtures.predict import PredictServer, make_payload, make_rows
from tests.fixtures.waiting import await_

pytestmark = pytest.mark.timeout(240)

READY_S = 150.0
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


class Server:
    """Mage in a process group of its own, which may be killed and started again."""

    def __init__(self, settings: Settings, log: Path) -> None:
        self.settings, self.log = settings, log
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        service = next(each for each in services(self.settings) if each.name == "mage")
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                mage_command(self.settings),
                # No MLflow runs here: what needs it shall fail at once, not after seven tries.
                env={
                    **launch_environment(service, self.settings),
                    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
                },
                cwd=ROOT,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        await_(tokens_set_path(self.settings).exists, READY_S, "Mage with tokens")

    def kill_server_only(self) -> list[psutil.Process]:
        """Kill the server, as a crash would, and return the processes that it had."""
        assert self.process is not None
        family = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        self.process.wait()
        return family

    def stop(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def project_files() -> dict[str, str]:
    """Checksums of what Mage could write to: project, pipelines, blocks."""
    kinds = ("metadata.yaml", "triggers.yaml")
    paths = [path for kind in kinds for path in PROJECT.rglob(kind)]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def unknown_to_git() -> set[str]:
    done = subprocess.run(
        ["git", "ls-files", "--others", "--exclude-standard", "--", "mlops"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return {line for line in done.stdout.splitlines() if not line.endswith(".py")}


@pytest.fixture(scope="module")
def files_before() -> tuple[dict[str, str], set[str]]:
    return project_files(), unknown_to_git()


@pytest.fixture(scope="module")
def server(
    postgres: Settings,
    tmp_path_factory: pytest.TempPathFactory,
    files_before: tuple[dict[str, str], set[str]],
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("mage")
    data = folder / "sample.csv"
    data.write_bytes(generate_csv(load_card("bank_marketing"), seed=1))
    # A port at which no MLflow is, even if another module has had one started.
    settings = postgres.model_copy(update={"data": str(data), "mlflow_port": free_ports(1)[0]})
    forget_data(settings)  # what the tests of other modules have left in the shared server
    running = Server(settings, folder / "mage.log")
    try:
        running.start()
        yield running
    finally:
        running.stop()


def run(server: Server, pipeline: str, **variables: object) -> mage.Run:
    run_id = mage.trigger_pipeline(pipeline, variables, server.settings)
    return mage.wait_for_run(run_id, 90, settings=server.settings)


def forget_data(settings: Settings) -> None:
    with connect(settings=settings) as connection, connection.cursor() as cursor:
        cursor.execute("DROP TABLE IF EXISTS data.bank_marketing")
        cursor.execute("TRUNCATE ops.ingested_files, ops.trainings, ops.retrains")


@pytest.fixture
def without_data(server: Server) -> None:
    forget_data(server.settings)


@pytest.fixture
def prepared(server: Server) -> None:
    with connect(settings=server.settings) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM ops.ingested_files")
        stored = cursor.fetchone()
    if stored == (0,):
        run(server, "prepare")


def wait_for(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.1)


@pytest.mark.usefixtures("without_data")
def test_training_without_data_fails_and_names_block_reason_and_log(server: Server) -> None:
    with pytest.raises(mage.PipelineFailed) as failed:
        run(server, "train")
    assert failed.value.block == "train/start"
    assert "run the pipeline prepare" in failed.value.reason
    assert failed.value.log_path is not None
    assert "Traceback" in failed.value.log_path.read_text()
    assert str(failed.value.log_path) in str(failed.value)


def outcome_of(server: Server, retrain_id: str) -> tuple[str, str, str]:
    """Cause, outcome and reason of a retrain, once they are written."""
    written: list[tuple[str, str, str]] = []

    def is_written() -> bool:
        with connect(settings=server.settings) as connection, connection.cursor() as cursor:
            cursor.execute(
                "SELECT cause, outcome, reason FROM ops.retrains"
                " WHERE id = %s AND finished_at IS NOT NULL",
                (retrain_id,),
            )
            written[:] = cursor.fetchall()
        return bool(written)

    wait_for(is_written)
    return written[0]


@pytest.mark.usefixtures("without_data")
def test_a_retrain_that_fails_is_written_as_failed_with_its_reason(server: Server) -> None:
    with pytest.raises(mage.PipelineFailed):
        run(server, "retrain", retrain_id="r-1", cause="a test")
    cause, outcome, reason = outcome_of(server, "r-1")
    assert (cause, outcome) == ("a test", "failed")
    assert "block retrain/open" in reason
    assert "run the pipeline prepare" in reason


@pytest.mark.usefixtures("without_data")
def test_prepare_runs_over_the_api_and_stores_the_rows(server: Server) -> None:
    said: list[str] = []
    run_id = mage.trigger_pipeline("prepare", {}, server.settings)
    done = mage.wait_for_run(run_id, 90, said.append, server.settings)
    assert done.blocks == dict.fromkeys(
        ("prepare/ingest", "prepare/store", "prepare/split_by_time"), "completed"
    )
    assert said
    with connect(settings=server.settings) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT rows, (SELECT count(*) FROM data.bank_marketing) FROM ops.ingested_files"
        )
        ((rows, stored),) = cursor.fetchall()
    assert rows == stored > 1000


@pytest.mark.usefixtures("prepared")
def test_a_retrain_whose_parallel_blocks_fail_is_written_as_failed(server: Server) -> None:
    """Without MLflow no candidate can be fitted."""
    with pytest.raises(mage.PipelineFailed) as failed:
        run(server, "retrain", retrain_id="r-2")
    assert str(failed.value.block).startswith("train/fit_candidate:")
    _, outcome, reason = outcome_of(server, "r-2")
    assert outcome == "failed"
    assert "block train/fit_candidate" in reason
    assert server.settings.mlflow_url.removeprefix("http://").partition(":")[2] in reason


@pytest.mark.usefixtures("prepared")
def test_prepare_again_is_no_new_data(server: Server) -> None:
    run(server, "prepare")
    with connect(settings=server.settings) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM ops.ingested_files")
        assert cursor.fetchone() == (1,)


def test_a_run_has_each_block_once(server: Server) -> None:
    """Made by API and scheduler at once, blocks stood there twice and ran twice."""
    ids = [mage.trigger_pipeline("prepare", {}, server.settings) for _ in range(4)]
    for run_id in ids:
        mage.wait_for_run(run_id, 90, settings=server.settings)
    with connect("mage", settings=server.settings) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT pipeline_run_id, count(*), count(DISTINCT block_uuid) FROM block_run"
            " WHERE pipeline_run_id = ANY(%s) GROUP BY 1",
            (ids,),
        )
        assert sorted(cursor.fetchall()) == [(run_id, 3, 3) for run_id in sorted(ids)]


def test_a_wrong_token_is_an_error_although_mage_answers_200(server: Server) -> None:
    wrong = server.settings.model_copy(update={"mage_trigger_token": SecretStr("wrong")})
    with pytest.raises(mage.MageError, match="Invalid token"):
        mage.trigger_pipeline("prepare", {}, wrong)


def test_a_trigger_that_a_person_made_keeps_its_token(server: Server) -> None:
    with connect("mage", settings=server.settings) as connection, connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO pipeline_schedule"
            " (created_at, updated_at, name, pipeline_uuid, schedule_type, status, token,"
            "  repo_path)"
            " VALUES (now(), now(), 'mine', 'prepare', 'API', 'INACTIVE', 'my own', %s)",
            (str(PROJECT),),
        )
    mage.set_trigger_tokens(server.settings)
    with connect("mage", settings=server.settings) as connection, connection.cursor() as cursor:
        cursor.execute(
            "DELETE FROM pipeline_schedule WHERE name = 'mine' AND pipeline_uuid = 'prepare'"
            " RETURNING token"
        )
        assert cursor.fetchone() == ("my own",)


def test_an_unknown_pipeline_is_an_error_that_names_the_known(server: Server) -> None:
    with pytest.raises(mage.MageError, match="prepare, train, deploy"):
        mage.trigger_pipeline("prepair", {}, server.settings)


def test_an_unknown_run_is_an_error(server: Server) -> None:
    with pytest.raises(mage.MageError, match="no run 999999"):
        mage.run_status(999_999, server.settings)


def test_nobody_gets_in_without_logging_in(server: Server) -> None:
    answer = requests.get(f"{server.settings.mage_url}/api/pipelines", timeout=30).json()
    assert "pipelines" not in answer
    login = requests.post(
        f"{server.settings.mage_url}/api/sessions",
        json={"session": {"email": "admin@admin.com", "password": "admin"}},
        timeout=30,
    ).json()
    assert "error" in login, "Mage's default owner is let in"


def beside(server: Server, module: str) -> list[psutil.Process]:
    """Return the processes below Mage's server that run a module."""
    assert server.process is not None
    found = []
    for each in psutil.Process(server.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has ended since
            found += [each] if module in each.cmdline() else []
    return found


def test_a_file_in_the_inbox_is_scored_by_itself_and_nothing_runs_without_one(
    server: Server,
) -> None:
    """Its watcher was killed before: it is started again."""
    settings = server.settings
    make_payload(settings.payloads_dir, "1")
    switch_current(settings.payloads_dir, "1")
    assert server.process is not None

    (killed,) = await_(lambda: beside(server, "mlops.orchestration.inbox"), 20, "the watcher runs")
    killed.kill()
    api = PredictServer(settings)
    try:
        api.start()
        make_folders(settings)
        frame = make_rows(load_card("bank_marketing"), 20).drop(columns=["target", "period"])
        frame.to_csv(settings.exchange_dir / "inbox" / "rows.csv", index=False)
        result = settings.exchange_dir / "outbox" / "rows.csv"
        await_(result.exists, 60, "the file is scored")
    finally:
        api.stop()
    assert len(result.read_text().splitlines()) == 21

    def statuses() -> list[str]:
        with connect("mage", settings=settings) as connection, connection.cursor() as cursor:
            cursor.execute(
                "SELECT lower(status::text) FROM pipeline_run WHERE pipeline_uuid = 'score'"
            )
            return [status for (status,) in cursor.fetchall()]

    await_(lambda: statuses() == ["completed"], 30, lambda: f"one run of score: {statuses()}")
    assert not list((settings.exchange_dir / "inbox").iterdir())


@contextlib.contextmanager
def mlflow_that_never_answers(settings: Settings) -> Iterator[None]:
    """Connections are taken, and nothing comes: what asks it hangs."""
    with socket.create_server((settings.host, settings.mlflow_port), backlog=100):
        yield


def working(server: Server, run_id: int) -> dict[str, stuck.Worker]:
    """Processes that work for a run, by their names."""
    assert server.process is not None
    names = {
        name
        for each in stuck.read_runs(server.settings)
        if each.id == run_id
        for name in each.processes
    }
    workers = stuck.workers_of(psutil.Process(server.process.pid))
    return {worker.name: worker for worker in workers if worker.name in names}


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize(
    ("pipeline", "block"),
    [("retrain", "train/fit_candidate"), ("test", "test/score")],
)
def test_a_run_that_hangs_is_failed_and_the_next_one_runs(
    server: Server, pipeline: str, block: str
) -> None:
    """One of whose blocks has a process of its own, and one that runs in one process."""
    settings, said = server.settings, list[str]()
    assert server.process is not None
    watcher = stuck.StuckWatcher(settings, server.process.pid, said.append)
    with mlflow_that_never_answers(settings):
        variables = {"retrain_id": "r-hangs"} if pipeline == "retrain" else {}
        run_id = mage.trigger_pipeline(pipeline, variables, settings)

        def hangs() -> bool:
            blocks = mage.run_status(run_id, settings).blocks
            at_work = [name for name, state in blocks.items() if state == "running"]
            return any(name.startswith(block) for name in at_work) and bool(working(server, run_id))

        await_(hangs, 60, lambda: str(mage.run_status(run_id, settings)))
        workers = working(server, run_id)
        watcher.look(0.0)
        watcher.look(settings.mage_block_limit_s - 1.0)
        assert mage.run_status(run_id, settings).status == "running"
        # Some of its blocks may have begun since the first look, which puts it off by a limit.
        looks = itertools.count(1)

        def found() -> list[str]:
            watcher.look(next(looks) * (settings.mage_block_limit_s + 1.0))
            return said

        await_(found, 30, lambda: str(mage.run_status(run_id, settings)))
    ended = mage.run_status(run_id, settings)
    assert ended.status == "failed"

    def settled() -> bool:
        watcher.look(next(looks) * (settings.mage_block_limit_s + 1.0))
        blocks = mage.run_status(run_id, settings).blocks
        return not {"running", "queued", "initial"} & set(blocks.values())

    await_(settled, 20, lambda: str(mage.run_status(run_id, settings)))
    (line,) = said
    assert f"run {run_id} of {pipeline}" in line
    assert block in line
    await_(
        lambda: not [each for each in workers.values() if psutil.pid_exists(each.pid)],
        20,
        "its processes are gone",
    )
    watcher.look(next(looks) * (settings.mage_block_limit_s + 1.0))
    assert len(said) == 1
    if pipeline == "retrain":
        _, outcome, reason = outcome_of(server, "r-hangs")
        assert (outcome, "nothing has moved" in reason) == ("failed", True)
    assert run(server, "prepare").status == "completed"
    assert mage.run_status(run_id, settings).status == "failed"


def test_a_block_whose_process_dies_each_time_is_given_up(server: Server) -> None:
    """As one does that needs more memory than there is; Mage would begin it anew for ever."""
    settings, said = server.settings, list[str]()
    assert server.process is not None
    watcher = stuck.StuckWatcher(settings, server.process.pid, said.append)
    with mlflow_that_never_answers(settings):
        run_id = mage.trigger_pipeline("test", {}, settings)
        killed: set[int] = set()
        for life in range(stuck.MOST_DEATHS):
            assert mage.run_status(run_id, settings).status != "failed"
            name = stuck.run_process(run_id)

            def alive(name: str = name) -> stuck.Worker | None:
                found = working(server, run_id).get(name)
                return found if found and found.pid not in killed else None

            worker = await_(alive, 30, "Mage begins anew")
            watcher.look(float(life))
            killed.add(worker.pid)
            psutil.Process(worker.pid).kill()
        await_(lambda: not [pid for pid in killed if psutil.pid_exists(pid)], 20, "they are gone")
        watcher.look(10.0)
    assert mage.run_status(run_id, settings).status == "failed"
    (line,) = said
    assert "its process has died 3 times" in line


def test_a_retrain_whose_run_is_over_or_gone_does_not_block_the_next(server: Server) -> None:
    """Nobody wrote its outcome: Postgres was away just then, or a person has deleted the run."""
    settings, said = server.settings, list[str]()
    assert server.process is not None
    watcher = stuck.StuckWatcher(settings, server.process.pid, said.append)
    with connect(settings=settings) as connection:
        open_retrain(connection, load_card(settings.card), "r-gone", "a test")
    watcher.look(0.0)
    watcher.look(stuck.GRACE_S - 1)
    assert said == []
    watcher.look(stuck.GRACE_S + 1)
    _, outcome, reason = outcome_of(server, "r-gone")
    assert (outcome, reason) == (
        "failed",
        "its run is gone in Mage, and nobody wrote the outcome",
    )
    assert len(said) == 1


def test_a_run_whose_retrain_was_given_up_does_not_train_beside_the_next(server: Server) -> None:
    settings, said = server.settings, list[str]()
    assert server.process is not None
    watcher = stuck.StuckWatcher(settings, server.process.pid, said.append)
    with mlflow_that_never_answers(settings):
        run_id = mage.trigger_pipeline("retrain", {"retrain_id": "r-late"}, settings)
        await_(lambda: working(server, run_id), 60, "it is at work")
        with connect(settings=settings) as connection:
            await_(lambda: unfinished_retrain(connection, load_card(settings.card)), 30)
            close_retrain(connection, "r-late", "failed", "not finished after 3600 s")
        watcher.look(0.0)
        watcher.look(stuck.GRACE_S - 1)
        assert said == []
        watcher.look(stuck.GRACE_S + 1)
    assert mage.run_status(run_id, settings).status == "failed"
    (line,) = said
    assert "its retrain failed: not finished after 3600 s" in line


def test_the_watcher_of_stuck_runs_runs_beside_mage(server: Server) -> None:
    await_(lambda: beside(server, "mlops.orchestration.stuck"), 20, "the watcher runs")


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
def test_a_person_logs_in_and_sees_the_pipelines_with_their_descriptions(server: Server) -> None:
    from playwright.sync_api import expect, sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1500, "height": 1200})
        page.goto(f"{server.settings.mage_url}/sign-in")
        page.locator("input:not([type=password])").first.fill(server.settings.mage_owner_email)
        page.locator("input[type=password]").fill(server.settings.secret("mage_owner_password"))
        page.keyboard.press("Enter")
        page.wait_for_url("**/overview**", timeout=60_000)
        page.goto(f"{server.settings.mage_url}/pipelines")
        for name in mage.PIPELINES:
            expect(page.get_by_text(name, exact=True).first).to_be_visible(timeout=60_000)
        expect(page.get_by_text("the same file is no new data")).to_be_visible()
        page.goto(f"{server.settings.mage_url}/pipelines/train/edit")
        for block in ("train/start", "train/fit_candidate", "train/leaderboard"):
            expect(page.get_by_text(block, exact=True).first).to_be_visible(timeout=60_000)
        browser.close()


def test_mage_writes_nothing_into_the_repository(
    server: Server, files_before: tuple[dict[str, str], set[str]]
) -> None:
    """Last but for the crash: pipelines have run, and pages been looked at."""
    assert project_files() == files_before[0]
    assert unknown_to_git() <= files_before[1]


def test_a_crash_leaves_no_process_and_the_run_goes_on_after_the_restart(server: Server) -> None:
    run_id = mage.trigger_pipeline("prepare", {}, server.settings)
    wait_for(lambda: "running" in mage.run_status(run_id, server.settings).blocks.values())
    family = server.kill_server_only()
    assert len(family) >= 3  # scheduler, queue, worker
    _, alive = psutil.wait_procs(family, timeout=15)
    assert not [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]
    with pytest.raises(mage.MageUnavailable, match="does not answer"):
        mage.trigger_pipeline("prepare", {}, server.settings)
    server.start()
    assert mage.wait_for_run(run_id, 90, settings=server.settings).status == "completed"
