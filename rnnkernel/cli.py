"""The command ``rnnkernel``, also ``python -m rnnkernel``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

import rnnkernel

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with ``argv`` (default: that of the process); returns the exit status."""
    args = _parser().parse_args(argv)
    if sys.stdout is None:  # it was closed
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    try:
        status = args.run(args)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # who reads has seen enough, as head does
        _write_no_more()
        return 141  # as a shell has it of a program that SIGPIPE ended
    except OSError as error:
        _write_no_more()
        print(f"rnnkernel: {error}", file=sys.stderr)
        return 1


def _write_no_more() -> None:
    """What is left in the buffer goes nowhere, or Python complains at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rnnkernel", description="CPU kernels for recurrent neural networks."
    )
    parser.add_argument("--version", action="version", version=f"rnnkernel {rnnkernel.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    info = commands.add_parser("info", help="version, compiler, instruction sets, threads")
    info.set_defaults(run=_info)

    demo = commands.add_parser(
        "demo",
        help="train a character-level language model on CPython's documentation",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument("--cell", choices=("lstm", "gru", "rnn"), default="lstm", help="kind of cell")
    demo.add_argument("--hidden", type=_at_least(1), default=128, help="hidden units")
    demo.add_argument("--steps", type=_at_least(1), default=1500, help="training steps")
    demo.add_argument("--seed", type=_at_least(0), default=0, help="the same seed, the same model")
    demo.set_defaults(run=_demo)

    verify = commands.add_parser(
        "verify",
        help="check every cell, option and dtype on this machine",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    verify.add_argument("--seed", type=_at_least(0), default=0, help="of the random inputs")
    verify.set_defaults(run=_verify)
    return parser


# What a command needs is imported when it runs, so that `info` works where `demo` cannot.


def _info(args: argparse.Namespace) -> int:
    rnnkernel.show_config()
    return 0


def _demo(args: argparse.Namespace) -> int:
    from rnnkernel import demo

    try:
        return demo.run(args.cell, args.hidden, args.steps, args.seed)
    except MemoryError as error:
        print(f"rnnkernel demo: {error}", file=sys.stderr)
        return 1


def _verify(args: argparse.Namespace) -> int:
    from rnnkernel import verify

    return verify.run(seed=args.seed)


def _at_least(smallest: int) -> Callable[[str], int]:
    """An argument type: an integer that is not below ``smallest``."""

    def integer(text: str) -> int:
        value = int(text)
        if value < smallest:
            raise argparse.ArgumentTypeError(f"expected at least {smallest}, got {value}")
        return value

    return integer
