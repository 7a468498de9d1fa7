"""Configuration only: what `flashvsr deploy` and `flashvsr serve` set up on a Prefect server."""
