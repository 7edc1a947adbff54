"""Show what is inside a trained agent's file, without executing anything in it; convert it; score it.

    python scripts/inspect_agent.py downloads/dqn-PongNoFrameskip-v4.zip
    python scripts/inspect_agent.py old.zip --convert clean.zip            a current zip, for stock DQN.load
    python scripts/inspect_agent.py ppo.zip --convert a.zip --env CartPole-v1   with the bounds of that environment
    python scripts/inspect_agent.py ppo-pong.zip --evaluate pong           ten full games, protocol rusu
    python scripts/inspect_agent.py ppo.zip --evaluate CartPole-v1         of any environment of gymnasium
    python scripts/inspect_agent.py acktr:pong.pt --convert pong.zip       a plain table of weights, which give logits
    python scripts/inspect_agent.py hf://sb3/dqn-PongNoFrameskip-v4        from the Hugging Face Hub (extra hub)

FILE is a zip of Stable-Baselines3 (DQN, PPO, A2C) or sb3-contrib (QR-DQN, TRPO, MaskablePPO, RecurrentPPO), of any
year and any observations, or a table of weights (torch.save of a state dict, .safetensors), whose layers are recognised
by their shapes; the prefix acktr: says that a single head gives logits, nature: that it gives Q-values. What has a
memory (RecurrentPPO) cannot be converted. Pickled fields are disassembled, never loaded; "unusual globals" names what
stock DQN.load would import and execute.
"""

from __future__ import annotations

from polydistill.config.parsing import parse
from polydistill.errors import UserError, run_script
from polydistill.runs import Progress, format_interval
from polydistill_agents.environments.evaluation import evaluate
from polydistill_agents.environments.task import AtariTask
from polydistill_agents.files.inspection import AgentInspectionConfig, convert_agent, inspect_agent
from polydistill_agents.files.places import target_of
from polydistill_agents.lineage.report import GamesPlayed, count_games, format_notes, notes
from polydistill_agents.teachers import as_teacher

SCRIPT = "python scripts/inspect_agent.py"


@run_script
def main(argv: list[str] | None = None, called: str = SCRIPT) -> None:
    """Do what the words ask for; None: those of this process. ``called`` is how a user calls it."""
    config = parse(
        AgentInspectionConfig,
        argv,
        program=f"{called} FILE",
        description=(__doc__ or "").replace(SCRIPT, called),
        default_name=None,
        first_word="file",
    ).config
    if config.convert and not target_of(config.convert).parent.is_dir():
        raise UserError(f"there is no folder {target_of(config.convert).parent} for --convert")
    told = inspect_agent(config.file)
    width = max(len(what) for what, _ in told)
    for what, text in told:
        print(f"{what:{width}}  {text}")
    if config.convert:
        lines = convert_agent(config.file, config.convert, config.env)
        print("\n".join([f"\nsaved: {target_of(config.convert)} (stable_baselines3.DQN.load opens it)", *lines]))
    if config.evaluate:
        agent, task = as_teacher(config.file), config.task
        agent.count_actions(task)
        with Progress(f"{config.file} plays", config.episodes, "games") as bar:
            result = evaluate(
                agent,
                task,
                episodes=config.episodes,
                seed=config.seed,
                on_step=lambda games: bar.advance(games - bar.done),
                masked=agent.masks,
            )
        print(
            f"\n{config.evaluate}, {count_games(config.episodes)}, protocol {task.default_protocol}: "
            f"mean {result.mean:.2f} (95% over games: {format_interval(result.interval(config.seed))})"
        )
        if isinstance(task, AtariTask):
            played = GamesPlayed(config.file, config.episodes, result.truncated, result.n_actions, result.game_actions)
            for line in format_notes(notes(config.evaluate, task.default_protocol, [played])):
                print(line)
