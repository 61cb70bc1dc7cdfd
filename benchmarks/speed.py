"""How fast the loop trains, setting by setting, as a Markdown table: `mim-core bench` on noise, one process each.

    python benchmarks/speed.py                       # on a GPU: ViT-B and ViT-L, fp32 to compiled, sharded bf16
    python benchmarks/speed.py --twin --seconds 3    # on a CPU: the same table of small twins, to see that it works

Ratios are to the first row of a recipe, measured in the same minutes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

SETTINGS = {
    "fp32": ["--train.precision", "fp32"],
    "bf16": ["--train.precision", "bf16"],
    "bf16, compiled": ["--train.precision", "bf16", "--train.compile"],
    "bf16, compiled, fsdp2": ["--train.precision", "bf16", "--train.compile", "--train.strategy", "fsdp2"],
    "bf16, compiled, recomputed": [
        "--train.precision", "bf16", "--train.compile", "--train.activation-checkpointing",
    ],
}  # fmt: skip
RECIPES = {"image:mae-vit-base": 512, "image:mae-vit-large": 256}


def measure(recipe: str, batch: int, extra: list[str], options: argparse.Namespace) -> dict | str:
    """What bench says, or its error."""
    command = [sys.executable, "-m", "mim_core", "bench", recipe, "--use", "data=core:noise", "--json"]
    command += ["--train.batch-size", str(batch), "--train.workers", "8", "--seconds", str(options.seconds), *extra]
    if options.twin:
        command += ["--twin", "--train.workers", "0"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return done.stderr.strip().splitlines()[-1][:200] if done.stderr.strip() else f"exit {done.returncode}"
    return json.loads(done.stdout)


def main() -> None:
    """Measures and prints row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--twin", action="store_true")
    options = parser.parse_args()
    print("| recipe | batch | setting | samples/s | ratio | ms per step (p10 to p90) | data wait | MFU | memory, GiB |")
    print("|---|---|---|---|---|---|---|---|---|")
    for recipe, batch in RECIPES.items():
        batch, first = 16 if options.twin else batch, None
        for setting, extra in SETTINGS.items():
            measured = measure(recipe, batch, extra, options)
            if isinstance(measured, str):
                print(f"| {recipe} | {batch} | {setting} | failed: {measured} | | | | | |", flush=True)
                continue
            rate, step = measured["samples_per_second"], measured["seconds_per_step"]
            first = first or rate
            mfu = "" if measured["mfu"] is None else f"{measured['mfu']:.1%}"
            print(
                f"| {recipe} | {batch} | {setting} | {rate:,.0f} | {rate / first:.2f} | {step['median'] * 1000:.1f} "
                f"({step['p10'] * 1000:.1f} to {step['p90'] * 1000:.1f}) | {measured['shares']['data']:.0%} | {mfu} | "
                f"{measured['memory'] / 2**30:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
