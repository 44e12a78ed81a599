"""Program of a test: print the configs of the recipes named, or of all, as JSON.

In a process of its own: a path that the user must give is no path, which the type checks of tests refuse.
"""

import json
import sys

from upalm.training import recipes
from upalm.training.config import to_json

if __name__ == "__main__":
    configs = {
        f"{name} {config}": to_json(recipes.config(name, config))
        for name in sys.argv[1:] or recipes.names()
        for config in recipes.configs(name)
    }
    print(json.dumps(configs, default=lambda missing: "required"))
