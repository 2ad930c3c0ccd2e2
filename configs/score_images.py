"""Images, rated and ranked by models that are tuned from CLIP.

  python -m jaxpref.launch --config=configs/score_images.py \\
    --workdir=runs/ranked --config.data.path='runs/*/samples/samples.jsonl' \\
    --config.score.models.pickscore=FOLDER

One image of each prompt by several models, made with configs/sample_sdxl.py,
becomes a ranked list as those of RankDPO (Karthik et al. 2024,
https://arxiv.org/abs/2410.18013): with several models that score, an image's
`votes` are the share of duels that it wins. The paper's scorers are HPSv2.1,
MPS, PickScore, VQAScore and ImageReward, of which CLIP's kin are read here. To
relabel pairs that people judged, as SmPO does by PickScore (Lu et al. 2025,
https://arxiv.org/abs/2506.02698), name their file in `config.data.path`.

`runs/ranked/scored.parquet` is then the `config.data.path` of
configs/rank_dpo_sdxl.py (with `--config.pair.axis=votes`) or of
configs/smpo_sdxl.py (`--config.pair.axis=pickscore`). A command that was
stopped goes on.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.stages = ("score",)
  config.model = {"family": "sdxl"}
  return config
