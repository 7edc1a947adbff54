"""Distillation of Atari agents, an extension of Stable-Baselines3; the losses come from ``polydistill``.

Importing this package alone loads no emulator and no Stable-Baselines3: import the module that you need. It needs the
extra atari, and says so where that is missing.
"""

from polydistill._environment import require_extra

__polydistill__ = True  # how polydistill._shadow tells this package from another one of the same name

require_extra("atari")
