"""Program of a test: hold the lock of a folder until killed."""

import sys
import time
from pathlib import Path

from upalm.checkpoints import lock

if __name__ == "__main__":
    with lock.hold(Path(sys.argv[1])):
        print("held", flush=True)
        time.sleep(600)
