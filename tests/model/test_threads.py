"""Candidates run side by side: one process must not take the cores that others were promised."""

import json
import os
import subprocess
import sys

import pytest

from mlops.settings import ROOT, Settings
from mlops.stack.services import launch_environment, services
from mlops.training.candidates import load_candidates, make_classifier
from tests.fixtures.postgres import make_settings

pytestmark = pytest.mark.timeout(240)
SETTINGS = Settings(_env_file=None)

# What a block's process does, after what Mage's server has imported before the fork. OpenMP and
# OpenBLAS keep the threads that they have started, so counting afterwards finds them.
LEARN = """
import json, sys, tempfile
from pathlib import Path
import psutil
from mlops.settings import get_settings
from mlops.training.candidates import load_candidates, make_classifier
from mlops.training.fit import learn
from tests.fixtures.churn import churn_card, churn_rows

settings = get_settings()
candidates = load_candidates(settings.candidates)
for candidate in candidates.values():
    make_classifier(candidate, settings.seed)
rows = churn_rows(rows_a_month=120)
threads = {"before": psutil.Process().num_threads()}
with tempfile.TemporaryDirectory() as folder:
    card = churn_card(Path(folder))
    for name, candidate in candidates.items():
        learn(card, candidate, rows, settings)
        threads[name] = psutil.Process().num_threads()
    more = settings.model_copy(update={"training_threads": 2})
    learn(card, candidates["XGBClassifier"], rows, more)
    threads["with two"] = psutil.Process().num_threads()
print(json.dumps(threads))
"""


def test_a_process_as_mage_starts_it_learns_every_candidate_with_one_thread(tmp_path):
    settings = make_settings(tmp_path)
    mage = next(each for each in services(settings) if each.name == "mage")
    inherited = {name: os.environ.pop(name, None) for name in ("OMP_NUM_THREADS",)}
    try:
        environment = launch_environment(mage, settings)
    finally:
        os.environ.update({name: value for name, value in inherited.items() if value})
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LEARN],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    threads = json.loads(done.stdout.splitlines()[-1])
    before, two = threads.pop("before"), threads.pop("with two")
    assert threads == dict.fromkeys(threads, before)
    assert two > before  # else this would see no thread at all


@pytest.mark.parametrize("name", list(load_candidates(SETTINGS.candidates)))
def test_a_candidates_classifier_takes_the_threads_of_the_setting(name):
    candidate = load_candidates(SETTINGS.candidates)[name]
    known = make_classifier(candidate, seed=1, threads=3).get_params()
    assert known.get("n_jobs", 3) == 3
