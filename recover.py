"""Recovers a pruned model's quality by distillation: `python recover.py --help`."""

from ppf.cli.start import main

if __name__ == "__main__":
    main()
