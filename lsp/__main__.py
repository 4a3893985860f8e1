"""`python -m lsp VERB …` is `lsp VERB …`, so that torchrun can start it."""

from lsp.cli.main import main

raise SystemExit(main())
