"""`python -m minitransformer` is the command line, too."""

import sys

from minitransformer.cli.main import main

sys.exit(main())
