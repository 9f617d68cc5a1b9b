"""The memory plan of a run on this machine's GPU: printed, or a refusal, before anything is loaded."""

from refimpl.run.config import Config
from refimpl.run.world import World
from refimpl.train.budget.cards import this_card
from refimpl.train.budget.fit import checked_plan
from refimpl.train.budget.table import table


def check_memory(config: Config, world: World) -> None:
    """Prints the memory plan on rank 0 of a run on GPUs; every rank calls it.

    Raises InputError on every rank when the run does not fit, naming the largest batch that does.
    """
    if world.device.type != "cuda":
        return

    def text() -> str:
        card = this_card(world.device)
        return table(config, *checked_plan(config, world.size, card), card)

    shown = world.on_main(text)
    if world.is_main:
        print(shown, flush=True)
