"""Alembic migrations of the store's schema; run when a store is opened."""
