"""Where the `moe` command starts, also as `python -m pipeline.cli`."""

import sys


def main() -> None:
    """Run the command; Ctrl-C ends it in a word, also while modules are imported."""
    try:
        from pipeline.cli.app import app

        app()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
