"""A decoder shown worse and worse attempts before a good one improves from trial to trial.

Liu and Abbeel 2023 (arXiv 2305.16554): offline trajectories of one task are chained by ascending
return, each relabelled with the largest return of the chain, and the last is imitated. Here: a grid
of 5 × 5 whose goal is hidden. The gain comes from what earlier trials tell of the goal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int

from saturation.plots.colours import BLUE, GREEN, ORANGE, PURPLE, VERMILION
from saturation.plots.panels import Axis, Line, Panel, Picture
from saturation.studies.base import Part, Results, Row, Stacked, Study, claim, control

SIDE, START, STEPS, TRIALS = 5, (2, 2), 9, 3
CELLS, NO_ACTION = SIDE * SIDE, 5
MOVES = np.array([(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)])
# The cells at distance 3 from the start: the best return is 7.
GOALS = np.array(
    [(2 + a, 2 + b) for a in (-2, -1, 1, 2) for b in (-2, -1, 1, 2) if abs(a * b) == 2]
)
NOISES = (1.0, 0.8, 0.6)  # shares of random moves in the offline data
OF_TASK = 300
TARGET = 5
EPISODES = 300
TRAINING_STEPS, BATCH, RATE = 2500, 64, 3e-3
FEATURES = CELLS + (NO_ACTION + 1) + 3 + STEPS + TRIALS


@dataclass(frozen=True)
class Agent:
    """How an agent is trained and tried.

    Attributes:
      chained: on chains of up to three trajectories (the agentic transformer), or on single ones
        (the decision transformer).
      conditioned: whether it is told the return to go; else it clones behaviour.
      ordered: whether chains ascend.
      one_goal: whether all data and all trials have the same goal.
    """

    chained: bool = True
    conditioned: bool = True
    ordered: bool = True
    one_goal: bool = False


class Trajectories(NamedTuple):
    """Steps of trajectories: the cell before each move, the move, and the reward after it."""

    cells: Int[np.ndarray, "trajectories steps"]
    actions: Int[np.ndarray, "trajectories steps"]
    rewards: Float64[np.ndarray, "trajectories steps"]

    @property
    def returns(self) -> Float64[np.ndarray, " trajectories"]:
        """The sum of the rewards of each."""
        return self.rewards.sum(axis=1)


def move(
    place: Int[np.ndarray, "episodes 2"], action: Int[np.ndarray, " episodes"]
) -> Int[np.ndarray, "episodes 2"]:
    """Return the places after a move, which walls stop."""
    return np.clip(place + MOVES[action], 0, SIDE - 1)


def walk(goal: Int[np.ndarray, " 2"], count: int, generator: np.random.Generator) -> Trajectories:
    """Return walks to a goal with shares of random moves from `NOISES`."""
    noise = np.resize(NOISES, count)
    place = np.broadcast_to(START, (count, 2))
    cells, actions, rewards = [], [], []
    for _ in range(STEPS):
        apart = np.abs(goal - (place[:, None] + MOVES)).sum(axis=-1)
        toward = (apart + 0.1 * generator.random(apart.shape)).argmin(axis=1)
        action = np.where(
            generator.random(count) < noise, generator.integers(5, size=count), toward
        )
        cells.append(place @ (SIDE, 1))
        place = move(place, action)
        actions.append(action)
        rewards.append((place == goal).all(axis=1).astype(float))
    return Trajectories(*(np.stack(each, axis=1) for each in (cells, actions, rewards)))


def featured(
    agent: Agent,
    cells: Int[np.ndarray, "chains tokens"],
    actions: Int[np.ndarray, "chains tokens"],
    rewards: Float64[np.ndarray, "chains tokens"],
    targets: Float64[np.ndarray, " chains"],
) -> np.ndarray:
    """Return tokens (chains, tokens, features) float32, one a step, of chains of whole trials.

    A token holds the cell, the action and the reward before, the return to go over the length, the
    completion flag, the step and the trial.
    """
    count, length = cells.shape
    step, trial = np.arange(length) % STEPS, np.arange(length) // STEPS
    first = step == 0
    last_action = np.where(first, NO_ACTION, np.roll(actions, 1, axis=1))
    last_reward = np.where(first, 0, np.roll(rewards, 1, axis=1))
    by_trial = rewards.reshape(count, -1, STEPS)
    before = (np.cumsum(by_trial, axis=-1) - by_trial).reshape(count, length)
    to_go = (targets[:, None] - before) / STEPS if agent.conditioned else np.zeros(cells.shape)
    reached = (step == STEPS - 1) & (before >= targets[:, None])
    at_each = lambda index, size: np.broadcast_to(np.eye(size)[index], (count, length, size))
    columns = [last_reward, to_go, reached if agent.conditioned else np.zeros(cells.shape)]
    parts = [
        np.eye(CELLS)[cells],
        np.eye(NO_ACTION + 1)[last_action],
        np.stack(columns, axis=-1),
        at_each(step, STEPS),
        at_each(trial, TRIALS),
    ]
    return np.concatenate(parts, axis=-1).astype(np.float32)


def chains(
    agent: Agent, data: Sequence[Trajectories], generator: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield batches: tokens, actions, and which tokens are of the last trajectory of a chain."""
    trials = TRIALS if agent.chained else 1
    while True:
        tasks = generator.integers(len(data), size=BATCH)
        lengths = generator.integers(1, trials + 1, size=BATCH)
        picked = generator.integers(OF_TASK, size=(BATCH, trials))
        fields = [np.stack([one[i] for one in data])[tasks[:, None], picked] for i in range(3)]
        returns = np.where(np.arange(trials) < lengths[:, None], fields[2].sum(axis=-1), -1)
        if agent.ordered:
            order = np.argsort(np.where(returns < 0, np.inf, returns), axis=1, kind="stable")
            fields = [np.take_along_axis(each, order[..., None], axis=1) for each in fields]
        cells, actions, rewards = (each.reshape(BATCH, -1) for each in fields)
        of_last = np.repeat(np.arange(trials) == lengths[:, None] - 1, STEPS, axis=1)
        tokens = featured(agent, cells, actions, rewards, returns.max(axis=1))
        yield tokens, actions.astype(np.int32), of_last.astype(np.float32)


