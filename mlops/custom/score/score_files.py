"""Score each finished file of the inbox once; a file that cannot be read is set aside."""

from mlops.database import connect
from mlops.serving.scoring import score_inbox
from mlops.settings import get_settings

if "custom" not in globals():
    from mage_ai.data_preparation.decorators import custom


@custom
def score_files(*_upstream, **_variables):
    with connect() as connection:
        files = score_inbox(connection, get_settings(), print)
    return {"files": files}
