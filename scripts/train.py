"""Train one network with one optimizer, or a sweep of them.

usage: python scripts/train.py experiment=imagenet-resnet18 opt=sgdp [any.key=value ...]

Exit codes: 0 done or done before, 1 the run failed, 2 wrong input, 128 + n stopped by signal n (130 for Ctrl-C) with a
checkpoint saved.
"""

import signal
import sys

if __name__ == "__main__":
    # It asks for a checkpoint; before there is anything to save, it must not end the run.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    from launch.output import until_closed
    from launch.train import main  # takes a second

    sys.exit(until_closed(lambda: main(sys.argv[1:])))