def train_agent(agent: Agent, data: Sequence[Trajectories], seed: int) -> Any:
    """Return the jitted policy: tokens -> logits of the five moves at each."""
    import jax
    import jax.numpy as jnp
    import optax

    from saturation.studies.decoder import Decoder, train

    def loss(logits: Any, _: Any, actions: Any, counted: Any) -> Any:
        each = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(actions))
        return (each * counted).sum() / jnp.asarray(counted).sum()

    model = Decoder(outputs=len(MOVES))
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(optax.cosine_decay_schedule(RATE, TRAINING_STEPS)),
    )
    batches = chains(agent, data, np.random.default_rng([seed, 1]))
    params = train(model, loss, batches, TRAINING_STEPS, optimizer, seed)
    return jax.jit(lambda tokens: model.apply(params, tokens))


def play(
    agent: Agent,
    policy: Any,
    goals: Int[np.ndarray, "episodes 2"],
    generator: np.random.Generator,
    strangers: bool = False,
) -> Float64[np.ndarray, "episodes trials"]:
    """Return the returns of `TRIALS` trials each, whose moves are drawn from the policy.

    Args:
      agent: who plays; one that is not chained forgets every trial.
      policy: of `train_agent`.
      goals: the task of each episode.
      generator: of the moves.
      strangers: whether all trials but the last were played for other episodes' goals.
    """
    count, context = len(goals), STEPS * (TRIALS if agent.chained else 1)
    returns = np.zeros((count, TRIALS))
    cells, actions = np.zeros((2, count, context), int)
    rewards, targets = np.zeros((count, context)), np.full(count, float(TARGET))
    for trial in range(TRIALS):
        at = trial * STEPS if agent.chained else 0
        aims = np.roll(goals, 1, axis=0) if strangers and trial < TRIALS - 1 else goals
        place = np.broadcast_to(START, (count, 2))
        for step in range(STEPS):
            cells[:, at + step] = place @ (SIDE, 1)
            logits = np.asarray(policy(featured(agent, cells, actions, rewards, targets)))
            noisy = logits[:, at + step] + generator.gumbel(size=(count, len(MOVES)))
            actions[:, at + step] = noisy.argmax(axis=1)
            place = move(place, actions[:, at + step])
            rewards[:, at + step] = (place == aims).all(axis=1)
        returns[:, trial] = rewards[:, at : at + STEPS].sum(axis=1)
    return returns


def simulate(agent: Agent, seeds: Sequence[int]) -> Iterator[Part]:
    """Yield the mean return of each trial, the best of three's, and those of the data."""
    for seed in seeds:
        generator = np.random.default_rng(seed)
        goals = GOALS[:1] if agent.one_goal else GOALS
        data = [walk(goal, OF_TASK, generator) for goal in goals]
        policy = train_agent(agent, data, seed)
        tried = goals[np.arange(EPISODES) % len(goals)]
        returns = play(agent, policy, tried, generator)
        found = {
            "returns": returns.mean(axis=0),
            "success": (returns > 0).mean(axis=0),
            "best": returns.max(axis=1).mean(),
            "data": np.mean([one.returns.mean() for one in data]),
        }
        if agent == AGENTIC:
            found["strangers"] = play(agent, policy, tried, generator, True).mean(axis=0)
        yield found


# --- the study ----------------------------------------------------------------------------------

