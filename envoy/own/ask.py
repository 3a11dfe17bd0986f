"""Asks a URL as many users and prints what they were answered: `ask.py URL [USERS]`."""

from __future__ import annotations

import sys
from collections import Counter

import httpx


def main(url: str, users: int) -> None:
    """Print each different answer once, with the number of users who got it on standard error."""
    with httpx.Client(trust_env=False) as client:
        answers = Counter(
            client.get(url, headers={"x-user-id": f"user-{i}"}).text.strip() for i in range(users)
        )
    for answer, count in sorted(answers.items()):
        sys.stdout.write(f"{answer}\n")
        sys.stderr.write(f"  {count} of {users} users\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 40)
