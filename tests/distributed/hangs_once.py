"""`lsp` in which one process falls asleep at step 8, unless it has been restarted."""

import sys

from lsp.cli.main import main
from lsp.core.exit_file import attempt
from lsp.core.ranks import rank
from tests.distributed.test_watchdog import asleep, at_phase

if rank() == 1 and attempt() == 0:
    at_phase("step 8: fetching the rows", asleep)
sys.exit(main())
