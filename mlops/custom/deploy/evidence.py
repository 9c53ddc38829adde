"""Numbers, pictures and model card of what is in production and staging; the loop never waits."""

from mlops.evidence.loop import write_evidence_of_loop

if "custom" not in globals():
    from mage_ai.data_preparation.decorators import custom


@custom
def show_evidence(*_upstream, **_variables):
    return {"evidence": write_evidence_of_loop(print)}
