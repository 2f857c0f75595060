"""`python -m pinwarden` is the `pinwarden` command."""

from pinwarden.cli.main import main

raise SystemExit(main())
