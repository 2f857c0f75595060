"""`python -m pinwarden.plugin`."""

from pinwarden.plugin.main import main

main()
