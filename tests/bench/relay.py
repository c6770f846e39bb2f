"""What the gateway adds to a request, a stream and a token, beside nginx as the floor: the two first sides of `peers`.

python -m tests.bench.relay --harness DIR [--rounds 3] [--secs 3] [--phases json,lat,stream,paced]

DIR is the harness that `peers` wants too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.bench import peers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--harness", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--secs", type=int, default=3)
    parser.add_argument("--core", default="0", help="core of the gateway and nginx")
    parser.add_argument("--phases", default="json,lat,stream,paced")
    options = parser.parse_args()
    names = ["gateway", "nginx"]
    said = peers.run(
        options.harness, names, rounds=options.rounds, secs=options.secs, core=options.core, phases=options.phases, out=None
    )
    print("\n" + peers.tables(said))


if __name__ == "__main__":
    main()
