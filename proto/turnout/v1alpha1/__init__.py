"""The API's generated messages and services."""