AGENTIC = Agent()
SINGLE = Agent(chained=False)
CLONE = Agent(chained=False, conditioned=False)
UNORDERED = Agent(ordered=False)
KNOWN, KNOWN_SINGLE = Agent(one_goal=True), Agent(chained=False, one_goal=True)
NAMES = {
    AGENTIC: "agentic transformer",
    SINGLE: "decision transformer",
    CLONE: "behaviour cloning",
    UNORDERED: "chains not sorted",
    KNOWN: "agentic transformer, one fixed goal",
    KNOWN_SINGLE: "decision transformer, one fixed goal",
}
MORE = (1.7, np.inf)


def _last(part: Stacked) -> Float64[np.ndarray, " seeds"]:
    return part["returns"][:, -1]


def _growth(part: Stacked) -> Float64[np.ndarray, " seeds"]:
    return part["returns"][:, -1] / part["returns"][:, 0]


def judge(results: Results) -> Iterator[Row]:
    """Yield the rows: growth over trials, comparisons, and what must not grow."""
    agentic, single = results[AGENTIC], results[SINGLE]
    what = "return of trial 3 over that of trial 1"
    yield claim(what, NAMES[AGENTIC], _growth(agentic), MORE)
    yield claim(what, NAMES[SINGLE], _growth(single), (0.75, 1.25), "1")
    for other in (SINGLE, UNORDERED, KNOWN):
        yield control(what, NAMES[other], _growth(results[other]), MORE)
    strangers = agentic["strangers"][:, -1]
    says = "return of trial 3 over the decision transformer's"
    yield claim(says, NAMES[AGENTIC], _last(agentic) / _last(single), MORE)
    where = f"{NAMES[AGENTIC]}, trials 1 and 2 of another task"
    yield control(says, where, strangers / _last(single), MORE)
    yield claim(says, where, strangers / _last(single), (0, 1.3), claimed="no")
    of_data = _last(agentic) / agentic["data"]
    yield claim("return of trial 3 over the data's mean", NAMES[AGENTIC], of_data, MORE)
    cloned = _last(results[CLONE]) / _last(single)
    yield claim(says, NAMES[CLONE], cloned, (0, 0.8))
    gain = _last(results[KNOWN]) - _last(results[KNOWN_SINGLE])
    where = "one fixed goal"
    what = "return of trial 3 minus the decision transformer's"
    yield claim(what, where, gain, (-0.2, 0.2), "0", "conditional")
    yield control(what, f"{where}: a gain", gain, (0.5, np.inf))
    unordered = results[UNORDERED]
    what = "return of trial 3 over that of chains not sorted"
    yield claim(what, NAMES[AGENTIC], _last(agentic) / _last(unordered).mean(), MORE, claimed="no")
    best = agentic["best"] / unordered["best"].mean()
    what = "best of 3 trials over that of chains not sorted"
    yield claim(what, NAMES[AGENTIC], best, MORE, claimed="no")


def pictures(results: Results) -> Iterator[Picture]:
    """Yield the returns by trial."""
    trials = np.arange(1.0, TRIALS + 1)

    def line(agent: Agent, colour: str, key: str = "returns", name: str = "") -> Line:
        each = results[agent][key]
        low, high = each.min(axis=0), each.max(axis=0)
        return Line(
            trials, each.mean(axis=0), name or NAMES[agent], colour, symbol="circle",
            low=low, high=high, bars=True,
        )  # fmt: skip

    hidden = [
        line(AGENTIC, BLUE),
        line(AGENTIC, ORANGE, "strangers", "trials 1 and 2 of another task"),
        line(UNORDERED, PURPLE),
        line(SINGLE, VERMILION),
        line(CLONE, GREEN),
    ]
    known = [line(KNOWN, BLUE), line(KNOWN_SINGLE, VERMILION)]
    mean_return, fixed = Axis("mean return"), Axis("mean return", limits=(0, 7))
    yield Picture(
        "agentic_transformer",
        "Earlier trials help where they tell what the weights do not know",
        "Returns by trial",
        "Mean return of 300 episodes; bars from the lowest to the highest seed. Left: the goal is "
        "hidden, and one of eight. Right: the goal is always the same.",
        [
            [
                Panel("hidden goal", hidden, mean_return, Axis("trial", "whole"), legend=True),
                Panel("one fixed goal", known, fixed, Axis("trial", "whole"), legend=True),
            ]
        ],
    )


STUDY = Study(
    name="agentic-transformer",
    title="A decoder improves on its own earlier trials",
    paper="Liu and Abbeel, Emergent Agentic Transformer from Chain of Hindsight Experience, "
    "ICML 2023, arXiv 2305.16554",
    reads="Trained on chains of trajectories that ascend in return, a decoder does better from "
    "trial to trial at test time; one trained on single trajectories does not. The gain is there "
    "only where earlier trials tell what the weights do not know: with one fixed goal there is "
    "none. The best of three trials tells sorted chains from others far less than the last trial "
    "does.",
    parts=lambda seeds, full: {
        agent: seeds if full or agent in (AGENTIC, SINGLE) else -(-seeds // 2) for agent in NAMES
    },
    simulate=simulate,
    judge=judge,
    pictures=pictures,
    seeds=2,
)
