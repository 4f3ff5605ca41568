"""`roboalign plan`: memory, disk, time and money of a recipe's trainings on given GPUs, before
anything starts.

What is known is computed: shapes from the model's configuration, without its weights. What is not
known (how long questions and answers are, how well a GPU is used) is assumed, printed with the
result, and can be set with --assume.
"""

from roboalign.plan.arithmetic import Gpu
from roboalign.plan.head_cost import head_cost
from roboalign.plan.model import Assumptions, Model, model_of
from roboalign.plan.rl_cost import rl_cost
from roboalign.plan.sft_cost import imitation_cost, sft_cost
from roboalign.plan.stage_cost import CostInputs, StageCost
from roboalign.run.arms import backbones
from roboalign.run.recipe import Recipe

COSTS = {"sft": sft_cost, "imitation": imitation_cost, "rl": rl_cost}
"""Cost functions by the kind of a backbone's training (`Backbone.like`), in the order in which they
run."""


def plan_costs(
    recipe: Recipe, gpu: Gpu, count: int, assumed: Assumptions
) -> tuple[Model, list[StageCost]]:
    """Return the recipe's backbone and what each kind of training costs, in the order in which they
    run.

    Raises RoboAlignError as model_of does, and if a vLLM server's share of a GPU cannot hold its
    weights.
    """
    asked = CostInputs(recipe, model_of(recipe, assumed), gpu, count, assumed)
    trained = [(backbone.like, backbone.stage) for backbone in backbones(recipe.arms)]
    stages = []
    for like, cost in COSTS.items():
        if names := [stage for own, stage in trained if own == like]:
            stages.append(cost(asked, names))
    heads = head_cost(asked)
    return asked.model, [*stages, heads] if heads.runs else stages
