"""The real databases."""

from databases import empty_database_url, postgres_server, postgres_url

__all__ = ["empty_database_url", "postgres_server", "postgres_url"]
