"""Looks at files named on standard input, as the probing child does, and decodes those that pass, as a worker does.

One line per file on standard output: what became of it. Run as `python -m tests.system.fuzz_child MEGABYTES`.
"""

import resource
import sys

from flashvsr_core.errors import BadInput
from tasks.media.decode import read_frames
from tasks.media.guard import MB, describe

FRAMES = 64  # decoded at most


def main() -> None:
    memory = int(sys.argv[1]) * MB
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        path = line.rstrip("\n")
        try:
            stage = "probe"
            info = describe(path)
            # Said at once: if the next step kills this process, it is known which it was.
            print("probed", flush=True)
            stage = "decode"
            for _ in read_frames(path, info, 0, min(info.frames, FRAMES)):
                pass
            print("done", flush=True)
        except BadInput:
            print(f"refused {stage}", flush=True)
        except Exception as error:  # noqa: BLE001 - every other exception is a finding
            print(f"raised {stage} {type(error).__name__}: {' '.join(str(error).split())[:200]}", flush=True)


if __name__ == "__main__":
    main()
