"""Judges of all samples together, in a search for lambda: of tuned weights alone, against pretrained samples."""

from __future__ import annotations

from typing import Any

import pytest

from genbo.cli.commands import tune
from genbo.cli.job.job import JobMistakes, read_job
from genbo.cli.plan.counts import plan
from tests.cli.test_judges import SEARCH, judged_by

FID = {"kind": "fid", "features": "pixels"}
TUNED: dict[str, Any] = {
    **SEARCH,
    "data": "pretrained",
    "finetune": {"steps": 40, "also": []},
    "evaluate": {"samples": 4096, "judges": [*SEARCH["evaluate"]["judges"], FID]},
}


def test_the_distance_of_tuned_weights_to_the_pretrained_law_is_the_closed_form(workplace):
    """N(1 / lambda, 1) is at 1 / lambda^2 from N(0, 1); 128 samples of each side lean by some 0.05."""
    document = tune.tune(TUNED).result().document
    lam = document["phi"]["regularization"]["tuned"]
    rows = {row["factor"]: row for row in document["search"]["weights"]}
    found = rows[1.0]["judges"]["fid"]
    assert found["start"] == pytest.approx(0, abs=0.1)
    assert -found["tuned"] == pytest.approx(1 / lam**2, rel=0.35)
    assert found["verdict"] == "worse" and set(rows[1.0]["judges"]) == {"quadratic-2", "fid"}
    assert set(document["judges"]) == {"quadratic-2"}, "a bank that is weighted has no set"
    planned = plan(read_job(TUNED))
    assert document["cost"]["reward_images"] == planned.reward_images
    without = plan(read_job({**TUNED, "data": None, "evaluate": SEARCH["evaluate"]}))
    assert planned.image_forwards - without.image_forwards == 128 * 32, "the reference is drawn once"
    assert "fid" in next(remark["text"] for remark in document["trust"] if "tuned at lambda" in remark["text"])


@pytest.mark.parametrize(
    ("own", "sentence"),
    [
        ({"finetune": "none"}, "fid scores all samples together, so in a search for lambda it judges tuned weights"),
        ({"data": None}, "like data: my-images, or write data: pretrained"),
        ({"reward": FID}, "fid scores all samples together, but a search for lambda weighs each by itself"),
        ({"evaluate": SEARCH["evaluate"]}, "data: nothing in this job uses data"),
    ],
)
def test_where_weights_cannot_be_judged(own, sentence):
    with pytest.raises(JobMistakes, match="(?s)" + sentence):
        read_job({**TUNED, **own})


def test_pretrained_samples_are_for_a_search_for_lambda():
    with pytest.raises(JobMistakes, match="data: pretrained is for a search for lambda"):
        read_job({**judged_by(FID), "data": "pretrained"})
    job = {"version": 1, "data": "pretrained", "model": {"kind": "unet"}, "tune": {"noise_schedule": {}}}
    learns = {**job, "lower": {"kind": "denoising"}, "reward": {"kind": "kid", "features": "digits-features"}}
    with pytest.raises(JobMistakes, match=r"pretrained is for a search for lambda|no pretrained samples"):
        read_job(learns)


def test_a_folder_of_that_name_is_written_as_a_path(tmp_path):
    from genbo.diffusion.data import Data

    assert Data("pretrained").of_model and not Data(str(tmp_path / "pretrained")).of_model
    assert Data("pretrained").mistakes() == []
