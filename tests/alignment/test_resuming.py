"""Resuming within a rollout: the stored scores are valid only for the settings by which they were computed."""

import re

import pytest

from lit_illada.alignment.resuming import check_stored_rollout
from lit_illada.commands import resume
from lit_illada.config import load
from lit_illada.errors import UserError
from lit_illada.schema import to_tree
from lit_illada.training.config.trainer import TrainerConfig


def tree(*overrides):
    return to_tree(load("align", ["alignment=espo", *overrides]))


CHANGES = {
    "alignment.estimator.num_pairs was 2 and would be 1": ["alignment.estimator.num_pairs=1"],
    "alignment.estimator.name was coupled and would be elbo": ["alignment/estimator=elbo"],
    "alignment.form.name was clip and would be reinforce": ["alignment/form=reinforce"],
    "alignment.regulariser.name was kl_ref and would be kl_old": ["alignment/regulariser=kl_old"],
    "alignment.advantage.name was centred and would be standardised": ["alignment/advantage=standardised"],
    "alignment.masked_prompt was 0.0 and would be 0.15": ["alignment.masked_prompt=0.15"],
    "alignment.fresh_noise was False and would be True": ["alignment.fresh_noise=true"],
    "alignment.share_noise was False and would be True": ["alignment.share_noise=true"],
    "alignment.score_after_eos was False and would be True": ["alignment.score_after_eos=true"],
    "alignment.temperature_in_score was False and would be True": ["alignment.temperature_in_score=true"],
    "alignment.reward.terms was": ["alignment.reward.terms=[{term: length}]"],
}


@pytest.mark.parametrize("message", CHANGES)
def test_settings_of_the_stored_rollout_cannot_change_within_it(message):
    with pytest.raises(UserError, match=f"step 3 lies within a rollout.*{re.escape(message)}.*resume without"):
        check_stored_rollout(tree(), tree(*CHANGES[message]), 3)


def test_an_alignment_with_another_batch_is_another_run(tmp_path):
    """The batch follows from other keys, also where that of the run is the default of trainer.batch_rows."""
    saved = to_tree(load("align", ["prompts_per_step=8", "alignment.group_size=4"]).resolve())
    assert saved["trainer"]["batch_rows"] == TrainerConfig.batch_rows
    with pytest.raises(UserError, match=r"trainer\.batch_rows was 32 in the run and would be 64"):
        resume._compare(load("align", ["prompts_per_step=16", "alignment.group_size=4"]).resolve(), saved, tmp_path)


def test_the_temperature_matters_only_where_it_is_scored():
    check_stored_rollout(tree(), tree("generation.temperature=0.5"), 1)
    scored = "alignment.temperature_in_score=true"
    with pytest.raises(UserError, match=r"generation.temperature was 1.0 and would be 0.5"):
        check_stored_rollout(tree(scored), tree(scored, "generation.temperature=0.5"), 1)


def test_settings_that_apply_to_stored_scores_as_to_new_ones_may_change():
    free = ["alignment.form.low=0.1", "alignment.regulariser.coefficient=0.01", "alignment.reward.time_limit_s=60"]
    check_stored_rollout(tree(), tree(*free, "alignment.recompute_views=true", "alignment.per_draw=true"), 1)


def test_a_setting_that_an_older_checkpoint_lacks_is_not_compared():
    saved = tree()
    del saved["alignment"]["share_noise"]
    check_stored_rollout(saved, tree("alignment.share_noise=true"), 1)
